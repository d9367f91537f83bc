"""One run on several devices: two processes of this machine, which meet over loopback."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from drfuse.models import CxrResNet, DrFuse, EhrLstm, MedFuse
from drfuse.models.mmtm import MMTM
from drfuse.run import Predictions, RunFiles
from drfuse.training import TrainedRun, train
from drfuse.training.distributed import start_ranks
from tests.builders import TINY_BACKBONE, make_batch, take_stays, tiny_drfuse
from tests.training import ranks as in_ranks

SMALL = {"dim": 8, "cxr_backbone": TINY_BACKBONE}
TRAININGS: dict[str, dict[str, Any]] = {
    "drfuse": {"model": partial(DrFuse, **SMALL, heads=2, dropout=0.0), "batch_size": 5},
    "mmtm": {"model": partial(MMTM, **SMALL, heads=2, dropout=0.0), "batch_size": 3},
    "cxr": {"model": partial(CxrResNet, **SMALL), "batch_size": 7},
    "matched": {
        "model": partial(MedFuse, **SMALL, dropout=0.0),
        "train_on": "matched",
        "matched_cxr_dropout": 0.0,
        "batch_size": 4,
    },
    "resumed": {"model": partial(EhrLstm, dim=8, dropout=0.0), "batch_size": 8},
}
COMMON = {
    "epochs": 2,
    "lr": 1e-3,
    "crop_size": 32,
    "augment": False,
    "accelerator": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def alone(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedRun]:
    """Return the runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        name: train(small_cohort, folder / name, **(COMMON | options)) for name, options in TRAININGS.items()
    }


@pytest.fixture(scope="module")
def together(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what two processes returned."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:  # one process begins the last run
        patch.setattr("drfuse.training.fit._keep_best", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(small_cohort, folder / "resumed", **(COMMON | TRAININGS["resumed"] | {"epochs": 2}))
    last = torch.load(folder / "resumed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1
    trainings = [
        {"cohort": small_cohort, "out": folder / name, **(COMMON | options)}
        for name, options in TRAININGS.items()
    ]
    return start_ranks(in_ranks.everything, {"trainings": trainings}, 2)


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_each_process_knows_its_place(together: dict[str, Any]) -> None:
    n_threads = max(1, torch.get_num_threads() // 2)
    assert together["ranks"] == [(0, 2, 2, n_threads), (1, 2, 2, n_threads)]


def test_uneven_parts_are_collected_in_order(together: dict[str, Any]) -> None:
    for (numbers, wide, whole), _ in together["collected"]:
        assert numbers.tolist() == [0]  # none of the first, one of the second
        assert wide.tolist() == [[1, 0], [1, 1], [1, 1]]
        assert whole.tolist() == [[0, 1], [2, 3], [4, 5], [12, 13], [14, 15]]


def test_a_part_gets_the_gradients_of_all_processes(together: dict[str, Any]) -> None:
    (_, first), (_, second) = together["collected"]
    assert first.tolist() == [[0, 6], [12, 18], [24, 30]]  # 2 x, from a loss taken once and one taken twice
    assert second == 0  # its own part needed none


@pytest.mark.parametrize(("lengths", "dtype", "channels_last"), in_ranks.NORM_CASES)
def test_batch_norm_is_that_of_all_images_in_one_process(
    together: dict[str, Any], lengths: tuple[int, int], dtype: torch.dtype, channels_last: bool
) -> None:
    norm = in_ranks.norm_to_test()
    images, weights = in_ranks.norm_input(sum(lengths))
    maps = images.to(dtype).double().requires_grad_()
    expected = norm(maps)
    (expected * weights).sum().backward()
    first, second = together["normalized"][lengths]
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 4e-2}[dtype]
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance, check_dtype=False)
    assert first["made"].dtype == dtype
    close(torch.cat([first["made"], second["made"]]), expected.detach())
    assert maps.grad is not None
    close(torch.cat([first["maps"], second["maps"]]), maps.grad)
    for name, parameter in norm.named_parameters():
        close(first[f"{name}.grad"] + second[f"{name}.grad"], parameter.grad)
    for name, state in norm.state_dict().items():
        close(first[name], state, rtol=max(1e-5, tolerance / 10))
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


@pytest.mark.parametrize("parts", in_ranks.GRADIENT_CASES)
def test_gradients_are_those_of_the_whole_batch(
    together: dict[str, Any], parts: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    model = tiny_drfuse().double()
    batch = in_ranks.double(take_stays(make_batch(), [*parts[0], *parts[1]]))
    expected = model.loss(model(batch), batch)["total"]
    expected.backward()
    loss, found = together["gradients"][parts]
    torch.testing.assert_close(loss, expected.detach())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:  # without an image, nothing touches the backbones
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], parameter.grad, msg=name)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(found[name], buffer, msg=name)


@pytest.fixture(params=list(TRAININGS))
def both(
    request: pytest.FixtureRequest, alone: dict[str, TrainedRun], together: dict[str, Any]
) -> tuple[TrainedRun, TrainedRun]:
    number = list(TRAININGS).index(request.param)
    return alone[request.param], together["trained"][number]


def test_losses_and_metrics_are_those_of_one_process(both: tuple[TrainedRun, TrainedRun]) -> None:
    one, two = both
    assert (two.best_epoch, two.epochs) == (one.best_epoch, one.epochs)
    assert two.val_prauc == pytest.approx(one.val_prauc, abs=1e-4)
    logged = [pl.read_csv(run.folder / "logs" / "version_0" / "metrics.csv") for run in both]
    for name in logged[0].columns:
        np.testing.assert_allclose(
            logged[1][name].drop_nulls(), logged[0][name].drop_nulls(), rtol=1e-3, err_msg=name
        )


def test_predictions_are_those_of_one_process(both: tuple[TrainedRun, TrainedRun]) -> None:
    one, two = (Predictions.read(RunFiles(run.folder).predictions) for run in both)
    assert two.stays.equals(one.stays)
    np.testing.assert_array_equal(two.labels, one.labels)
    for name in ("logits", "logits_without_cxr", "modality_weights"):
        if getattr(one, name) is not None:
            np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=1e-2, atol=2e-3)
