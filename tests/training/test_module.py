"""The validation metric and what each epoch's randomness depends on."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from drfuse.data import Batch
from drfuse.models import EhrTransformer, FusionModel, FusionOutput
from drfuse.training import FusionTraining, TrainOptions
from drfuse.training.metrics import MacroPrauc, MeanLosses
from tests.builders import N_FEATURES, N_LABELS, make_batch, take_stays, tiny_drfuse


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


def calls_of(model: FusionModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that notes the stays and radiographs of each batch that the model reads."""
    seen: list[tuple[int, int]] = []
    forward = type(model).forward

    def noting(model: FusionModel, batch: Batch) -> FusionOutput:
        seen.append((len(batch), len(batch.cxr)))
        return forward(model, batch)

    monkeypatch.setattr(type(model), "forward", noting)
    return seen


def test_prediction_reads_each_radiograph_once_and_matched_stays_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = tiny_drfuse().eval(), make_batch(cxr_of=(1, 3))
    with torch.no_grad():
        expected = model(batch).logits
        alone = model(take_stays(batch, [1, 3]).keep_cxr(torch.tensor([], dtype=torch.int64))).logits
        seen = calls_of(model, monkeypatch)
        predicted = FusionTraining(model, TrainOptions()).predict_step(batch, 0)
    assert seen == [(4, 2), (2, 0)]
    torch.testing.assert_close(predicted.logits, expected)
    torch.testing.assert_close(
        predicted.logits_without_cxr, torch.stack([expected[0], alone[0], expected[2], alone[1]])
    )


def test_without_radiographs_nothing_is_predicted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EhrTransformer(N_FEATURES, N_LABELS, dim=8, heads=2, feedforward=16).eval()
    seen = calls_of(model, monkeypatch)
    predicted = FusionTraining(model, TrainOptions()).predict_step(make_batch(cxr_of=()), 0)
    assert seen == [(4, 0)]
    assert torch.equal(predicted.logits, predicted.logits_without_cxr)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_weights_decay_apart_from_the_gradient(weight_decay: float) -> None:
    network = EhrTransformer(N_FEATURES, N_LABELS, dim=8)
    task = FusionTraining(network, TrainOptions(lr=1e-2, weight_decay=weight_decay))
    optimizer = task.configure_optimizers()
    before = task.model.head.weight.detach().clone()  # type: ignore[union-attr, operator]
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = task.model.head.weight  # type: ignore[union-attr]
    torch.testing.assert_close(after, before * (1 - 1e-2 * weight_decay))
