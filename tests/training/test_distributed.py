"""One run on several devices: two processes of this machine, which meet over loopback."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from drfuse.data import Cohort, CohortDataModule
from drfuse.errors import InputError
from drfuse.models import CxrResNet, DrFuse, EhrLstm, LogisticLate, MedFuse
from drfuse.models.mmtm import MMTM
from drfuse.run import Predictions, Run
from drfuse.training import FusionTraining, TrainedRun, TrainOptions, train
from drfuse.training.distributed import Ranks, start_ranks
from tests.builders import TINY_BACKBONE, make_batch, take_stays, tiny_drfuse
from tests.training import ranks as in_ranks
from tests.training.own_model import FirstHour, Killed, interrupt_second, is_running, wait_until

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
    "linear": {"model": partial(LogisticLate, n_components=4, side=8), "batch_size": 6},
    "resumed": {"model": partial(EhrLstm, dim=8, dropout=0.0), "batch_size": 8},
}
COMMON: dict[str, Any] = {
    "options": TrainOptions(epochs=2, lr=1e-3, crop_size=32, augment=False, accelerator="cpu"),
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
        patch.setattr(FusionTraining, "on_train_epoch_start", interrupt_second)
        with pytest.raises(KeyboardInterrupt):
            train(small_cohort, folder / "resumed", **(COMMON | TRAININGS["resumed"]))
    trainings = [
        {"cohort": small_cohort, "out": folder / name, **(COMMON | options)}
        for name, options in TRAININGS.items()
    ]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        return start_ranks(in_ranks.everything, {"folder": folder, "trainings": trainings}, 2)
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.slow
def test_each_process_knows_its_place(together: dict[str, Any]) -> None:
    assert together["ranks"] == [(0, 2, 2, 2), (1, 2, 2, 2)]  # the last: its share of four threads


@pytest.mark.slow
def test_uneven_parts_are_collected_in_order(together: dict[str, Any]) -> None:
    for (numbers, wide, whole), _ in together["collected"]:
        assert numbers.tolist() == [0]  # none of the first, one of the second
        assert wide.tolist() == [[1, 0], [1, 1], [1, 1]]
        assert whole.tolist() == [[0, 1], [2, 3], [4, 5], [12, 13], [14, 15]]


@pytest.mark.slow
def test_a_part_gets_the_gradients_of_all_processes(together: dict[str, Any]) -> None:
    (_, first), (_, second) = together["collected"]
    assert first.tolist() == [[0, 6], [12, 18], [24, 30]]  # 2 x, from a loss taken once and one taken twice
    assert second == 0  # its own part needed none


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_losses_and_metrics_are_those_of_one_process(both: tuple[TrainedRun, TrainedRun]) -> None:
    one, two = both
    assert (two.best_epoch, two.epochs) == (one.best_epoch, one.epochs)
    assert two.val_prauc == pytest.approx(one.val_prauc, abs=1e-4)
    if not logs_of(one):  # it has no epochs
        assert not logs_of(two)
        return
    logged = [pl.concat([pl.read_csv(part) for part in logs_of(run)], how="diagonal") for run in both]
    assert logged[0]["epoch"].max() == 1
    for name in logged[0].columns:
        # a divergence is the rest of terms of order 1 in float32, so 1e-5 of it is known to a few digits only
        np.testing.assert_allclose(
            logged[1][name].drop_nulls(), logged[0][name].drop_nulls(), rtol=1e-3, atol=1e-6, err_msg=name
        )


def logs_of(run: TrainedRun) -> list[Path]:
    return sorted(run.folder.glob("logs/version_*/metrics.csv"))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_more_devices(
    alone: dict[str, TrainedRun], together: dict[str, Any]
) -> None:
    assert len(logs_of(together["trained"][-1])) == 2
    assert len(logs_of(alone["resumed"])) == 1


@pytest.mark.slow
def test_predictions_are_those_of_one_process(both: tuple[TrainedRun, TrainedRun]) -> None:
    one, two = (Predictions.read(Run(run.folder).predictions) for run in both)
    assert two.stays.equals(one.stays)
    np.testing.assert_array_equal(two.labels, one.labels)
    assert not list(both[1].folder.glob("**/*part-*"))
    for name in ("logits", "logits_without_cxr", "logits_without_ehr", "modality_weights"):
        if getattr(one, name) is not None:
            # sums in another order: nearly all agree closely, a few of MMTM's differ by 0.005
            of_two, of_one = getattr(two, name), getattr(one, name)
            assert np.isclose(of_two, of_one, rtol=1e-2, atol=2e-3, equal_nan=True).mean() > 0.99
            np.testing.assert_allclose(of_two, of_one, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_the_first_process_writes_all_but_the_other_s_predictions(together: dict[str, Any]) -> None:
    first, second = together["written"]
    assert any("predictions.parquet" in place for place in first)
    assert second
    assert all(".predictions.parquet.part-1" in place for place in second)


@pytest.mark.slow
def test_what_one_process_cannot_do_ends_all(small_cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the second process fails$"):
        train(small_cohort, tmp_path / "run", in_ranks.FailsInOne, devices=2, **COMMON)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_process_that_dies_ends_all(small_cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a process that trained the run died"):
        train(small_cohort, tmp_path / "run", Killed, devices=2, **COMMON)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    command = (
        "from pathlib import Path; from drfuse.training.distributed import start_ranks; "
        "from tests.training.ranks import sleep; "
        f"start_ranks(sleep, {{'folder': Path({str(tmp_path)!r})}}, 2)"
    )
    with subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        parent.kill()
    wait_until(lambda: not any(is_running(int(path.name)) for path in tmp_path.iterdir()))


@pytest.mark.slow
def test_an_interruption_ends_all(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    # a suite that runs in the background may have been started with this signal ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        start_ranks(in_ranks.sleep, {"folder": tmp_path}, 2)
    assert not any(is_running(int(path.name)) for path in tmp_path.iterdir())


def torchrun(monkeypatch: pytest.MonkeyPatch, **variables: int) -> None:
    places = (
        "RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    for name in (*places, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_the_environment_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch)
    assert Ranks.of_environment(None, None) is None
    assert Ranks.of_environment(4, None) is None
    torchrun(monkeypatch, RANK=5, WORLD_SIZE=8, LOCAL_WORLD_SIZE=4)
    place = Ranks(rank=5, size=8, devices=4)
    assert [Ranks.of_environment(*asked) for asked in ((None, None), (4, None), (4, 2))] == [place] * 3
    assert Ranks.of_environment(1, 1) is None  # as the runs of a matrix are trained


def test_a_step_of_slurm_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, SLURM_STEP_NUM_TASKS=4, SLURM_STEP_NUM_NODES=2, SLURM_PROCID=3, SLURM_LOCALID=1)
    for name, value in {"SLURM_NODEID": "1", "SLURM_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "41235"}.items():
        monkeypatch.setenv(name, value)
    assert Ranks.of_environment(2, 2) == Ranks(rank=3, size=4, devices=2)
    assert (os.environ["MASTER_ADDR"], os.environ["LOCAL_RANK"]) == ("gpu07", "1")


@pytest.mark.parametrize(
    ("started", "asked", "message"),
    [
        ({}, (2, 3), r"torchrun --nnodes 3 --nproc-per-node 2 .* -m drfuse train"),
        (
            {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2},
            (4, None),
            "2 processes were started, 2 of them",
        ),
        ({"RANK": 0, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 2}, (None, None), "3 processes were"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(
    monkeypatch: pytest.MonkeyPatch, started: dict[str, int], asked: tuple[int | None, ...], message: str
) -> None:
    torchrun(monkeypatch, **started)
    with pytest.raises(InputError, match=message):
        Ranks.of_environment(*asked)


def test_a_batch_has_a_stay_for_every_device(small_cohort: Path) -> None:
    with pytest.raises(InputError, match="batch_size is 3, the stays of all 4 devices together"):
        CohortDataModule(Cohort.open(small_cohort), batch_size=3, crop_size=32, n_ranks=4)


def test_a_model_that_cannot_travel_is_refused(small_cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be sent to them"):
        train(small_cohort, tmp_path / "run", lambda n, p: FirstHour(n, p, scale=2.0), devices=2, **COMMON)
    assert not (tmp_path / "run").exists()
