"""Processes that are killed, or fail, while others wait for them: nobody hangs, and each says why it ends."""

import multiprocessing
import socket
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from drfuse.training import TrainOptions
from tests.training import ranks as in_ranks
from tests.training.own_model import FirstHour, is_running, wait_until

pytestmark = pytest.mark.slow

SECONDS = 60
FIT = "drfuse.training.fit."
TASK = "drfuse.training.FusionTraining."
LOADS = "torch.utils.data._utils.fetch._MapDatasetFetcher.fetch"  # in a loader process
OPTIONS = TrainOptions(epochs=1, crop_size=32, accelerator="cpu", batch_size=8)

Start = Callable[..., ForkServerProcess]


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Return where processes are forked that have imported what a training needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.ranks", "drfuse.training.fit", "sklearn.metrics"])
    return context


@pytest.fixture
def start(server: ForkServerContext, small_cohort: Path, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts one of the two processes of a training."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started: list[ForkServerProcess] = []

    def start_rank(
        rank: int, endings: dict[str, str], options: TrainOptions = OPTIONS, seconds_to_meet: int = 60
    ) -> ForkServerProcess:
        process = server.Process(
            target=in_ranks.train_as,
            args=(rank, port, endings, tmp_path / f"said-{rank}", seconds_to_meet),
            kwargs={
                "cohort": small_cohort,
                "out": tmp_path / "run",
                "model": FirstHour,
                "options": options,
                "progress": False,
            },
        )
        process.start()
        started.append(process)
        return process

    yield start_rank
    for process in started:
        process.kill()


ENDINGS = {
    "the first is killed before they meet": (0, "kill", "drfuse.training.distributed.Ranks.join"),
    "the second fails before they meet": (1, "raise", "drfuse.training.distributed.Ranks.join"),
    "the first is killed when it opens the cohort": (0, "kill", FIT + "check_leakage"),
    "the first fails when it opens the cohort": (0, "raise", FIT + "check_leakage"),
    "the first is killed when it claims the folder": (0, "kill", FIT + "claim"),
    "the second is killed when it makes the network": (1, "kill", FIT + "try_network"),
    "the first is killed in a step": (0, "kill", TASK + "training_step"),
    "the second is killed in a step": (1, "kill", TASK + "training_step"),
    "the second fails in a step": (1, "raise", TASK + "training_step"),
    "the second exits in a validation": (1, "exit", TASK + "validation_step"),
    "the first is killed when it saves the weights": (0, "kill", FIT + "_save_best"),
    "the second is killed when it predicts": (1, "kill", FIT + "_write_predictions"),
    "the first fails when it predicts": (0, "raise", FIT + "_write_predictions"),
    "the first is killed at the very end": (0, "kill", FIT + "recalibrate"),
}


@pytest.mark.parametrize(("rank", "how", "place"), ENDINGS.values(), ids=ENDINGS.keys())
def test_when_one_of_two_processes_ends_so_does_the_other(
    start: Start, tmp_path: Path, rank: int, how: str, place: str
) -> None:
    seconds_to_meet = 4 if place.endswith("join") else 60
    endings = {rank: {place: how}, 1 - rank: {}}
    processes = [start(one, endings[one], seconds_to_meet=seconds_to_meet) for one in (0, 1)]
    check_ended(processes[1 - rank], tmp_path / f"said-{1 - rank}")
    processes[rank].join(SECONDS)
    said = (tmp_path / f"said-{rank}").read_text()
    assert said.count("train: error: a reason of its own") == (how == "raise")
    assert processes[rank].exitcode == {"kill": -9, "exit": 130, "raise": 2}[how]
    assert "Traceback" not in said


def test_a_process_that_never_asks_for_the_others_ends_as_well(start: Start, tmp_path: Path) -> None:
    processes = [start(0, {FIT + "claim": "sleep"}), start(1, {FIT + "try_network": "kill"})]
    check_ended(processes[0], tmp_path / "said-0")
    processes[1].join(SECONDS)


def test_loader_processes_end_with_a_process_that_is_killed(start: Start, tmp_path: Path) -> None:
    options = OPTIONS.changed(num_workers=2)
    processes = [start(0, {}, options), start(1, {LOADS: "sleep"}, options)]
    wait_until(lambda: len(list(tmp_path.glob("said-1.sleeps-*"))) == 2)
    processes[1].kill()
    check_ended(processes[0], tmp_path / "said-0")
    loaders = [int(path.suffix.rpartition("-")[2]) for path in tmp_path.glob("said-1.sleeps-*")]
    wait_until(lambda: not any(map(is_running, loaders)))


def check_ended(process: ForkServerProcess, said: Path) -> None:
    """Check that a process ends, and says why in one sentence."""
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
    text = said.read_text()
    assert process.exitcode == 2, text
    assert text.count("another process of this") + text.count("did not meet") == 1, text
    assert "Traceback" not in text
