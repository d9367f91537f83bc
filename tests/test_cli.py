"""The command line: options, errors and what it shows."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from drfuse import __version__
from drfuse.cli import main
from drfuse.models import MedFuse
from tests.mimic import write_hospital

TINY = """
model:
  class_path: drfuse.models.DrFuse
  init_args:
    dim: 16
    heads: 2
    cxr_backbone: {embedding_size: 16, hidden_sizes: [16, 32], depths: [1, 1], layer_type: basic}
crop_size: 32
epochs: 1
accelerator: cpu
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a command that must end with exit code 2 says."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "evaluate"),
        (["train", "--help"], "given by name: AdditiveEvidence, CxrResNet, DAFT, DrFuse,"),
        (["train", "nowhere", "--out", "run"], "error: nowhere is not a cohort"),
        (
            ["train", "nowhere", "--out", "run", "--model.dim", "wide", "--lr", "x"],
            "error: --lr: Expected a float",
        ),
    ],
)
def test_what_needs_no_model_is_said_without_loading_torch(arguments: list[str], said: str) -> None:
    program = "import sys; from drfuse.cli import main\ntry: main(sys.argv[1:])\n"
    program += "finally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said in " ".join((done.stdout + done.stderr).split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"drfuse {__version__}"


@pytest.mark.parametrize("command", ["demo", "simulate", "prepare", "train", "evaluate", "reproduce", "tune"])
def test_every_option_has_hyphens_and_a_description(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    options = [line.split()[0] for line in shown.splitlines() if line.startswith("  --")]
    assert options
    assert not [option for option in options if "_" in option]
    assert "(type:" in shown


@pytest.mark.slow
def test_prepare_reads_options_with_hyphens_and_bare_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mimic_iv, mimic_cxr = write_hospital(tmp_path, n_stays=20)
    arguments = ["prepare", "--mimic-iv", str(mimic_iv), "--mimic-cxr", str(mimic_cxr), "--image-size=40"]
    arguments += ["--out", str(tmp_path / "cohort"), "--view", "AP", "PA", "--strict", "--seed", "3"]
    main(arguments)
    options = json.loads((tmp_path / "cohort" / "manifest.json").read_text())["options"]
    assert (options["image_size"], options["view"], options["seed"]) == (40, ["AP", "PA"], 3)
    shown = capsys.readouterr().out
    assert "same first and last care unit" in shown
    assert "with radiograph" in shown
    assert shown.splitlines()[-1] == f"wrote {tmp_path / 'cohort'}: 20 stays"


@pytest.mark.slow
@pytest.mark.parametrize("views", [["--view=PA"], ["--view", "PA"], ["--view=[PA]"]])
def test_a_single_view_may_follow_an_equals_sign(views: list[str], tmp_path: Path) -> None:
    mimic_iv, mimic_cxr = write_hospital(tmp_path, n_stays=20)
    arguments = ["prepare", "--mimic-iv", str(mimic_iv), "--mimic-cxr", str(mimic_cxr)]
    main([*arguments, "--out", str(tmp_path / "cohort"), *views])
    options = json.loads((tmp_path / "cohort" / "manifest.json").read_text())["options"]
    assert options["view"] == ["PA"]


def test_wrong_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(["prepare", "--mimic-iv", str(tmp_path / "no"), "--out", str(tmp_path / "c")], capsys)
    assert said.startswith(f"drfuse prepare: error: there is no folder {tmp_path / 'no'}")
    assert said.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_a_missing_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(["prepare", "--out", str(tmp_path / "c")], capsys)
    missing = "the following arguments are required: --mimic-iv; see `drfuse prepare --help`"
    assert said == f"drfuse prepare: error: {missing}\n"
    said = error_of(["train"], capsys)
    assert "the following arguments are required: cohort, --out; see `drfuse train --help`" in said


def test_an_unknown_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(["evaluate", str(tmp_path), "--resamples", "9"], capsys)
    assert "--resamples" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--augment", "shift"],
            "--augment: expected a value of type bool or one of 'shifts'. Got value: shift",
        ),
        (["--validate-on", "half"], "--validate-on: expected one of 'full', 'matched'. Got value: half"),
        (["--schedule", "linear"], "--schedule: expected one of 'constant', 'cosine'. Got value: linear"),
        (["--devices", "two"], "--devices: expected a value of type int. Got value: two"),
        (["--optimizer-args", "[1]"], "--optimizer-args: Expected a Mapping. Got value: [1]"),
    ],
)
def test_a_value_that_an_option_does_not_take_is_answered_with_what_it_takes(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = error_of(["train", "cohort", "--out", "run", *given], capsys)
    assert answer == f"drfuse train: error: {said}; see `drfuse train --help`\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--settings.medfuse-ii.lr", "0.1"],
            "--settings: expected a value of type dict. Got value: medfuse-ii.lr=0.1",
        ),
        (
            ["--settings", '{"drfuse": {"lr": "fast"}}'],
            "--settings: expected a value of type float. Got value: {'drfuse': {'lr': 'fast'}}",
        ),
    ],
)
def test_settings_of_another_form_are_answered_in_one_sentence(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = error_of(["reproduce", "table2", "cohort", "--out", "out", *given], capsys)
    assert answer == f"drfuse reproduce: error: {said}; see `drfuse reproduce --help`\n"


def test_a_system_of_settings_keeps_its_hyphens(
    small_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "table2", str(small_cohort), "--out", str(tmp_path / "out")]
    answer = error_of([*command, "--settings.medfuse-ii", "{lr: -1.0}"], capsys)
    assert "settings of medfuse-ii: lr is -1.0; expected a number above 0" in answer.replace("\n", " ")


def test_train_and_evaluate(
    small_cohort: Path, tmp_path: Path, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["train", str(small_cohort), "--out", str(run), "--config", tiny])
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line.startswith(f"wrote {run}: best epoch 1 of 1, validation macro PRAUC 0.")
    main(["evaluate", str(run), "--test-on", "matched", "--n-resamples", "50"])
    shown = capsys.readouterr().out
    assert "matched test set" in shown
    assert "PRAUC (95 % interval)" in shown
    *table, last_line = shown.splitlines()
    assert max(map(len, table)) <= 80
    assert last_line == f"wrote {run / 'metrics.json'}, and its tables as CSV files beside it"
    assert list(json.loads((run / "metrics.json").read_text())["test"]) == ["matched"]
    main(["evaluate", str(run), "--cohort", str(small_cohort), "--n-resamples", "5"])
    *table, last_line = capsys.readouterr().out.splitlines()
    assert "full test set, groups of patients" in " ".join(table)
    assert max(map(len, table)) <= 80
    assert last_line == f"wrote {run / 'metrics.json'}, and its tables as CSV files beside it"
    assert {"decision_curves.csv", "conformal.csv", "subgroups.csv"} <= {path.name for path in run.iterdir()}


@pytest.mark.slow
def test_training_says_only_what_the_user_asked_for(small_cohort: Path, tmp_path: Path, tiny: str) -> None:
    command = [sys.executable, "-m", "drfuse", "train", str(small_cohort), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--config", tiny, "--progress", "false"], capture_output=True, check=True
    )
    assert done.stderr == b""
    assert done.stdout.startswith(b"wrote ")


@pytest.mark.slow
def test_a_runs_own_configuration_repeats_it(small_cohort: Path, tmp_path: Path, tiny: str) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    main(["train", str(small_cohort), "--out", str(first), "--config", tiny, "--seed", "7"])
    main(["train", "--config", str(first / "config.yaml"), "--out", str(again)])
    assert (again / "config.yaml").read_text() == (first / "config.yaml").read_text()
    assert (again / "predictions.parquet").read_bytes() == (first / "predictions.parquet").read_bytes()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("option", ["--config", "--conf"])
def test_what_is_typed_goes_before_a_file(
    tmp_path: Path, first: bool, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    model = "{class_path: drfuse.models.EhrLstm, init_args: {dim: 8}}"
    file.write_text(f"cohort: other\nepochs: 3\nlr: 0.5\noptimizer_args: {{eps: 0.1}}\nmodel: {model}\n")
    typed = ["mine", "--epochs", "2", "--model.dim", "16", "--optimizer-args", "{eps: 0.2}"]
    config = [option, str(file)]
    options = printed(["train", *(typed + config if first else config + typed), "--out", "run"], capsys)
    assert (options["cohort"], options["epochs"], options["lr"]) == ("mine", 2, 0.5)
    assert (options["model"]["init_args"]["dim"], options["optimizer_args"]) == (16, {"eps": 0.2})
    options = printed(["train", *config, "--out", "run"], capsys)
    assert (options["cohort"], options["epochs"]) == ("other", 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"epochs: 1\nlr: 0.1\nepochs: 2\n", "is not valid YAML: 'epochs' is given twice, in lines 1 and 3;"),
        (
            b"model: {init_args: {dim: 8, dim: 16}}",
            "is not valid YAML: 'dim' is given twice, in line 1; delete",
        ),
        (b"", "is empty; expected names with values, such as `epochs: 3`"),
        (b"- 1", "is not a mapping; expected names with values"),
        (b"a: [", "is not valid YAML: while parsing a flow node"),
        (b"\x93NUMPY", "is not valid YAML: 'utf-8' codec can't decode byte 0x93"),
    ],
)
def test_a_file_of_options_that_cannot_be_read_is_told_in_one_sentence(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    answer = error_of(["train", "cohort", "--out", "run", "--config", str(tmp_path / "run.yaml")], capsys)
    assert answer.startswith(f"drfuse train: error: {tmp_path / 'run.yaml'} {said}")
    assert answer.count("\n") == 1


USERS_MODULE = """
import functools
from tests.training.own_model import FirstHour
partial = functools.partial(FirstHour)
class Unmade(FirstHour):
    def __init__(self, n_features: int, n_labels: int) -> None: raise LookupError("no weights")
"""


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (
            "raise RuntimeError('boom')",
            "A",
            r"an import failed \(RuntimeError in .*users_\w+.py, line 1: boom\)",
        ),
        ("import sys\nsys.exit(0)", "A", r"an import failed \(SystemExit in .*users_\w+.py, line 2: 0\)"),
        (
            USERS_MODULE,
            "partial",
            r"--model: expected the import path of a class, got users_\w+.partial \(it is a",
        ),
        (
            USERS_MODULE,
            "Unmade",
            r"Unmade raised LookupError in .*users_\w+.py, line 6: no weights; fix the mo",
        ),
        (USERS_MODULE, "FusionModel", r"--model: .* got users_\w+.FusionModel \(module .* has no attribute"),
    ],
)
def test_a_users_module_that_cannot_be_used_is_told_in_one_sentence(
    text: str,
    name: str,
    said: str,
    small_cohort: Path,
    tmp_path: Path,
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = f"users_{abs(hash((text, name)))}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["train", str(small_cohort), "--out", str(tmp_path / "run"), "--config", tiny]
    answer = error_of([*command, "--model", f"{module}.{name}"], capsys)
    assert re.match(f"drfuse train: error: {said}", answer)
    sentence, _, _ = answer.partition("Traceback of your own code:")
    assert sentence.count("\n") == 1
    assert not (tmp_path / "run").exists()


NAMES = (
    "AdditiveEvidence, CxrResNet, DAFT, DrFuse, EhrLstm, EhrTransformer, LateFusion, LogisticCxr, "
    "LogisticEhr, LogisticLate, MMTM, MedFuse"
)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--model", "NoModel"],
            f"--model: expected one of {NAMES}, or the import path of a class, got NoModel",
        ),
        (
            ["--model.help", "No"],
            f"--model.help: expected one of {NAMES}, or the import path of a class, got No",
        ),
        (["--model.width", "3"], "--model.width: this class has no such argument"),
        (["--model.dim", "wide"], "--model.dim: Expected a int. Got value: wide"),
        (
            ["--model", "MedFuse", "--model.pooling", "max"],
            "--model.pooling: expected one of 'published', 'mean-max-last'. Got value: max",
        ),
    ],
)
def test_what_a_model_does_not_take_is_told_in_one_sentence(
    given: list[str], said: str, small_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = error_of(["train", str(small_cohort), "--out", str(tmp_path / "run"), *given], capsys)
    assert answer == f"drfuse train: error: {said}; see `drfuse train --help`\n"


def test_an_error_that_is_not_of_an_import_is_not_called_one(
    small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drfuse.command_line.import_class", None)  # stands for a fault of ours
    with pytest.raises(TypeError):
        main(["train", str(small_cohort), "--out", str(tmp_path / "run")])


def test_an_abstract_model_is_refused_in_one_sentence(
    small_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(small_cohort), "--out", str(tmp_path / "run"), "--crop-size", "32"]
    answer = error_of([*command, "--model", "drfuse.models.FusionModel"], capsys)
    assert answer.startswith("drfuse train: error: FusionModel raised TypeError: Can't instantiate abstract")
    answer = error_of([*command, "--model", "torch.nn.Linear"], capsys)
    assert "expected the import path of a class, got" in answer
    assert answer.count("\n") == 1


def test_a_users_own_model_is_named_by_its_import_path(small_cohort: Path, tmp_path: Path, tiny: str) -> None:
    model = ["--model", "tests.training.own_model.FirstHour", "--model.scale", "0.5"]
    main(["train", str(small_cohort), "--out", str(tmp_path / "run"), "--config", tiny, *model])
    described = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]
    assert described == {
        "class_path": "tests.training.own_model.FirstHour",
        "init_args": {"scale": 0.5},
    }


def test_model_options_are_set_one_by_one(small_cohort: Path, tmp_path: Path, tiny: str) -> None:
    options = ["--model.alignment", "mse", "--model.attention-ranking", "false"]
    main(["train", str(small_cohort), "--out", str(tmp_path / "run"), "--config", tiny, *options])
    arguments = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]
    assert (arguments["alignment"], arguments["attention_ranking"], arguments["dim"]) == ("mse", False, 16)


def test_print_config_writes_a_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["train", "cohort", "--out", "run", "--print-config"])
    options = yaml.safe_load(capsys.readouterr().out)
    assert options["batch_size"] == 16
    assert options["lr"] == 1e-4


@pytest.mark.parametrize("earlier", [[], ["--config", "run.yaml"], ["--model.dropout", "0.4"]])
def test_a_model_has_its_own_defaults(
    earlier: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    of_another = {"class_path": "drfuse.models.DrFuse", "init_args": {"dim": 8, "cxr_backbone": "resnet18"}}
    Path("run.yaml").write_text(yaml.safe_dump({"model": of_another}))
    with pytest.raises(SystemExit):
        main(["train", "cohort", "--out", "run", *earlier, "--model", "MedFuse", "--print-config"])
    given = yaml.safe_load(capsys.readouterr().out)["model"]
    assert given["class_path"] == "drfuse.models.MedFuse"
    assert given["init_args"]["cxr_backbone"] == "resnet34"
    assert given["init_args"]["dim"] == inspect.signature(MedFuse).parameters["dim"].default


def test_what_only_python_can_give_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(["train", "cohort", "--out", "run", "--callbacks", "x"], capsys)
    assert "--callbacks" in said
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "--callbacks" not in shown
    assert "--progress" in shown


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the configuration that a command understands."""
    with pytest.raises(SystemExit):
        main([*arguments, "--print-config"])
    options: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return options


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ([], False),
        (["--ray"], True),
        (["--ray", "--workers", "2"], True),
        (["--ray", "auto"], "auto"),
        (["--ray", "ray://Head-1:10001"], "ray://Head-1:10001"),
        (["--ray=10.0.0.1:6379", "--workers", "2"], "10.0.0.1:6379"),
        (["--ray", "false"], False),
    ],
)
def test_ray_is_a_flag_or_an_address(
    given: list[str], understood: bool | str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["tune", "cohort"], ["reproduce", "table2", "cohort"]):
        options = printed([*command, "--out", "out", *given], capsys)
        assert options["ray"] == understood
        assert options["workers"] == (2 if "--workers" in given else 1)


def test_an_option_takes_several_values(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--seeds", "0", "1", "--models", "drfuse", "medfuse", "--out", "out"]
    options = printed(["reproduce", "table2", "cohort", *given], capsys)
    assert (options["seeds"], options["models"], options["what"]) == ([0, 1], ["drfuse", "medfuse"], "table2")
    options = printed(["reproduce", "all", "cohort", "--seeds=[2]", "--out", "out"], capsys)
    assert (options["seeds"], options["models"]) == ([2], None)
    options = printed(
        ["tune", "cohort", "--lr", "1e-4", "0.01", "--alignment-weight", "1", "--out", "out"], capsys
    )
    assert (options["lr"], options["alignment_weight"]) == ([1e-4, 0.01], [1.0])
    assert isinstance(options["alignment_weight"][0], float)


@pytest.mark.slow
def test_tune_shows_its_trials_and_names_the_best(
    small_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = "{embedding_size: 8, hidden_sizes: [8], depths: [1], layer_type: basic}"
    model = f"{{dim: 8, heads: 2, feedforward: 16, cxr_backbone: {backbone}}}"
    points = ["--alignment-weight", "0", "1", "--orthogonality-weight", "0.1", "--auxiliary-weight", "1"]
    options = ["--epochs", "1", "--crop-size", "32", "--accelerator", "cpu", "--model-args", model]
    out = tmp_path / "search"
    main(["tune", str(small_cohort), "--out", str(out), *points, "--lr", "0.001", *options])
    *table, last_line = capsys.readouterr().out.splitlines()
    assert sum("complete" in line for line in table) == 2
    assert last_line == (
        f"wrote {out / 'trials.csv'}, and the best run's options for "
        f"`drfuse train {small_cohort} --config {out / 'best.yaml'} --out RUN`"
    )
