"""The validation metric and what each epoch's randomness depends on."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from drfuse.models import EhrTransformer
from drfuse.training import FusionTraining, TrainOptions
from drfuse.training.metrics import MacroPrauc, MeanLosses
from tests.builders import N_FEATURES, N_LABELS


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


def test_mean_losses_weigh_each_batch_by_its_stays() -> None:
    losses = MeanLosses()
    losses.update({"total": torch.tensor(2.0), "part": torch.tensor(1.0, dtype=torch.bfloat16)}, 3)
    losses.update({"total": torch.tensor(6.0), "part": torch.tensor(0.0)}, 1)
    assert {name: mean.item() for name, mean in losses.compute().items()} == {"total": 3.0, "part": 0.75}
    losses.reset()
    losses.update({"other": torch.tensor(5.0)}, 2)
    losses.update({"total": torch.tensor(1.0), "other": torch.tensor(2.0)}, 4)  # in another order, and more
    assert {name: mean.item() for name, mean in losses.compute().items()} == {"other": 3.0, "total": 1.0}


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_weights_decay_apart_from_the_gradient(weight_decay: float) -> None:
    network = EhrTransformer(N_FEATURES, N_LABELS, dim=8)
    task = FusionTraining(network, TrainOptions(lr=1e-2, weight_decay=weight_decay))
    optimizer = task.configure_optimizers()
    before = task.model.head.weight.detach().clone()
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = task.model.head.weight
    torch.testing.assert_close(after, before * (1 - 1e-2 * weight_decay))
