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
    metric = MacroPrauc(4, average=None)
    for part in np.array_split(np.arange(50), 3):
        metric.update(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]))
    kept = [0, 1, 3]
    expected = average_precision_score(labels[:, kept], logits[:, kept], average="macro")
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_macro_prauc_of_no_positives_is_undefined() -> None:
    metric = MacroPrauc(2, average=None)
    metric.update(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.long))
    assert metric.compute().isnan()
