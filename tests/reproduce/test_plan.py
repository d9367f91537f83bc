"""Which runs an experiment needs: each of them, and each once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.imports import import_class
from drfuse.models import FusionModel
from drfuse.reproduce.experiments import EXPERIMENTS, experiments_of
from drfuse.reproduce.names import ExperimentName
from drfuse.reproduce.plan import plan
from drfuse.reproduce.results import Cell
from drfuse.reproduce.systems import System, choose_systems, paper_systems
from drfuse.training import TrainOptions
from drfuse.training.matrix import RunSpec
from tests.builders import write_cohort

LINEAR = {"logistic-ehr", "logistic-cxr", "logistic-late"}
MAIN = LINEAR | {"transformer", "resnet50", "late-fusion", "mmtm", "daft", "medfuse", "medfuse-ii", "drfuse"}
ABLATED = LINEAR | {"drfuse", "drfuse-no-disentangling", "drfuse-mse", "drfuse-no-ranking"}
IN_TABLE3 = LINEAR | {"transformer", "resnet50", "medfuse", "medfuse-ii", "drfuse"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.open(write_cohort(tmp_path_factory.mktemp("plan") / "cohort"))


def planned(
    cohort: Cohort,
    what: ExperimentName,
    systems: Sequence[System] | None = None,
    seeds: Sequence[int] = (0, 1),
    model_args: dict[str, Any] | None = None,
    lr: float | None = None,
    **options: Any,
) -> dict[Cell, RunSpec]:
    chosen = choose_systems(None) if systems is None else systems
    given = TrainOptions().changed(**options)
    return plan(what, cohort, Path("runs"), chosen, seeds, model_args or {}, given, lr=lr)


def product(
    systems: set[str], sets: Sequence[str], seeds: Sequence[int] = (0, 1)
) -> set[tuple[str, str, int]]:
    return {(system, train_on, seed) for system in systems for train_on in sets for seed in seeds}


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("table1", set()),
        ("table2", product(MAIN, ["matched", "full"])),
        ("table3", product(IN_TABLE3, ["matched"])),
        ("table4", product(ABLATED, ["matched"])),
        ("figure3", product({"drfuse"}, ["matched"])),
        ("missing", product(MAIN, ["matched", "full"])),
        ("calibration", product(MAIN, ["full"])),
        ("subgroups", product(MAIN, ["full"])),
        ("all", product(MAIN, ["matched", "full"]) | product(ABLATED, ["matched"])),
    ],
)
def test_an_experiment_needs_exactly_its_runs(
    cohort: Cohort, what: ExperimentName, expected: set[tuple[str, str, int]]
) -> None:
    cells = planned(cohort, what)
    assert {(cell.system, cell.train_on, cell.seed) for cell in cells} == expected
    assert len({spec.folder for spec in cells.values()}) == len(expected)
    for cell, spec in cells.items():
        assert (spec.options.train_on, spec.options.seed) == (cell.train_on, cell.seed)
        kind = import_class(paper_systems()[cell.system].model["class_path"], FusionModel)
        assert import_class(spec.model["class_path"], FusionModel) is kind
        assert (
            spec.title
            == f"{paper_systems()[cell.system].title}, trained on {cell.train_on}, seed {cell.seed}"
        )


def test_all_are_50_runs_for_two_seeds(cohort: Cohort) -> None:
    assert len(planned(cohort, "all")) == 50


def test_experiments_share_their_runs(cohort: Cohort) -> None:
    everything = planned(cohort, "all")
    for what in experiments_of("all"):
        for cell, spec in planned(cohort, what).items():
            assert everything[cell] == spec


def test_seeds_keep_their_order(cohort: Cohort) -> None:
    found = list(planned(cohort, "figure3", seeds=[7, 3]))  # the map of Figure 3 is that of the first one
    assert found == [Cell("drfuse", "matched", 7), Cell("drfuse", "matched", 3)]


@pytest.mark.parametrize(
    ("name", "first_stage"),
    [
        ("medfuse-stages", ("lstm", "resnet34")),
        ("medfuse-ii-stages", ("transformer", "resnet50")),
        ("medfuse", ()),
    ],
)
def test_medfuse_starts_from_runs_of_each_modality_alone(
    cohort: Cohort, name: str, first_stage: tuple[str, ...]
) -> None:
    cells = planned(cohort, "table2", choose_systems([name]), model_args={"dim": 16}, epochs=3)
    alone = planned(
        cohort, "table2", choose_systems([*first_stage] or ["mmtm"]), model_args={"dim": 16}, epochs=3
    )
    for cell, spec in cells.items():
        expected = [alone[replace(cell, system=one)] for one in first_stage]
        assert list(spec.after) == expected
        starts = [getattr(spec.options, option) for option in ("init_ehr", "init_cxr")]
        folders: list[Path | None] = [one.folder for one in expected]
        assert starts == (folders or [None, None])


def test_radiographs_are_dropped_for_all_systems_that_read_both_modalities(cohort: Cohort) -> None:
    cells = planned(cohort, "table3", matched_cxr_dropout=0.2)
    dropped = {cell.system: spec.options.matched_cxr_dropout for cell, spec in cells.items()}
    alone = {
        "resnet50",
        "transformer",
        "logistic-ehr",
        "logistic-cxr",
    }  # the option does nothing there, and has its default
    assert dropped == {system: 0.3 if system in alone else 0.2 for system in IN_TABLE3}


def test_the_published_learning_rate_is_used_unless_one_is_given(cohort: Cohort) -> None:
    published = {cell.system: spec.options.lr for cell, spec in planned(cohort, "table2").items()}
    assert published == dict.fromkeys(MAIN, 1e-4) | {
        "mmtm": 5.3e-5, "daft": 6.5e-5, "medfuse": 7e-5, "medfuse-ii": 7e-5
    }  # fmt: skip
    given = planned(cohort, "table2", lr=3e-4)
    assert {spec.options.lr for spec in given.values()} == {3e-4}


def test_options_and_arguments_reach_every_run(cohort: Cohort) -> None:
    cells = planned(cohort, "all", model_args={"dim": 16, "ratio": 2}, epochs=3, task="mortality")
    assert {(spec.options.epochs, spec.options.task) for spec in cells.values()} == {(3, "mortality")}
    assert {spec.model["init_args"].get("dim") for spec in cells.values()} == {16, None}  # None: linear
    ratios = Counter(spec.model["init_args"].get("ratio") for spec in cells.values())
    assert ratios == {None: 46, 2: 4}  # MMTM alone has one


def test_another_option_is_another_folder(cohort: Cohort) -> None:
    folders = [
        {spec.folder for spec in cells.values()}
        for cells in (planned(cohort, "table3"), planned(cohort, "table3", epochs=3),
                      planned(cohort, "table3", model_args={"dim": 16}))
    ]  # fmt: skip
    assert len(set.union(*folders)) == 3 * 10 + 2 * 6  # linear models have no dim


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"dim": 8, "width": 3}, "--model-args: none of the systems' models takes 'width'"),
        ({"n_labels": 3}, "takes no argument 'n_labels'"),
    ],
)
def test_arguments_that_no_model_takes_are_refused(
    cohort: Cohort, model_args: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        planned(cohort, "table2", model_args=model_args)


def test_one_configuration_serves_systems_that_do_not_take_all_of_it(cohort: Cohort) -> None:
    (spec, *_) = planned(
        cohort, "table2", choose_systems(["transformer"]), model_args={"exchange_after": "last"}
    ).values()
    assert "exchange_after" not in spec.model["init_args"]


def test_unknown_options_are_refused(cohort: Cohort) -> None:
    with pytest.raises(InputError, match="'learning_rate' is not an option of a training"):
        planned(cohort, "table3", learning_rate=1)


@pytest.mark.parametrize(
    ("what", "names"), [("figure3", ["mmtm"]), ("table4", ["transformer"]), ("table2", ["drfuse-mse"])]
)
def test_an_experiment_that_no_system_takes_part_in_is_refused(
    cohort: Cohort, what: ExperimentName, names: list[str]
) -> None:
    with pytest.raises(
        InputError, match=f"none of the systems takes part in {what}; choose others in --models"
    ):
        planned(cohort, what, choose_systems(names))


def test_table_1_needs_no_system(cohort: Cohort) -> None:
    assert planned(cohort, "table1", choose_systems(["drfuse-mse"])) == {}


def test_a_users_own_system_takes_part_wherever_it_can(cohort: Cohort) -> None:
    mine = replace(paper_systems()["late-fusion"], name="mine", title="mine")
    parts = [name for name, experiment in EXPERIMENTS.items() if experiment.takes_part(mine)]
    of_table4 = ["table4", "figure3"]
    assert parts == [name for name in EXPERIMENTS if name not in of_table4]
    variant = replace(paper_systems()["drfuse-mse"], name="mine", title="mine", ablation="mine")
    assert EXPERIMENTS["table4"].takes_part(variant)
    assert not EXPERIMENTS["table2"].takes_part(variant)
    assert len(planned(cohort, "all", [mine])) == 4


def test_a_system_has_its_own_settings_before_those_for_all(cohort: Cohort) -> None:
    settings = {"drfuse": {"lr": 3e-4, "weight_decay": 0.1}, "drfuse-mse": {"lr": 2e-4}}
    runs = plan("all", cohort, Path("runs"), choose_systems(None), [0], {}, TrainOptions(), settings, lr=5e-4)
    had = {cell.system: (spec.options.lr, spec.options.weight_decay) for cell, spec in runs.items()}
    assert had["drfuse"] == had["drfuse-no-ranking"] == had["drfuse-no-disentangling"] == (3e-4, 0.1)
    assert had["drfuse-mse"] == (2e-4, 0.0)
    assert had["transformer"] == had["medfuse"] == (5e-4, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dr-fuse": {"lr": 1e-4}}, "'dr-fuse' is not a system"),
        ({"logistic-ehr": {"lr": 1e-4}}, "a solver fits logistic-ehr"),
        ({"drfuse": {"seed": 1}}, "'seed' cannot be set for drfuse alone"),
        ({"drfuse": {"lr": "fast"}}, "settings of drfuse: lr is the text 'fast'; expected a number"),
        ({"drfuse": {"lr": 0.0}}, "settings of drfuse: lr is 0.0; expected a number above 0"),
        ({"drfuse": {"lr": True}}, "settings of drfuse: lr is True; expected a number"),
        (
            {"drfuse": {"weight_decay": -1.0}},
            "settings of drfuse: weight_decay is -1.0; expected a number of at least 0",
        ),
    ],
)
def test_settings_that_no_system_can_have_are_refused(
    cohort: Cohort, settings: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan("all", cohort, Path("runs"), choose_systems(None), [0], {}, TrainOptions(), settings)
