"""The validation metric and what each epoch's randomness depends on."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from drfuse.training.task import MacroPrauc


def test_macro_prauc_leaves_out_phenotypes_without_a_positive() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 4)) < 0.3).astype(int)
    labels[:, 2] = 0
    logits = rng.normal(size=(50, 4)).astype(np.float32)
    metric = MacroPrauc()
    for part in np.array_split(np.arange(50), 3):
        metric.update(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]))
    kept = [0, 1, 3]
    expected = average_precision_score(labels[:, kept], logits[:, kept], average="macro")
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_macro_prauc_of_no_positives_is_undefined() -> None:
    metric = MacroPrauc()
    metric.update(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.long))
    assert metric.compute().isnan()


def test_macro_prauc_is_that_of_the_logits_however_they_come_in_batches() -> None:
    logits = torch.tensor(
        [[-2.0], [0.3], [0.9], [20.0], [25.0]]
    )  # alone, the second batch looks like probabilities
    labels = torch.tensor([[0.0], [0.0], [1.0], [0.0], [1.0]])
    metric = MacroPrauc()
    for some in (slice(0, 1), slice(1, 3), slice(3, 5)):
        metric.update(logits[some], labels[some])
    expected = average_precision_score(labels.numpy(), logits.numpy())
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_macro_prauc_leaves_out_stays_without_prediction() -> None:
    metric = MacroPrauc()
    metric.update(torch.tensor([[1.0], [torch.nan], [0.0]]), torch.tensor([[1.0], [1.0], [0.0]]))
    assert metric.compute().item() == 1.0


def test_macro_prauc_of_infinite_logits_is_undefined() -> None:
    metric = MacroPrauc()
    metric.update(torch.tensor([[torch.inf], [0.0]]), torch.tensor([[1.0], [0.0]]))
    assert metric.compute().isnan()
