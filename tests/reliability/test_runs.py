"""Damaged, older and strange files of runs, full disks and signals: one sentence each, and nothing lost."""

import errno
import json
import os
import pickle
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from drfuse.cli import main
from drfuse.cohort import Manifest
from drfuse.data import Cohort, Task
from drfuse.errors import InputError
from drfuse.evaluation import evaluate
from drfuse.export import export
from drfuse.inference import Predictor
from drfuse.models import FusionModel
from drfuse.reproduce.results import Cell, Results
from drfuse.reproduce.systems import paper_systems
from drfuse.run import Run
from drfuse.sums import sha256
from drfuse.training import train
from drfuse.training.checkpoints import load_last
from drfuse.training.matrix import RunSpec, specify, train_one
from drfuse.training.options import DEFAULTS
from tests.builders import write_cohort
from tests.training.own_model import FirstHour, interrupt_second

QUICK: dict[str, Any] = {"epochs": 2, "crop_size": 8, "accelerator": "cpu", "lr": 0.1}
MODEL = {"class_path": "tests.training.own_model.FirstHour"}
SPLITS = ("train",) * 12 + ("validation",) * 6 + ("test",) * 12


def cohort_of_patients(folder: Path, splits: Sequence[str], seed: int = 0) -> Path:
    """Write a cohort of random values whose stays have the attributes of groups."""
    write_cohort(folder, splits, range(0, len(splits), 3), seed=seed)
    path, manifest = folder / "stays.parquet", Manifest.read(folder)
    attributes = {"gender": pl.lit("F"), "race": pl.lit("WHITE"), "admission_type": pl.lit("URGENT")}
    pl.read_parquet(path).with_columns(age=pl.lit(50), **attributes).write_parquet(path)
    replace(manifest, files=manifest.files | {path.name: sha256(path)}).write(folder)
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort_of_patients(tmp_path_factory.mktemp("runs") / "cohort", SPLITS)


@pytest.fixture(scope="module")
def finished(cohort: Path) -> Path:
    """Return a finished and evaluated run; a case changes a copy of it."""
    run = train(cohort, cohort.with_name("run"), FirstHour, progress=False, **QUICK).folder
    evaluate(run, n_resamples=2)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def interrupted(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a run that was interrupted at the start of its second epoch."""
    with monkeypatch.context() as patch:
        patch.setattr("drfuse.training.FusionTraining.on_train_epoch_start", interrupt_second)
        with pytest.raises(KeyboardInterrupt):
            train(cohort, tmp_path / "run", FirstHour, progress=False, **QUICK)
    return Run(tmp_path / "run")


def flip_bits(path: Path, n: int = 40) -> Any:
    """Flip a random bit of a file, and back, n times; yield where."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for at, bit in zip(rng.integers(len(whole), size=n), rng.integers(8, size=n), strict=True):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(bit))]) + whole[at + 1 :])
        yield int(at)
    path.write_bytes(whole)


def read_results(run: Path, cohort: Path) -> None:
    """Read a run as `drfuse reproduce` does; raise what it says of it."""
    opened, system = Cohort.open(cohort), paper_systems()["drfuse"]
    spec = RunSpec("the run", cohort, MODEL, DEFAULTS, run)
    _, damaged = Results.read(opened, Task.of(opened), [system], {Cell("drfuse", "full", 0): spec}, 2)
    if damaged:
        raise InputError(damaged[0])


SUMMED = ["predictions.parquet", "model.safetensors", "config.json", "recalibration.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMMED)
def test_a_flipped_bit_is_refused_by_whatever_reads_a_result(run: Run, cohort: Path, name: str) -> None:
    readers: list[Callable[[], Any]] = [
        partial(evaluate, run.folder, n_resamples=2),
        partial(Predictor.open, run.folder),
        partial(read_results, run.folder, cohort),
    ]
    for reader in readers:
        reader()
    for number, _ in enumerate(flip_bits(run.folder / name)):
        with pytest.raises(InputError, match=rf"{name} is damaged: .*; "):
            readers[number % 3]()
    for reader in readers:
        reader()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "recalibration.json", "sums.json"])
def test_a_flipped_bit_of_an_export_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    out = export(run.folder, tmp_path / "out").folder
    for _ in flip_bits(out / name, 10):
        try:
            FusionModel.from_pretrained(out)
        except InputError as error:
            assert "is damaged" in str(error)  # noqa: PT017
        else:
            assert name == "sums.json"  # a name that it does not sum any more
    FusionModel.from_pretrained(out)


def test_a_run_without_sums_is_read_and_told_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    from drfuse.run import _say_that_sums_are_missing

    _say_that_sums_are_missing.cache_clear()
    run.sums.unlink()
    caplog.set_level("INFO", logger="drfuse")
    for _ in range(2):
        Predictor.open(run.folder)
        evaluate(run.folder, n_resamples=2)
    assert caplog.text.count("has no sums.json, so its files are read unchecked") == 1


def test_what_was_predicted_elsewhere_has_its_sums(run: Run, tmp_path: Path) -> None:
    other = cohort_of_patients(tmp_path / "other", ("test",) * 12, seed=5)
    on = partial(evaluate, run.folder, n_resamples=2, on=other, other_people=True)
    on()
    (folder,) = run.external.iterdir()
    next(flip_bits(folder / "predictions.parquet"))
    with pytest.raises(InputError, match=r"external/.*predictions\.parquet is damaged"):
        on()


def changed(**columns: Any) -> Callable[[Run], None]:
    """Return a change of columns of the predictions, which have no sums then."""

    def change(run: Run) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(run.predictions)
        frame = pl.from_arrow(table).with_columns(**columns)
        arrow = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        pq.write_table(arrow.replace_schema_metadata(table.schema.metadata), run.predictions)
        run.sums.unlink()

    return change


def rewritten(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Run], None]:
    """Return a change of a JSON file of a run, which has no sums then."""

    def rewrite(run: Run) -> None:
        path = run.folder / name
        content = json.loads(path.read_text())
        path.write_text(json.dumps(change(content)))
        run.sums.unlink()

    return rewrite


def written(name: str, content: bytes) -> Callable[[Run], None]:
    """Return a change that replaces a file of a run, which has no sums then."""

    def write(run: Run) -> None:
        (run.folder / name).write_bytes(content)
        run.sums.unlink()

    return write


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


def sums(text: str) -> Callable[[Run], None]:
    def write(run: Run) -> None:
        run.sums.write_text(text)

    return write


def array(value: float, kind: Any) -> Any:
    return pl.Series([[value] * 3] * len(SPLITS), dtype=pl.Array(kind, 3))


PREDICTIONS: list[tuple[str, Callable[[Run], None], str]] = [
    ("labels of 7", changed(labels=array(7, pl.UInt8)), "90 labels are neither 0 nor 1"),
    ("infinite logits", changed(logits=array(np.inf, pl.Float32)), "90 logits are infinite"),
    ("logits of text", changed(logits=pl.lit("a")), "logits has the shape"),
    ("two logits", changed(logits=pl.col("logits").arr.to_list().list.head(2).list.to_array(2)), "the shape"),
    ("labels of floats", changed(labels=array(1, pl.Float32)), "labels is of type float32"),
    ("has_cxr of text", changed(has_cxr=pl.lit("yes")), "has_cxr is of type String"),
    (
        "has_cxr of null",
        changed(has_cxr=pl.lit(None, pl.Boolean)),
        "Boolean with 30 nulls",
    ),
    ("one stay", changed(stay_id=pl.lit(1, pl.Int64)), "29 stays occur more than once"),
    ("stays of text", changed(stay_id=pl.lit("a")), "stay_id is of type String"),
    ("subjects of floats", changed(subject_id=pl.lit(1.5)), "subject_id is of type Float64"),
    ("splits of numbers", changed(split=pl.lit(1)), "holds no predictions"),
    ("another split", changed(split=pl.lit("holdout")), "30 stays have a split that is not train"),
    ("no phenotypes", written("predictions.parquet", b"PAR1 PAR1"), "holds no predictions"),
    ("text", written("predictions.parquet", b"\xff" * 99 + b"PAR1"), "holds no predictions"),
]


@pytest.mark.parametrize(("name", "change", "said"), PREDICTIONS)
def test_what_no_prediction_can_be_is_refused(
    run: Run, name: str, change: Callable[[Run], None], said: str
) -> None:
    change(run)
    with pytest.raises(InputError, match=rf"predictions\.parquet holds no predictions.*{said}|{said}"):
        run.read_predictions()


FACTS: list[tuple[str, Callable[[Run], None], str]] = [
    ("a null", rewritten("config.json", lambda facts: facts | {"model": None}), "model is None"),
    ("a list", rewritten("config.json", lambda facts: [facts]), "its content is"),
    ("no labels", rewritten("config.json", lambda facts: facts | {"label_names": 3}), "label_names is 3"),
    ("no task", rewritten("config.json", without("task")), "task is missing"),
    ("binary", written("config.json", b"\xff\x00"), "config.json is damaged"),
    (
        "sums of numbers",
        sums('{"config.json": 3}'),
        "sums.json is damaged",
    ),
    ("sums of nothing", sums(""), "sums.json is damaged"),
    ("half of the weights", written("model.safetensors", b"\x08"), "model.safetensors is damaged"),
    ("a list of curves", rewritten("recalibration.json", lambda one: one | {"curves": []}), "recalibration"),
    (
        "no slopes",
        rewritten("recalibration.json", without("slopes")),
        "slopes is missing",
    ),
    ("null", written("recalibration.json", b"null"), "recalibration.json is damaged"),
    ("deep", written("recalibration.json", b"[" * 99_999), "recalibration.json is damaged"),
]


@pytest.mark.parametrize(("name", "change", "said"), FACTS)
def test_files_of_another_form_are_refused_in_a_sentence(
    run: Run, name: str, change: Callable[[Run], None], said: str
) -> None:
    change(run)
    with pytest.raises(InputError, match=said):
        Predictor.open(run.folder)


METRICS: list[Any] = [
    [],
    {},
    {"test": None},
    {"test": {"full": None}},
    {"test": {"full": {}}},
    {"test": {"full": {"phenotypes": None, "n_stays": 1}}},
    {"test": {"matched": {"phenotypes": [{}], "n_stays": 1}}},
    {"test": {"full": {"phenotypes": [], "n_stays": 3, "subgroups": 3}}},
    {"test": {"full": {"phenotypes": [], "n_stays": 3, "decision_curves": {"macro": 1}}}},
]


@pytest.mark.parametrize("metrics", METRICS, ids=map(str, METRICS))
def test_metrics_of_another_form_are_a_sentence_and_are_measured_again(
    run: Run, tmp_path: Path, metrics: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run.metrics.write_text(json.dumps(metrics))
    run.sums.unlink()
    with pytest.raises(InputError, match=r"metrics\.json.*run `drfuse evaluate` again"):
        export(run.folder, tmp_path / "out")
    evaluate(run.folder, "full", n_resamples=2)
    assert set(run.read_metrics()["test"]) == {"full"}
    assert pl.read_csv(run.metrics_table).height == 4


@pytest.mark.slow
def test_a_flipped_bit_of_metrics_is_refused_and_measured_again(run: Run, tmp_path: Path) -> None:
    for _ in flip_bits(run.metrics, 10):
        with pytest.raises(InputError, match=r"metrics\.json is damaged: it is not what .* evaluate` again"):
            run.read_metrics()
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        (next(flip_bits(run.metrics)), export(run.folder, tmp_path / "out"))
    evaluate(run.folder, "full", n_resamples=2)
    assert set(run.read_metrics()["test"]) == {"full"}
    evaluate(run.folder, "matched", n_resamples=2)
    assert set(run.read_metrics()["test"]) == {"full", "matched"}


@pytest.mark.slow
def test_a_killed_evaluation_leaves_metrics_that_can_be_read(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "update_sums", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run.folder, "full", n_resamples=3)
    assert run.read_metrics()["test"]["full"]["n_resamples"] == 3


def test_weights_that_may_not_be_read_are_no_missing_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Path.open

    def refuse(path: Path, *given: Any, **named: Any) -> Any:
        if path == run.model:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return usual(path, *given, **named)

    monkeypatch.setattr(Path, "open", refuse)
    for reader in (Predictor.open, FusionModel.from_pretrained):
        with pytest.raises(PermissionError, match=r"Permission denied: .*model\.safetensors"):
            reader(run.folder)


def test_a_full_disk_in_an_export_names_what_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(SystemExit):
        main(["export", str(run.folder), "--out", str(tmp_path / "out")])
    said, _, _ = capsys.readouterr().err.partition("Traceback of your own code")  # of this file
    assert "no space is left on the disk to write" in said
    assert str(run.folder) not in said


def test_a_model_is_saved_for_its_user_alone(run: Run, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        FusionModel.from_pretrained(run.folder).save_pretrained(tmp_path / "saved")
    finally:
        assert os.umask(before) == 0o022
    for path in (tmp_path / "saved", *(tmp_path / "saved").iterdir()):
        assert not path.stat().st_mode & 0o077


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["null", "3", "[1]", "true"])
def test_a_backbone_of_another_type_is_named(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: str
) -> None:
    (tmp_path / "run.yaml").write_text(
        f"model: {{class_path: CxrResNet, init_args: {{cxr_backbone: {backbone}}}}}\ncrop_size: 8\n"
    )
    with pytest.raises(SystemExit):
        main(["train", str(cohort), "--out", str(tmp_path / "run"), "--config", str(tmp_path / "run.yaml")])
    said = capsys.readouterr().err
    assert re.search(r"error: (cxr_backbone is|--model\.cxr-backbone: )", said)
    assert "TypeError" not in said


def test_groups_need_the_cohort_of_the_run(run: Run, cohort: Path, tmp_path: Path) -> None:
    of_cohort = partial(evaluate, run.folder, n_resamples=2)
    of_cohort(cohort=cohort)
    other = cohort_of_patients(tmp_path / "other", SPLITS, seed=9)
    with pytest.raises(InputError, match=r"is not the cohort that .* was trained on; choose"):
        of_cohort(cohort=other)
    edited = shutil.copytree(cohort, tmp_path / "edited")
    stays = pl.read_parquet(edited / "stays.parquet")
    stays.with_columns(has_cxr=~pl.col("has_cxr")).write_parquet(edited / "stays.parquet")
    with pytest.raises(InputError, match=r"stays\.parquet is not what `drfuse prepare` wrote"):
        of_cohort(cohort=edited)
    run.facts.unlink()
    assert of_cohort(cohort=edited)


def test_flipped_bits_of_the_last_checkpoint_are_noticed(interrupted: Run) -> None:
    for _ in flip_bits(interrupted.last_checkpoint):
        with pytest.raises(InputError, match=r"last\.ckpt is damaged; start the run again with --overwrite"):
            load_last(interrupted)


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"code": print}))


STRANGE: dict[str, Callable[[Path], Any]] = {
    "a pickle": a_pickle,
    "a pickle of PyTorch": lambda path: torch.save({"epoch": 3, "code": print}, path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "text": lambda path: path.write_text("no checkpoint"),
    "nothing": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:1000]),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("with_sums", [True, False])
def test_a_checkpoint_that_is_not_ours_is_refused(
    interrupted: Run, cohort: Path, change: Callable[[Path], Any], with_sums: bool
) -> None:
    change(interrupted.last_checkpoint)
    if not with_sums:
        (interrupted.checkpoints / "sums.json").unlink()
    with pytest.raises(InputError, match=r"last\.ckpt is damaged; start the run again with --overwrite"):
        train(cohort, interrupted.folder, FirstHour, progress=False, **QUICK)


def test_a_matrix_trains_a_damaged_run_from_the_beginning(
    cohort: Path, tmp_path: Path, interrupted: Run, caplog: pytest.LogCaptureFixture
) -> None:
    spec = specify(Cohort.open(cohort), tmp_path / "runs", "the run", MODEL, **QUICK)
    spec.folder.parent.mkdir()
    interrupted.folder.rename(spec.folder)
    next(flip_bits(spec.run.last_checkpoint))
    assert train_one(spec) == "done"
    assert "last.ckpt is damaged; it is trained from the beginning" in caplog.text
    assert spec.is_done


class FullDisk:
    """Raises ENOSPC at the n-th call, then works."""

    def __init__(self, write: Callable[..., Any], at: int) -> None:
        self.write, self.left = write, at

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.write(*arguments, **options)


WRITERS = [
    *(("torch.save", at) for at in (1, 2, 3, 4)),
    *(("drfuse.models.hub.save_file", at) for at in (1,)),
    *(("pyarrow.parquet.ParquetWriter.write_table", at) for at in (1,)),
    *(("drfuse.run.write_whole", at) for at in (1, 2)),
    *(("lightning.pytorch.loggers.CSVLogger.save", at) for at in (1, 2)),
    *(("drfuse.evaluation.recalibration.write_whole", at) for at in (1,)),
]


@pytest.mark.parametrize(("writer", "at"), WRITERS, ids=map(str, WRITERS))
def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(
    cohort: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    writer: str,
    at: int,
) -> None:
    out = tmp_path / "run"
    command = ["train", str(cohort), "--out", str(out), "--model", MODEL["class_path"], "--progress=false"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    owner, _, name = writer.rpartition(".")
    target = pkgutil.resolve_name(owner)
    full = FullDisk(getattr(target, name), at)
    with monkeypatch.context() as patch:
        patch.setattr(target, name, lambda *given, **named: full(*given, **named))  # noqa: PLW0108 - a function is bound
        with pytest.raises(SystemExit) as ended:
            main(command)
    said, _, _ = capsys.readouterr().err.partition("Traceback of your own code")  # of this file
    assert ended.value.code == 2
    assert "drfuse train: error: no space is left on the disk" in said
    assert "Errno" not in said
    assert "Traceback" not in said
    main(command)
    for file in ("model.safetensors", "predictions.parquet"):
        assert (out / file).read_bytes() == (finished / file).read_bytes()


OWN_MODEL = """
import torch
from tests.training.own_model import FirstHour

class Own(FirstHour):
    def __init__(self, n_features, n_labels, fails=None):
        super().__init__(n_features, n_labels)
        self.fails = fails

    def forward(self, batch):
        if self.training and self.fails == "raises":
            raise KeyError("no such hour")
        if self.training and self.fails == "recurses":
            return self.forward(batch)
        return super().forward(batch)
"""

OWN: list[tuple[str, str, list[str], str, str]] = [
    (
        "raises in training",
        OWN_MODEL,
        ["--model.fails=raises"],
        "raised KeyError in .*py, line",
        "no such hour",
    ),
    ("recurses", OWN_MODEL, ["--model.fails=recurses"], "raised RecursionError in", "Previous line repeated"),
    ("is broken", "import no_such_module", [], "No module named .no_such_module", ""),
    ("is no Python", "class Own(:", [], "SyntaxError", "class Own"),
    ("divides by zero", "a = 1 / 0", [], "ZeroDivisionError in .*line 1", "a = 1 / 0"),
]


@pytest.mark.parametrize(("name", "text", "options", "said", "shown"), OWN)
def test_an_error_of_the_users_model_is_a_sentence_and_their_traceback(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    options: list[str],
    said: str,
    shown: str,
) -> None:
    module = f"own_{'abcde'[[one[0] for one in OWN].index(name)]}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    command = ["train", str(cohort), "--out", "run", "--model", f"{module}.Own", "--progress=false", *options]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--epochs=1", "--crop-size=8", "--accelerator=cpu"])
    sentence, _, own = capsys.readouterr().err.partition("Traceback of your own code:")
    assert ended.value.code == 2
    assert re.search(rf"drfuse train: error: .*{said}", sentence)
    assert shown in own
    assert "src/drfuse" not in own


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_debug_shows_where_an_error_was_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path), *options])
    said = capsys.readouterr().err
    assert said.startswith("drfuse evaluate: error: ")
    assert ("Traceback (most recent call last)" in said) == bool(options)


@pytest.mark.slow
def test_sigterm_ends_a_training_as_an_interruption(cohort: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    program = (
        "import os, signal\n"
        "from drfuse.cli import main\n"
        "from drfuse.training import FusionTraining\n"
        "start = FusionTraining.on_train_epoch_start\n"
        "def stop(task):\n"
        "    if task.current_epoch == 1: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    start(task)\n"
        "FusionTraining.on_train_epoch_start = stop\n"
        f"main(['train', {str(cohort)!r}, '--out', {str(out)!r}, '--model', {MODEL['class_path']!r}, "
        f"'--progress=false', *{options}])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + signal.SIGTERM
    assert "drfuse train: terminated; run the same command again" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(out.rglob(".*partial"))
    train(cohort, out, FirstHour, progress=False, **QUICK)
    for file in ("model.safetensors", "predictions.parquet"):
        assert (out / file).read_bytes() == (finished / file).read_bytes()
