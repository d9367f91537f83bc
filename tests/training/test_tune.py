"""The search for hyper-parameters: the grid, proposals, and what interruptions leave of them."""

import itertools
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from drfuse.cli import main
from drfuse.errors import InputError
from drfuse.training import FusionTraining
from drfuse.training.matrix import RunSpec, train_one
from drfuse.training.tune import Tuned, tune
from tests.builders import TINY_BACKBONE

MODEL = {"dim": 8, "heads": 2, "feedforward": 16, "cxr_backbone": TINY_BACKBONE}
SEARCHED = ("alignment_weight", "orthogonality_weight", "auxiliary_weight", "lr")

Search = Callable[..., Tuned]


@pytest.fixture
def search(small_cohort: Path, tmp_path: Path) -> Search:
    """Return `tune` on the small cohort: tiny model, 32 pixels, one epoch, into `tmp_path / "search"`."""
    return partial(
        tune,
        small_cohort,
        out=tmp_path / "search",
        model_args=MODEL,
        epochs=1,
        crop_size=32,
        accelerator="cpu",
    )


@pytest.fixture
def grid(search: Search) -> Search:
    """Return a search of a grid of four points."""
    return partial(
        search,
        alignment_weight=(0.0, 1.0),
        orthogonality_weight=(0.1,),
        auxiliary_weight=(0.5,),
        lr=(1e-3, 1e-2),
    )


@pytest.fixture
def tpe(search: Search) -> Search:
    return partial(search, sampler="tpe", lr=(1e-4, 1e-2))


def runs_in(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "runs").iterdir() if path.is_dir())


# --- the grid -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_grid_is_trained_and_its_best_run_repeats(
    grid: Search, small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = grid()
    assert found.trials.height == len(runs_in(found.folder)) == 4
    points = set(found.trials.select(SEARCHED).rows())
    assert points == set(itertools.product((0.0, 1.0), (0.1,), (0.5,), (1e-3, 1e-2)))
    assert_frame_equal(pl.read_csv(found.folder / "trials.csv"), found.trials)
    assert found.trials["val_prauc_macro"].is_sorted(descending=True)
    assert found.trials["state"].to_list() == ["complete"] * 4

    best = found.trials.row(0, named=True)
    options = yaml.safe_load(found.best.read_text())
    assert options["lr"] == best["lr"]
    assert options["model"]["init_args"]["alignment_weight"] == best["alignment_weight"]
    run = found.folder / "runs" / best["run"]
    main(["train", str(small_cohort), "--config", str(found.best), "--out", str(tmp_path / "again")])
    for name in ("predictions.parquet", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()

    monkeypatch.setattr("drfuse.training.fit._fit", None)  # training would fail
    assert_frame_equal(grid().trials, found.trials)


@pytest.mark.slow
def test_a_grid_with_a_run_that_fails_says_which_and_keeps_the_others(grid: Search, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        grid(alignment_weight=(1.0,), lr=(1e-3, 1e30), epochs=2)
    assert re.match(
        r"1 of 2 runs failed, the first of them .*, lr 1e\+30: the training loss is", str(error.value)
    )
    assert "\n" not in str(error.value)
    (kept,) = (path for path in runs_in(tmp_path / "search") if (path / "predictions.parquet").is_file())
    assert yaml.safe_load((kept / "config.yaml").read_text())["lr"] == 1e-3


def test_the_papers_grid_is_the_default(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RunSpec] = []

    def train_all(specs: list[RunSpec], *_: object) -> None:
        asked.extend(specs)
        raise InputError("enough")

    monkeypatch.setattr("drfuse.training.search.train_all", train_all)
    with pytest.raises(InputError, match="enough"):
        search(augment="shifts", schedule="cosine", weight_decay=0.2)
    points = {(*(spec.model["init_args"][name] for name in SEARCHED[:3]), spec.options.lr) for spec in asked}
    expected = itertools.product((0.0, 0.1, 1.0), (0.0, 0.1, 1.0), (0.0, 0.5, 1.0), (1e-4, 1e-3))
    assert points == set(expected)
    assert len(asked) == 54
    given = {"epochs": 1, "augment": "shifts", "schedule": "cosine", "weight_decay": 0.2}
    for spec in asked:
        assert spec.model["init_args"]["dim"] == 8
        assert spec.options.written().items() >= given.items()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sampler": "random"}, "sampler is 'random'; expected one of 'grid', 'tpe'"),
        ({"lr": (0.0, 1e-3)}, "--lr is .*; expected finite numbers"),
        ({"alignment_weight": ()}, "--alignment-weight is .*; expected finite numbers"),
        ({"auxiliary_weight": (-0.1,)}, "--auxiliary-weight is .*; expected finite numbers"),
        ({"trials": 0}, "trials is 0, workers is 1; expected at least 1"),
        ({"workers": 0}, "workers is 0; expected at least 1"),
        ({"model_args": {"alignment_weight": 1.0}}, "give its values as --alignment-weight"),
        ({"model_args": {"width": 1}}, "takes no argument 'width'"),
        ({"model_args": {"width": 1}, "sampler": "tpe"}, "takes no argument 'width'"),
        ({"crop_size": 512}, "crop_size is 512"),
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of 'constant', 'cosine'"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"lr": 1e-3}, "lr is 0.001; expected a list with a number for each item"),
        ({"lr": ["x"]}, r"lr\[0\] is the text 'x'; expected a number"),
        ({"alignment_weight": [math.nan]}, "--alignment-weight is .*; expected finite numbers"),
        ({"lr": [math.inf]}, "--lr is .*; expected finite numbers"),
        ({"trials": 1.5}, "trials is 1.5; expected a whole number"),
        ({"storage": "sqlite:///studies.db"}, "--storage is only for --sampler tpe"),
        ({"storage": "postgresql:/jane:pw@db", "sampler": "tpe"}, "--storage is neither the URL"),
        ({"storage": "host=db password=pw", "sampler": "tpe"}, "--storage is neither the URL"),
        ({"model_args": {"dim": "8"}}, "dim is the text '8'; expected a whole number"),
        ({"options": {"epochs": 1}}, "options is {'epochs': 1}; expected a TrainOptions"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_trained(
    search: Search, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], complaint: str
) -> None:
    monkeypatch.setattr("drfuse.training.fit._fit", None)
    with pytest.raises(InputError, match=complaint):
        search(**options)


# --- proposals ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_proposals_lie_between_the_ends_and_a_search_is_continued(
    tpe: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {"alignment_weight": (0.5, 0.1, 2.0), "auxiliary_weight": (1.0,), "lr": (1e-2, 1e-4)}
    proposed: dict[str, optuna.distributions.FloatDistribution] = {}
    original = optuna.Trial.suggest_float

    def suggest(trial: optuna.Trial, name: str, low: float, high: float, *, log: bool) -> float:
        proposed[name] = optuna.distributions.FloatDistribution(low, high, log)
        return original(trial, name, low, high, log=log)

    monkeypatch.setattr(optuna.Trial, "suggest_float", suggest)
    first = tpe(trials=2, **bounds)
    assert {name: (one.low, one.high, one.log) for name, one in proposed.items()} == {
        "alignment_weight": (0.1, 2.0, False),
        "orthogonality_weight": (0.0, 1.0, False),
        "auxiliary_weight": (1.0, 1.0, False),
        "lr": (1e-4, 1e-2, True),
    }
    more = tpe(trials=4, **bounds)
    assert (first.trials.height, more.trials.height, len(runs_in(more.folder))) == (2, 4, 4)
    assert more.trials.select(SEARCHED).is_unique().all()
    assert set(first.trials.rows()) < set(more.trials.rows())
    for name, one in proposed.items():
        assert more.trials[name].is_between(one.low, one.high).all()
    assert_frame_equal(pl.read_csv(more.folder / "trials.csv"), more.trials)
    at_once = tpe(trials=4, **bounds, out=tmp_path / "at_once")
    assert_frame_equal(at_once.trials, more.trials)
    monkeypatch.setattr("drfuse.training.search.train_one", None)  # training would fail
    assert_frame_equal(tpe(trials=3, **bounds).trials, more.trials)


@pytest.mark.slow
def test_the_seed_decides_what_is_proposed(tpe: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    def points(seed: int) -> list[tuple[Any, ...]]:
        return tpe(trials=1, seed=seed).trials.select(SEARCHED).rows()

    assert points(1) != points(2)
    monkeypatch.setattr("drfuse.training.fit._fit", None)  # each seed has a study of its own
    assert points(1) == points(1)


@pytest.mark.slow
def test_another_configuration_is_another_study(tpe: Search) -> None:
    tpe(trials=2)
    other = tpe(trials=1, batch_size=8)
    assert other.trials.height == 1
    assert yaml.safe_load(other.best.read_text())["batch_size"] == 8
    assert len(runs_in(other.folder)) == 3


@pytest.mark.slow
def test_an_interrupted_trial_is_proposed_again_and_goes_on(
    tpe: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = partial(tpe, trials=3, epochs=2)
    whole = search(out=tmp_path / "whole")
    started: list[int] = []
    original = FusionTraining.on_train_epoch_start

    def start(task: FusionTraining) -> None:
        started.append(task.current_epoch)
        if len(started) in (3, 5):  # in the second trial: before its first checkpoint, and after
            raise KeyboardInterrupt
        original(task)

    monkeypatch.setattr(FusionTraining, "on_train_epoch_start", start)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search()
    resumed = search()
    assert_frame_equal(resumed.trials, whole.trials)
    assert started == [0, 1, 0, 0, 1, 1, 0, 1]
    left = {path.name for path in resumed.folder.iterdir()}
    locks = {".lock", *(f".trial-{number}.lock" for number in range(5))}
    assert left == locks | {"best.yaml", "runs", "study.journal", "trials.csv"}
    assert len(runs_in(resumed.folder)) == 3


@pytest.mark.slow
def test_a_command_leaves_the_trials_of_others_alone(tpe: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train_beside(spec: RunSpec, **options: Any) -> object:
        trained.append(spec.title)
        if len(trained) == 1:  # while this trial is trained, two other commands come
            with pytest.raises(InputError, match="no trial is completed yet"):
                tpe(trials=1)
            assert tpe(trials=2).trials.height == 1
        return train_one(spec, **options)

    monkeypatch.setattr("drfuse.training.search.train_one", train_beside)
    both = tpe(trials=2)
    assert both.trials.height == len(trained) == len(set(trained)) == len(runs_in(both.folder)) == 2


@pytest.mark.slow
def test_two_processes_finish_exactly_as_many_trials_as_asked(tpe: Search) -> None:
    found = tpe(trials=3, workers=2)
    assert found.trials["state"].to_list() == ["complete"] * 3
    assert found.trials.select(SEARCHED).is_unique().all()
    assert len(runs_in(found.folder)) == 3


def test_the_same_point_is_waited_for_not_trained_twice(tpe: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter(["busy", "busy"])
    waited: list[float] = []

    def busy_at_first(spec: RunSpec, **options: Any) -> object:
        return next(outcomes, None) or train_one(spec, **options)

    monkeypatch.setattr("drfuse.training.search.train_one", busy_at_first)
    monkeypatch.setattr("drfuse.training.search.time.sleep", waited.append)
    monkeypatch.setattr("drfuse.training.search.SECONDS_TO_WAIT", 0.125)
    assert tpe(trials=1).trials.height == 1
    assert waited.count(0.125) == 2


@pytest.mark.slow
def test_a_trial_that_promises_little_is_stopped(tpe: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def second_only(trial: optuna.Trial) -> bool:
        (epoch,) = trial.study.trials[trial.number].intermediate_values.keys() - {
            at for number, at in seen if number == trial.number
        }
        seen.append((trial.number, epoch))
        return trial.number == 1

    monkeypatch.setattr(optuna.Trial, "should_prune", second_only)
    found = tpe(trials=3, epochs=2)
    assert seen == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert sorted(found.trials["state"]) == ["complete", "complete", "pruned"]
    pruned = found.trials.filter(state="pruned").row(0, named=True)
    assert pruned["run"] is None
    assert 0 < pruned["val_prauc_macro"] < 1
    complete = found.trials.filter(state="complete")
    assert [path.name for path in runs_in(found.folder)] == sorted(complete["run"])
    assert yaml.safe_load(found.best.read_text())["lr"] == complete["lr"][0]


@pytest.mark.slow
def test_a_trial_stopped_after_its_first_checkpoint_leaves_nothing(
    tpe: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def later(trial: optuna.Trial) -> bool:
        values = trial.study.trials[trial.number].intermediate_values
        return trial.number == 1 and len(values) == 2

    monkeypatch.setattr(optuna.Trial, "should_prune", later)
    found = tpe(trials=2, epochs=3)
    assert sorted(found.trials["state"]) == ["complete", "pruned"]
    assert len(runs_in(found.folder)) == 1


def test_a_point_that_cannot_be_trained_is_a_trial_and_the_search_goes_on(
    tpe: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("drfuse.training.search.train_one", lambda *_, **__: InputError("the loss is nan"))
        with pytest.raises(InputError, match=r"no trial is completed: alignment_weight .*: the loss is nan"):
            tpe(trials=1)
    found = tpe(trials=2).trials
    assert found["state"].to_list() == ["complete", "failed"]
    assert found["lr"].n_unique() == 2  # not the same point again


@pytest.mark.slow
def test_a_full_disk_is_no_trial(tpe: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("drfuse.training.search.train_one", lambda *_, **__: OSError("no room"))
        with pytest.raises(OSError, match="no room"):
            tpe(trials=1)
    assert tpe(trials=1).trials["state"].to_list() == ["complete"]


@pytest.mark.slow
def test_a_database_keeps_the_study(tpe: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = partial(tpe, trials=1, storage=f"sqlite:///{tmp_path}/studies.db")
    found = kept()
    assert (tmp_path / "studies.db").is_file()
    assert not (found.folder / "study.journal").exists()
    assert math.isfinite(found.trials["val_prauc_macro"][0])
    monkeypatch.setattr("drfuse.training.search.train_one", None)
    assert_frame_equal(kept().trials, found.trials)


@pytest.mark.parametrize(
    "storage", ["sqlite:///{}/no/such/studies.db", "nosuch://study", "{}/no/such/study.journal"]
)
def test_a_study_that_cannot_be_opened_is_one_sentence(tpe: Search, tmp_path: Path, storage: str) -> None:
    place = storage.format(tmp_path)
    with pytest.raises(InputError) as error:
        tpe(trials=1, storage=place)
    assert str(error.value).startswith(f"the study in {place} cannot be opened (")
    assert "\n" not in str(error.value)
