"""Many runs: what a run is known by, that it is done once, and that several are done at a time."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock

from drfuse.data import Cohort
from drfuse.errors import InputError, MissingInputError
from drfuse.files import beside, is_locked
from drfuse.inference import Predictor
from drfuse.run import Predictions
from drfuse.training import FusionTraining, TrainOptions, train
from drfuse.training.matrix import RunSpec, specify, spread, train_all, train_one
from tests.builders import TINY_BACKBONE, write_cohort
from tests.training.own_model import FirstHour, is_running, wait_until

OWN = "tests.training.own_model"
TINY_ARGS = {"dim": 8, "heads": 2, "feedforward": 16, "cxr_backbone": TINY_BACKBONE}
TINY = {"class_path": "drfuse.models.DrFuse", "init_args": TINY_ARGS}
QUICK: dict[str, Any] = {"epochs": 1, "crop_size": 32, "accelerator": "cpu"}
ROOT = Path(__file__).parents[2]

Specify = Callable[..., RunSpec]


@pytest.fixture
def run(small_cohort: Path, tmp_path: Path) -> Specify:
    """Return a maker of runs of a linear model on the small cohort: one epoch of 32 pixels."""

    def make(title: str = "linear", kind: str = "FirstHour", **options: Any) -> RunSpec:
        init_args = options.pop("init_args", {})
        model = {"class_path": f"{OWN}.{kind}", "init_args": init_args}
        return specify(Cohort.open(small_cohort), tmp_path / "runs", title, model, **(QUICK | options))

    return make


def predictions_of(spec: RunSpec) -> bytes:
    return spec.run.predictions.read_bytes()


# --- what a run is known by ---------------------------------------------------------------------------------

DECIDING: dict[str, Any] = {
    "compile": True,
    "train_on": "full",
    "validate_on": "full",
    "epochs": 7,
    "patience": 3,
    "lr": 1e-3,
    "batch_size": 8,
    "matched_cxr_dropout": 0.1,
    "crop_size": 8,
    "augment": False,
    "seed": 1,
    "precision": "bf16-mixed",
    "task": "los",
    "init_ehr": Path("ehr"),
    "init_cxr": Path("cxr"),
    "accumulate": 2,
    "weight_decay": 0.1,
    "optimizer": "torch.optim.SGD",
    "optimizer_args": {"betas": (0.8, 0.9)},
    "schedule": "cosine",
    "cxr_share": 0.5,
    "freeze_cxr": True,
}
NOT_DECIDING: dict[str, Any] = {
    "accelerator": "cpu",
    "num_workers": 1,
    "checkpoint_activations": True,
    "devices": 1,
    "nodes": 1,
}


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort.open(write_cohort(tmp_path / "cohort"))


def name_of(cohort: Cohort, model: dict[str, Any] | None = None, **options: Any) -> str:
    return specify(cohort, Path("runs"), "any", model or TINY, **options).folder.name


def test_every_option_that_decides_a_training_changes_the_run(cohort: Cohort) -> None:
    assert set(TrainOptions.names()) == DECIDING.keys() | NOT_DECIDING.keys()
    matched = name_of(cohort, train_on="matched")
    names = [name_of(cohort, **({"train_on": "matched"} | {name: value})) for name, value in DECIDING.items()]
    assert len({matched, *names}) == len(names) + 1
    for name, value in NOT_DECIDING.items():
        assert name_of(cohort, **{"train_on": "matched", name: value}) == matched


@pytest.mark.parametrize("kind", ["CxrResNet", "EhrTransformer"])
def test_no_radiograph_is_taken_from_a_model_of_one_modality(cohort: Cohort, kind: str) -> None:
    alone = {"class_path": f"drfuse.models.{kind}"}
    names = {name_of(cohort, alone, train_on="matched", matched_cxr_dropout=share) for share in (0.1, 0.3)}
    assert len(names) == 1


def test_a_folder_says_what_lies_in_it(cohort: Cohort) -> None:
    assert name_of(cohort, train_on="matched", seed=3).startswith("drfuse-matched-3-")
    assert name_of(cohort, {"class_path": f"{OWN}.FirstHour"}).startswith("firsthour-full-0-")


def test_the_model_and_its_arguments_change_the_run(cohort: Cohort) -> None:
    models: list[dict[str, Any]] = [
        TINY,
        TINY | {"init_args": TINY_ARGS | {"dim": 16}},
        TINY | {"init_args": TINY_ARGS | {"alignment_weight": 0.5}},
        {"class_path": f"{OWN}.FirstHour"},
        {"class_path": f"{OWN}.Killed"},
    ]
    assert len({name_of(cohort, model) for model in models}) == len(models)


def test_what_changes_no_result_changes_no_run(cohort: Cohort, tmp_path: Path) -> None:
    name = name_of(cohort, lr=1e-3, seed=2)
    assert name_of(cohort, seed=2, lr=1e-3) == name
    assert name_of(cohort, seed=2, lr=1e-3, epochs=100) == name  # a default, spelled out
    assert name_of(cohort, lr=1e-3, seed=2, matched_cxr_dropout=0.9) == name  # it trains on all stays
    assert name_of(cohort, lr=1e-3, seed=2, validate_on="full") == name  # as it does anyway
    assert name_of(cohort, TINY | {"class_path": "drfuse.models.drfuse.DrFuse"}, lr=1e-3, seed=2) == name
    arguments = dict(reversed(TINY_ARGS.items()))
    spelled_out = TINY | {"init_args": arguments | {"alignment_weight": 1}}
    assert name_of(cohort, spelled_out, lr=1e-3, seed=2) == name
    moved = Cohort.open(shutil.copytree(cohort.folder, tmp_path / "elsewhere"))
    assert name_of(moved, lr=1e-3, seed=2) == name


def test_the_cohort_changes_the_run(cohort: Cohort, tmp_path: Path) -> None:
    assert name_of(Cohort.open(write_cohort(tmp_path / "other", seed=1))) != name_of(cohort)


def test_unknown_models_options_and_arguments_are_refused(cohort: Cohort) -> None:
    with pytest.raises(
        InputError, match=r"'speed' is not an option of a training; expected one of train_on, "
    ):
        name_of(cohort, speed=1)
    with pytest.raises(InputError, match="'overwrite' is not an option"):
        name_of(cohort, overwrite=True)
    with pytest.raises(InputError, match=r"drfuse\.models\.DrFuse takes no argument 'width'"):
        name_of(cohort, TINY | {"init_args": {"width": 1}})
    for path in ("drfuse.models.Nothing", "no.such.Model", "Nothing"):
        with pytest.raises(InputError, match=f"{path} cannot be imported"):
            name_of(cohort, {"class_path": path})


# --- done once ----------------------------------------------------------------------------------------------


def test_runs_are_trained_and_none_twice(run: Specify, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [run(seed=0), run(seed=1), run(seed=0)]
    train_all(specs)
    before = [predictions_of(spec) for spec in specs]
    assert before[0] == before[2] != before[1]
    assert len([path for path in specs[0].folder.parent.iterdir() if path.is_dir()]) == 2
    monkeypatch.setattr("drfuse.training.matrix.train", None)  # training would fail
    train_all(specs)
    assert [predictions_of(spec) for spec in specs] == before


def test_a_run_is_what_train_makes_of_its_options(run: Specify, small_cohort: Path, tmp_path: Path) -> None:
    spec = run(lr=1e-2, init_args={"scale": 2.0})
    train_all([spec])
    alone = train(small_cohort, tmp_path / "alone", partial(FirstHour, scale=2.0), lr=1e-2, **QUICK)
    for name in ("config.yaml", "predictions.parquet", "model.safetensors"):
        assert (alone.folder / name).read_bytes() == (spec.folder / name).read_bytes()


def test_an_interrupted_run_goes_on(run: Specify, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    original = FusionTraining.on_train_epoch_start

    def start(task: FusionTraining) -> None:
        if task.current_epoch == 1 and 1 not in started:
            started.append(1)
            raise KeyboardInterrupt
        started.append(task.current_epoch)
        original(task)

    monkeypatch.setattr(FusionTraining, "on_train_epoch_start", start)
    with pytest.raises(KeyboardInterrupt):
        train_all([run(epochs=3)])
    assert not run(epochs=3).is_done
    train_all([run(epochs=3)])
    assert run(epochs=3).is_done
    assert started == [0, 1, 1, 2]


def test_a_run_of_another_command_is_waited_for(
    run: Specify, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours = run(seed=0), run(seed=1)
    train_all([theirs])
    finished = theirs.folder.rename(theirs.folder.with_name("finished"))
    theirs.folder.mkdir()
    lock = FileLock(beside(theirs.folder, "lock"))
    lock.acquire()
    waited: list[float] = []

    def finish(seconds: float) -> None:
        waited.append(seconds)
        assert ours.is_done
        shutil.copytree(finished, theirs.folder, dirs_exist_ok=True)
        lock.release()

    monkeypatch.setattr("drfuse.training.matrix.time", SimpleNamespace(sleep=finish))
    monkeypatch.setattr("drfuse.training.matrix.SECONDS_TO_WAIT", 0.25)
    assert train_one(theirs) == "busy"
    with caplog.at_level(logging.INFO, "drfuse"):
        train_all([theirs, ours])
    assert waited == [0.25]
    assert "waiting for 1 runs that another command is training" in caplog.text
    assert predictions_of(theirs) == (finished / "predictions.parquet").read_bytes()


def test_a_run_of_a_command_that_was_killed_is_taken_over(
    run: Specify, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = run()
    spec.folder.parent.mkdir(parents=True)
    lock = FileLock(beside(spec.folder, "lock"))
    lock.acquire()
    kill = SimpleNamespace(sleep=lambda _: lock.release())
    monkeypatch.setattr("drfuse.training.matrix.time", kill)
    train_all([spec])
    assert spec.is_done


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        pytest.param("predictions.parquet", marks=pytest.mark.slow),
        pytest.param("config.json", marks=pytest.mark.slow),
    ],
)
def test_a_finished_run_that_is_damaged_is_trained_again(
    run: Specify, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    damaged, whole = run(seed=0), run(seed=1)
    train_all([damaged, whole])
    expected, untouched = (damaged.folder / name).read_bytes(), whole.run.model.stat().st_mtime_ns
    (damaged.folder / name).write_bytes(expected[:40] + bytes([expected[40] ^ 1]) + expected[41:])
    assert damaged.is_done
    assert train_all([damaged, whole]) == []
    assert f"{name} is damaged: it is not what drfuse wrote; it is trained from the beginning" in caplog.text
    assert (damaged.folder / name).read_bytes() == expected
    assert whole.run.model.stat().st_mtime_ns == untouched


@pytest.mark.slow
@pytest.mark.parametrize("n_failing", [1, 2])
def test_runs_that_fail_keep_the_others(run: Specify, n_failing: int) -> None:
    failing = [run(f"too large {crop_size}", crop_size=crop_size) for crop_size in (512, 600)[:n_failing]]
    others = [run(seed=seed) for seed in (0, 1)]
    failed = train_all([others[0], *failing, others[1]])
    assert len(failed) == n_failing
    for sentence, crop_size in zip(failed, (512, 600), strict=False):
        assert sentence.startswith(f"too large {crop_size}: crop_size is {crop_size}, but")
        assert "\n" not in sentence
    assert [spec.is_done for spec in (*others, *failing)] == [True, True] + [False] * n_failing


def test_an_error_of_torch_is_told_as_one_sentence(run: Specify) -> None:
    other = run()
    (failed,) = train_all([run("broken", kind="Broken"), other])
    assert failed.startswith("broken: Broken raised RuntimeError in ")
    assert "own_model.py, line " in failed
    assert "mat1 and mat2 shapes cannot be multiplied" in failed
    assert "\n" not in failed
    assert other.is_done


@pytest.mark.slow
def test_runs_that_others_start_from_are_trained_first(run: Specify, small_cohort: Path) -> None:
    cohort, runs = Cohort.open(small_cohort), run().folder.parent

    def of(kind: str, after: dict[str, RunSpec] | None = None, **arguments: Any) -> RunSpec:
        model = {"class_path": f"drfuse.models.{kind}", "init_args": {"dim": 8, **arguments}}
        return specify(cohort, runs, kind, model, after=after, **QUICK)

    ehr, cxr = of("EhrLstm", lstm_layers=1), of("CxrResNet", cxr_backbone=TINY_BACKBONE)
    arguments = {"lstm_layers": 1, "fusion_dim": 8, "cxr_backbone": TINY_BACKBONE}
    medfuse = of("MedFuse", {"ehr": ehr, "cxr": cxr}, **arguments)
    other = of("MedFuse", {"ehr": of("EhrLstm", lstm_layers=2), "cxr": cxr}, **arguments)
    assert len({medfuse.folder, other.folder, of("MedFuse", None, **arguments).folder}) == 3
    assert not train_all([medfuse])
    assert ehr.is_done
    assert cxr.is_done
    options = yaml.safe_load(medfuse.run.config.read_text())
    assert (options["init_ehr"], options["init_cxr"]) == (str(ehr.folder), str(cxr.folder))


def test_fewer_than_one_worker_is_refused(run: Specify) -> None:
    with pytest.raises(InputError, match="workers is 0; expected at least 1"):
        train_all([run()], workers=0)


# --- several at a time --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_of_their_own_predict_the_same(small_cohort: Path, tmp_path: Path) -> None:
    cohort = Cohort.open(small_cohort)
    here, there = (
        [specify(cohort, tmp_path / place, "tiny", TINY, **QUICK, seed=seed) for seed in (0, 1)]
        for place in ("here", "there")
    )
    too_large = specify(cohort, tmp_path / "there", "too large", TINY, **(QUICK | {"crop_size": 512}))
    assert not train_all(here)
    (failed,) = train_all([too_large, *there], workers=2)
    assert failed.startswith("too large: crop_size is 512")
    for one, other in zip(here, there, strict=True):
        assert predictions_of(one) == predictions_of(other)
        assert (one.folder / "config.yaml").read_text() == (other.folder / "config.yaml").read_text()


@pytest.mark.slow
def test_a_process_that_dies_ends_in_one_sentence(run: Specify) -> None:
    done = run()
    train_all([done])
    with pytest.raises(InputError, match=r"process that trained a run died.*with fewer --workers") as error:
        train_all([done, run(kind="Killed")], workers=2)
    assert "\n" not in str(error.value)
    assert done.is_done


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(run: Specify, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    endless = [run(kind="Endless", init_args={"folder": str(pids)}, seed=seed) for seed in (0, 1)]
    done = run()
    train_all([done])

    def kill_one() -> None:
        wait_until(lambda: len(list(pids.iterdir())) == 2)
        os.kill(int(min(pids.iterdir()).name), signal.SIGKILL)

    threading.Thread(target=kill_one, daemon=True).start()
    with pytest.raises(InputError, match="a process that trained a run died"):
        train_all([done, *endless], workers=2)
    assert not any(is_running(int(path.name)) for path in pids.iterdir())
    assert done.is_done
    assert not any(is_locked(spec.folder) for spec in endless)  # the same command goes on with them


@pytest.mark.slow
def test_workers_die_with_a_command_that_is_killed(run: Specify, small_cohort: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    options = QUICK | {"num_workers": 2}
    spec = run(kind="Endless", init_args={"folder": str(pids)}, **options)
    program = (
        "import sys; from pathlib import Path; from drfuse.data import Cohort\n"
        "from drfuse.training.matrix import specify, train_all\n"
        "cohort, runs, folder = sys.argv[1:]\n"
        f"model = {{'class_path': '{OWN}.Endless', 'init_args': {{'folder': folder}}}}\n"
        f"spec = specify(Cohort.open(Path(cohort)), Path(runs), 'endless', model, **{options})\n"
        "train_all([spec], workers=2)"
    )
    arguments = [sys.executable, "-c", program, str(small_cohort), str(tmp_path / "runs"), str(pids)]
    said = tmp_path / "said"
    with said.open("w") as file:
        command = subprocess.Popen(arguments, cwd=ROOT, stdout=file, stderr=file)
    try:
        wait_until(lambda: any(pids.iterdir()) or command.poll() is not None)
        assert command.poll() is None, said.read_text()
        (worker,) = pids.iterdir()
        assert int(worker.name) != command.pid
        assert is_locked(spec.folder)
        loaders = Path(f"/proc/{worker.name}/task/{worker.name}/children").read_text().split()
        assert len(loaders) >= 2
    finally:
        command.kill()
        command.wait()
    wait_until(lambda: not any(is_running(int(pid)) for pid in (worker.name, *loaders)))
    assert not is_locked(spec.folder)  # what dies lets go of its lock


def open_run(run: Path) -> Predictor:
    """Return the predictor of a run; Ray takes functions, and no bound methods."""
    return Predictor.open(run)


@pytest.mark.extras
def test_ray_predicts_the_same(run: Specify, small_cohort: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        cohort = Cohort.open(small_cohort)
        specs = [specify(cohort, tmp_path / "ray", "tiny", TINY, **QUICK, seed=seed) for seed in (0, 1)]
        too_large = run("too large", crop_size=512)
        (failed,) = train_all([too_large, *specs], ray=True)
        assert failed.startswith("too large: crop_size is 512")
        with pytest.raises(MissingInputError, match="it is not a finished run"):  # as it was raised there
            list(spread(open_run, [tmp_path], workers=1, ray=True))
    finally:
        ray.shutdown()
    here = specify(cohort, tmp_path / "here", "tiny", TINY, **QUICK, seed=0)
    train_all([here])
    expected, found = (Predictions.read(one.run.predictions).logits for one in (here, specs[0]))
    np.testing.assert_array_equal(found, expected)


def test_ray_that_is_not_there_is_named(run: Specify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--ray needs Ray; install it with `pip install '\.\[ray\]'`"):
        train_all([run()], ray=True)
