"""From a cohort to the report: everything that is named is written, once, and wrong options stop at once."""

import functools
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
import pytest
import yaml
from sklearn.metrics import average_precision_score

import drfuse.reproduce
from drfuse.cli import main
from drfuse.data import Cohort, Task
from drfuse.errors import InputError
from drfuse.evaluation import groups_of
from drfuse.report import Row
from drfuse.reproduce import Reproduced, reproduce
from drfuse.run import Predictions, RunFacts
from drfuse.training import TrainOptions, matrix, train
from tests.builders import TINY_BACKBONE, left_in, write_cohort

SMALL = Path(__file__).parents[2] / "benchmarks" / "small.yaml"
TINY: dict[str, Any] = {
    "model_args": {"dim": 8, "heads": 2, "feedforward": 16, "cxr_backbone": TINY_BACKBONE},
    "epochs": 1,
    "crop_size": 32,
    "augment": False,
    "accelerator": "cpu",
    "n_resamples": 20,
}
LINEAR = ("logistic-ehr", "logistic-cxr", "logistic-late")
MAIN = (*LINEAR, "transformer", "resnet50", "late-fusion", "mmtm", "daft", "medfuse", "medfuse-ii", "drfuse")
VARIANTS = ("drfuse-no-disentangling", "drfuse-mse", "drfuse-no-ranking")
TABLES = [
    *("table1", "table2", "table2-tests", "table3", "table3-tests", "table4", "table4-tests"),
    *("figure3-numbers", "missing-matched", "missing-full", "advantage", "calibration", "net-benefit"),
    *(f"subgroups-{name}" for name in MAIN),
    *("settings", "systems"),
]
FIGURES = {
    *(
        "table2",
        "table3",
        "figure3",
        "missing-1",
        "missing-2",
        "advantage",
        "calibration",
        "decisions",
        "subgroups",
    )
}
SECTIONS = [
    *("table1", "table2", "table3", "table4", "figure3"),
    *("missing", "advantage", "calibration", "decisions", "subgroups", "settings"),
]

Run = Callable[..., Reproduced]


@pytest.fixture(scope="module")
def everything(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    """Return all experiments with all systems; a test that writes works on a copy."""
    return reproduce("all", small_cohort, tmp_path_factory.mktemp("reproduced") / "out", **TINY)


@pytest.fixture
def copied(everything: Reproduced, tmp_path: Path) -> Path:
    """Return a folder with all the runs, and nothing that was made of them."""
    shutil.copytree(everything.folder / "runs", tmp_path / "out" / "runs")
    return tmp_path / "out"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the trainings that are asked for; none is done."""
    asked: list[dict[str, Any]] = []

    @functools.wraps(train)
    def refused(cohort: Path, out: Path, model: object, options: TrainOptions, **_: object) -> NoReturn:
        asked.append(options.written() | {"name": out.name})
        raise InputError("not now")

    monkeypatch.setattr(matrix, "train", refused)
    return asked


def sections_of(page: Path) -> list[str]:
    return re.findall(r'<section id="([^"]+)"', page.read_text(encoding="utf-8"))


def folder_of(everything: Reproduced, system: str, train_on: str) -> Path:
    """Return the folder of a run."""
    runs = pl.read_csv(everything.folder / "runs.csv").filter(system=system, train_on=train_on)
    return everything.folder / "runs" / runs["folder"].item()


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return what was made of the runs, file by file."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and "runs" not in path.relative_to(folder).parts
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- everything ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_that_is_named_is_written(everything: Reproduced) -> None:
    out = everything.folder
    assert [table.key for table in everything.tables] == TABLES
    tables = {f"tables/{key}.{form}" for key in TABLES for form in ("md", "tex", "csv")}
    figures = {f"figures/{stem}.{form}" for stem in FIGURES for form in ("svg", "png")}
    assert set(bytes_of(out)) - {".report.lock"} == tables | figures | {"runs.csv", "report.html"}
    assert all(bytes_of(out)[name] for name in tables | figures)
    assert everything.report == out / "report.html"


@pytest.mark.slow
def test_the_report_has_a_section_for_each_experiment(everything: Reproduced) -> None:
    page = everything.report.read_text(encoding="utf-8")
    assert sections_of(everything.report) == SECTIONS
    assert page.count("<figure>") == page.count("<svg ") == len(FIGURES)
    assert "left out" not in page
    for table in everything.tables:
        assert f">{table.title}</h3>" in page
    assert "25 runs, 1 seed<" in page


@pytest.mark.slow
def test_the_report_says_with_what_it_was_made(everything: Reproduced) -> None:
    *_, settings, systems = everything.tables
    made = {row.header: row.cells for row in settings.rows}
    assert made["crop_size"] == ["32"]
    assert made["model_args: dim"] == ["8"]
    assert made["cohort"] == ["cohort"]
    assert "lr" not in made
    models = {row.header: row.cells for row in systems.rows}
    assert len(models) == len(MAIN) + len(VARIANTS)
    assert models["DrFuse"] == ["DrFuse", "", "0.0001", "0"]
    assert models["DrFuse, MSE alignment"] == ["DrFuse", "alignment mse", "0.0001", "0"]
    assert models["MMTM"] == ["MMTM", "", "5.3e-05", "0"]
    assert models["MedFuse-II"] == ["MedFuse", "ehr_encoder transformer", "7e-05", "0"]
    assert models["logistic EHR"] == ["LogisticEhr", "", "none", "none"]


@pytest.mark.slow
def test_the_runs_are_listed(everything: Reproduced) -> None:
    runs = pl.read_csv(everything.folder / "runs.csv")
    expected = {(name, train_on) for name in MAIN for train_on in ("matched", "full")}
    expected |= {(name, "matched") for name in VARIANTS}
    assert set(runs.select("system", "train_on").iter_rows()) == expected
    assert runs.height == 25
    folders = left_in(everything.folder / "runs")
    assert folders == set(runs["folder"])
    for row in runs.iter_rows(named=True):
        facts = asdict(RunFacts.read(everything.folder / "runs" / row["folder"]))
        assert (row["seed"], row["best_epoch"]) == (0, facts["best_epoch"])
        assert row["val_prauc_macro"] == facts["val_prauc_macro"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "title"), [("drfuse", "DrFuse"), ("late-fusion", "late fusion")])
def test_the_numbers_are_those_of_the_runs(everything: Reproduced, name: str, title: str) -> None:
    shown = pl.read_csv(everything.folder / "tables" / "table2.csv").filter(row=title)
    for train_on in ("matched", "full"):
        predictions = Predictions.read(folder_of(everything, name, train_on) / "predictions.parquet")
        stays = predictions.stays
        for test_on in ("matched", "full"):
            rows = (stays["split"] == "test").to_numpy()
            if test_on == "matched":
                rows &= stays["has_cxr"].to_numpy()
            labels, logits = predictions.labels[rows], predictions.logits[rows]
            occur = labels.any(axis=0)
            macro = average_precision_score(labels[:, occur], logits[:, occur], average="macro")
            column = f"trained on {train_on}: tested on {test_on}"
            assert shown.filter(column=column)["value"].item() == pytest.approx(macro)


@pytest.mark.slow
def test_a_second_time_nothing_is_trained_and_the_same_is_written(
    everything: Reproduced, small_cohort: Path, copied: Path, trained: list[dict[str, Any]]
) -> None:
    reproduce("all", small_cohort, copied, **TINY)
    assert trained == []
    assert bytes_of(copied) == bytes_of(everything.folder)


@pytest.mark.slow
def test_what_fails_is_left_out_and_told(
    everything: Reproduced, small_cohort: Path, copied: Path, trained: list[dict[str, Any]]
) -> None:
    report = copied / "report-table4.html"
    message = rf"7 runs failed, the first of them logistic EHR, .* seed 5: not now; {report} has the others"
    with pytest.raises(InputError, match=message):
        reproduce("table4", small_cohort, copied, seeds=(0, 5, 0), **TINY)
    assert [(run["seed"], run["train_on"]) for run in trained] == [(5, "matched")] * 7
    assert sections_of(report) == ["table4", "settings"]
    page = report.read_text(encoding="utf-8")
    assert "7 runs, 1 seed<" in page
    assert "7 runs failed and are left out: logistic EHR, trained on matched, seed 5: not now;" in page
    written = (copied / "tables" / "table4.csv").read_bytes()
    assert written == (everything.folder / "tables" / "table4.csv").read_bytes()
    assert pl.read_csv(copied / "runs-table4.csv")["seed"].to_list() == [0] * 7


@pytest.mark.slow
def test_a_lost_run_is_trained_anew(
    everything: Reproduced, small_cohort: Path, copied: Path, trained: list[dict[str, Any]]
) -> None:
    lost = folder_of(everything, "drfuse", "matched").name
    shutil.rmtree(copied / "runs" / lost)
    with pytest.raises(InputError, match=r"there is no run to measure: DrFuse, .*: not now"):
        reproduce("figure3", small_cohort, copied, **TINY)
    assert [(run["name"], run["lr"]) for run in trained] == [(lost, 1e-4)]


# --- parts --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_with_some_systems_leaves_out_what_they_have_no_part_in(
    small_cohort: Path, copied: Path, trained: list[dict[str, Any]]
) -> None:
    some = reproduce("all", small_cohort, copied, models=["transformer", "mmtm"], **TINY)
    assert trained == []
    assert some.report == copied / "report.html"
    assert sections_of(some.report) == [name for name in SECTIONS if name not in ("table4", "figure3")]
    keys = [table.key for table in some.tables]
    assert "table2-tests" not in keys  # there is no DrFuse
    assert pl.read_csv(copied / "runs.csv").height == 4


@pytest.mark.slow
def test_variants_alone_are_an_ablation(
    small_cohort: Path, copied: Path, trained: list[dict[str, Any]]
) -> None:
    found = reproduce("all", small_cohort, copied, models=["drfuse-mse"], **TINY)
    assert trained == []
    assert sections_of(found.report) == ["table1", "table4", "settings"]


def test_table_1_trains_nothing(small_cohort: Path, tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    found = reproduce("table1", small_cohort, tmp_path / "out", **TINY)
    assert trained == []
    assert [table.key for table in found.tables] == ["table1", "settings"]
    assert found.report == tmp_path / "out" / "report-table1.html"
    assert sections_of(found.report) == ["table1", "settings"]
    runs = pl.read_csv(tmp_path / "out" / "runs-table1.csv")
    assert (runs.height, runs.columns[:2]) == (0, ["system", "title"])


def test_a_users_own_system_of_another_task_in_groups(small_cohort: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("title: my own\nmodel: {class_path: tests.training.own_model.FirstHour}\n")
    out, options = tmp_path / "out", TINY | {"model_args": {"scale": 0.5}}
    found = reproduce("subgroups", small_cohort, out, models=[str(own)], task="los", seeds=[3], **options)
    assert [table.key for table in found.tables] == ["subgroups-own", "settings", "systems"]
    assert found.tables[0].title.startswith("my own in groups")
    assert Row("model_args: scale", ["0.5"]) in found.tables[1].rows
    assert found.tables[2].rows == [Row("my own", ["FirstHour", "", "0.0001", "0"])]
    assert [name.rsplit("-", 1)[0] for name in left_in(out / "runs")] == ["firsthour-full-3"]
    cohort = Cohort.open(small_cohort)
    task = Task.of(cohort, "los")
    assert 0 < task.eligible.sum() < len(cohort)
    stays = cohort.stays.filter(task.eligible & (cohort.stays["split"] == "test").to_numpy())
    counts = groups_of(stays)["sex"].value_counts()
    shown = pl.read_csv(out / "tables" / "subgroups-own.csv").filter(column="stays")
    for group, n in counts.iter_rows():
        row = shown.filter(pl.col("row").str.starts_with(f"sex: {group}"))
        assert row["value"].item() == n


@pytest.mark.slow
def test_options_reach_every_training(
    small_cohort: Path, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    given: dict[str, Any] = {
        "validate_on": "full",
        "epochs": 7, "patience": 3, "lr": 0.02, "batch_size": 5, "matched_cxr_dropout": 0.1, "crop_size": 24,
        "augment": "shifts", "schedule": "cosine", "weight_decay": 0.2, "precision": "bf16-mixed",
        "accelerator": "cpu", "num_workers": 2, "task": "los",
    }  # fmt: skip
    with pytest.raises(InputError, match="there is no run to measure"):
        reproduce("table2", small_cohort, tmp_path / "out", models=["resnet50", "medfuse-stages"], **given)
    assert len({run["name"] for run in trained}) == 2 * (
        1 + 2
    )  # two have a first stage of two, and fail with it
    for run in trained:
        if run["train_on"] == "full" or not run["name"].startswith("medfuse"):  # where it drops nothing
            run["matched_cxr_dropout"] = 0.1
        assert run.items() >= given.items()


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"what": "table5"}, "what is 'table5'; expected one of 'advantage'"),
        ({"seeds": []}, "expected at least one seed"),
        ({"n_resamples": 100_001}, "n_resamples is 100001; expected 1 to 100000"),
        ({"n_resamples": 0}, "n_resamples is 0; expected 1 to 100000"),
        ({"crop_size": 64}, "crop_size is 64, but the cohort's radiographs are only 48 pixels"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of 'constant', 'cosine'"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"models": []}, "--models is empty"),
        ({"models": ["drfuse", "fusion"]}, "there is no system 'fusion'"),
        ({"what": "figure3", "models": ["mmtm"]}, "none of the systems takes part in figure3"),
        ({"model_args": {"width": 8}}, "none of the systems' models takes 'width'"),
        ({"task": "readmission"}, "task is 'readmission'"),
        ({"workers": 0}, "workers is 0"),
        ({"n_resamples": 1.5}, "n_resamples is 1.5; expected a whole number"),
        ({"models": "drfuse"}, "models is the text 'drfuse'; expected a list with text for each item"),
        ({"settings": {"drfuse": 5}}, r"settings\['drfuse'\] is 5; expected a mapping"),
        ({"seeds": [1.5]}, r"seeds\[0\] is 1.5; expected a whole number"),
        ({"freeze_cxr": True}, "--freeze-cxr: .* has no encoder of radiographs"),
        ({"options": None}, "options is None; expected a TrainOptions"),
        ({"cohort": 3}, "cohort is 3; expected a path"),
    ],
)
def test_wrong_options_stop_before_anything_is_trained_or_written(
    change: dict[str, Any], message: str, small_cohort: Path, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    options = {"what": "table2", "cohort": small_cohort, "out": tmp_path / "out", **TINY, **change}
    with pytest.raises(InputError, match=message):
        reproduce(**options)
    assert trained == []
    assert not (tmp_path / "out").exists()


def test_options_that_training_refuses_write_nothing(small_cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="epochs is 0; expected at least 1"):
        reproduce("figure3", small_cohort, tmp_path / "out", **TINY | {"epochs": 0})
    assert not (tmp_path / "out").exists()


def test_a_test_split_that_cannot_be_used_stops_before_the_training(
    tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    cohort = write_cohort(tmp_path / "cohort", with_cxr=(0, 2, 3, 6, 8))  # of the last three stays none
    options = TINY | {"crop_size": 8, "model_args": {"dim": 8}}
    with pytest.raises(
        InputError, match=r"the test split of .*cohort has no stay in the matched set; prepare"
    ):
        reproduce("table3", cohort, tmp_path / "out", **options)
    with pytest.raises(InputError, match="there is no run to measure"):
        reproduce("calibration", cohort, tmp_path / "out", models=["transformer"], **options)
    assert [run["train_on"] for run in trained] == ["full"]


# --- the command --------------------------------------------------------------------------------------------


def test_the_small_options_are_understood_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    @functools.wraps(reproduce)
    def recorded(**options: Any) -> NoReturn:
        asked.update(options)
        raise InputError("not now")

    monkeypatch.setattr(drfuse.reproduce, "reproduce", recorded)
    with pytest.raises(SystemExit):
        main(["reproduce", "all", "cohort", "--out", "out", "--config", str(SMALL)])
    options = yaml.safe_load(SMALL.read_text(encoding="utf-8"))
    flat = asked["options"].written() | asked
    assert {name: flat[name] for name in options} == options
    assert (asked["what"], asked["cohort"], asked["models"]) == ("all", Path("cohort"), None)


def test_the_command_shows_the_table_and_where_the_report_is(
    small_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["reproduce", "table1", str(small_cohort), "--out", str(out), "--config", str(SMALL)])
    *table, last = capsys.readouterr().out.splitlines()
    n_train = len(Cohort.open(small_cohort).rows("train"))
    assert any(line.split()[:4] == ["full", "dataset", str(n_train), "[42,628]"] for line in table)
    assert last == f"wrote {out / 'report-table1.html'}, with its tables and figures next to it"
