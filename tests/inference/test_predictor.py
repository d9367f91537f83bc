"""A run predicts with nothing beside it: its own cohort to the bit, and another of the same variables."""

import inspect
import json
import math
import shutil
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ResNetBackbone, ResNetConfig

from drfuse.cohort import prepare
from drfuse.data import Batch, Cohort
from drfuse.errors import InputError
from drfuse.inference import Predictor
from drfuse.inference.predictor import predict_batch
from drfuse.models import (
    DAFT,
    CxrResNet,
    DrFuse,
    EhrTransformer,
    FittedModel,
    FusionModel,
    FusionOutput,
    shipped_models,
)
from drfuse.run import Predictions, Run, RunFacts
from drfuse.training import train
from tests.builders import N_FEATURES, N_LABELS, TINY_SIZES, make_batch, take_stays, tiny_drfuse
from tests.training.own_model import FirstHour

TINY = partial(EhrTransformer, dim=8, heads=2, feedforward=16)


@pytest.fixture(scope="module")
def run(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictor") / "run"
    return train(small_cohort, out, FirstHour, epochs=1, crop_size=32, accelerator="cpu").folder


@pytest.fixture(scope="module")
def other_cohort(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same stays in another split, so with another normalization."""
    hospital, cohort = small_cohort.parent, tmp_path_factory.mktemp("other") / "cohort"
    prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", image_size=48, seed=7)
    return cohort


def test_a_run_predicts_its_own_cohort_to_the_bit(run: Path, small_cohort: Path) -> None:
    written = Predictions.read(Run(run).predictions)
    predicted = Predictor.open(run).predict(Cohort.open(small_cohort))
    assert predicted.stays.equals(written.stays)
    assert predicted.phenotypes == written.phenotypes
    for name in ("logits", "labels", "logits_without_cxr", "logits_without_ehr"):
        np.testing.assert_array_equal(getattr(predicted, name), getattr(written, name))


def test_half_precision_is_predicted_to_the_bit_too(small_cohort: Path, tmp_path: Path) -> None:
    backbone = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    model = partial(DrFuse, dim=8, heads=2, cxr_backbone=backbone)
    options: dict[str, Any] = {"epochs": 1, "crop_size": 32, "accelerator": "cpu", "precision": "bf16-mixed"}
    run = train(small_cohort, tmp_path / "run", model, **options).folder
    predicted = Predictor.open(run).predict(small_cohort)
    np.testing.assert_array_equal(predicted.logits, Predictions.read(Run(run).predictions).logits)


def test_predictions_come_in_blocks_of_whole_batches(
    run: Path, small_cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.open(run)
    whole = predictor.predict(small_cohort)
    size = predictor.facts.batch_size
    monkeypatch.setattr("drfuse.inference.predictor._STAYS_A_BLOCK", 1)
    blocks = list(predictor.predict_blocks(small_cohort))
    assert [len(block.stays) for block in blocks[:-1]] == [size] * (-(-len(whole.stays) // size) - 1)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    for name in ("logits", "labels", "logits_without_cxr", "logits_without_ehr"):
        np.testing.assert_array_equal(getattr(Predictions.concatenate(blocks), name), getattr(whole, name))


def test_stays_are_predicted_in_the_order_of_their_rows(run: Path, small_cohort: Path) -> None:
    cohort, rows = Cohort.open(small_cohort), np.array([7, 2, 11])
    predicted = Predictor.open(run).predict(cohort, rows)
    assert predicted.stays["stay_id"].to_list() == cohort.stays["stay_id"].to_numpy()[rows].tolist()
    np.testing.assert_allclose(
        predicted.logits, Predictor.open(run).predict(cohort).logits[rows], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "rows",
    [
        np.array([], np.int64),
        np.array([-1]),
        np.array([99_999]),
        np.array([True, False]),
        np.array([0.0, 1.0]),
        np.array([[0, 1]]),
        np.array(0),
        np.array(["0"]),
        [[0], [1, 2]],
        "all",
    ],
)
def test_rows_that_cannot_be_predicted_are_refused(run: Path, small_cohort: Path, rows: Any) -> None:
    expected = r"rows: expected at least one, each of .*; if you have a mask, pass numpy\.flatnonzero\(mask\)"
    with pytest.raises(InputError, match=expected):
        Predictor.open(run).predict(Cohort.open(small_cohort), rows)
    with pytest.raises(InputError, match=expected):
        Predictor.open(run).represent(Cohort.open(small_cohort), [rows])


def test_a_cohort_may_be_given_by_its_folder_and_rows_as_a_list(run: Path, small_cohort: Path) -> None:
    expected = Predictor.open(run).predict(Cohort.open(small_cohort), np.array([0, 3]))
    predicted = Predictor.open(str(run)).predict(str(small_cohort), [0, 3])  # type: ignore[arg-type]
    np.testing.assert_array_equal(predicted.logits, expected.logits)


def test_other_arguments_are_refused_in_a_sentence(run: Path, small_cohort: Path) -> None:
    predictor = Predictor.open(run)
    with pytest.raises(InputError, match="run is None; expected a path"):
        Predictor.open(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cohort is 3; expected a path"):
        predictor.predict(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="num_workers is -1; expected at least 0"):
        predictor.predict(small_cohort, num_workers=-1)


def test_another_cohort_is_read_with_the_normalization_of_the_run(
    run: Path, small_cohort: Path, other_cohort: Path
) -> None:
    own, other = Cohort.open(small_cohort), Cohort.open(other_cohort)
    assert own.normalization != other.normalization
    expected, found = (Predictor.open(run).predict(cohort) for cohort in (own, other))
    assert found.stays["stay_id"].equals(expected.stays["stay_id"])  # the same stays of the same hospital
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_a_run_predicts_with_nothing_beside_it(run: Path, small_cohort: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / name, moved)
    predicted = Predictor.open(moved).predict(Cohort.open(small_cohort))
    np.testing.assert_array_equal(predicted.logits, Predictions.read(Run(run).predictions).logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"window_hours": 24}, r"window_hours \(24, not 48\) .* with the same --window-hours"),
        ({"image_size": 32}, r"image_size \(32, not 48\) .* with the same --image-size"),
        ({"preset": "benchmark"}, r"preset \(benchmark, not extended\) .* with the same --preset"),
        ({"before_hours": 0}, r"before_hours \(0, not 6\) .* with the same --before-hours"),
        ({"view": ("PA", "AP")}, r"view \(\['AP', 'PA'\], not \['AP'\]\) .* with the same --view"),
    ],
)
def test_a_cohort_that_does_not_fit_is_refused(
    run: Path, small_cohort: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    hospital, cohort = small_cohort.parent, tmp_path / "cohort"
    prepare(
        hospital / "mimic-iv", cohort, hospital / "mimic-cxr", **{"image_size": 48, "threads": 1, **options}
    )
    with pytest.raises(InputError, match=f"has a different {complaint}"):
        Predictor.open(run).predict(cohort)
    if options.keys() == {"preset"}:  # an earlier version did not store it
        facts = replace(RunFacts.read(run), preset=None, before_hours=None, view=None)
        assert len(Predictor(Predictor.open(run).model, facts).predict(cohort).stays)


@pytest.mark.slow
def test_what_the_model_does_not_read_may_differ(small_cohort: Path, tmp_path: Path) -> None:
    hospital, cohort = small_cohort.parent, tmp_path / "cohort"
    prepare(hospital / "mimic-iv", cohort, hospital / "mimic-cxr", image_size=32, view=("AP", "PA"))
    out = train(small_cohort, tmp_path / "run", TINY, epochs=1, crop_size=32, accelerator="cpu").folder
    assert len(Predictor.open(out).predict(cohort).stays)


def test_other_labels_are_refused(run: Path, small_cohort: Path, tmp_path: Path) -> None:
    hospital, codes = small_cohort.parent, tmp_path / "codes.csv"
    codes.write_text("phenotype,icd_version,icd_code\nheart failure,10,I50\n")
    prepare(
        hospital / "mimic-iv", tmp_path / "cohort", hospital / "mimic-cxr", image_size=48, phenotypes=codes
    )
    with pytest.raises(InputError, match="has different labels from those"):
        Predictor.open(run).predict(Cohort.open(tmp_path / "cohort"))


# --- a run is data ------------------------------------------------------------------------------------------


def changed(run: Path, out: Path, *keys: Any, value: Any = None) -> Path:
    """Return a copy of a run with one value of its config.json replaced, or removed if it is None.

    Its SHA-256 is removed, too, as if a stranger or an earlier version had made it.
    """
    shutil.copytree(run, out)
    facts = json.loads((run / "config.json").read_text())
    del facts["sha256"]
    part = reduce(lambda part, key: part[key], keys[:-1], facts)
    part[keys[-1]] = value
    if value is None:
        del part[keys[-1]]
    (out / "config.json").write_text(json.dumps(facts))
    (out / "sums.json").unlink()
    return out


HEART = ("normalization", "heart_rate")
DAMAGE: list[tuple[tuple[Any, ...], Any]] = [
    ((*HEART, "mean"), math.nan),
    ((*HEART, "mean"), math.inf),
    ((*HEART, "mean"), 1e300),  # infinite in float32
    ((*HEART, "mean"), "80"),
    ((*HEART, "mean"), None),
    ((*HEART, "std"), 0.0),
    ((*HEART, "std"), -5.0),
    ((*HEART, "std"), 1e-300),
    ((*HEART, "std"), math.nan),
    (HEART, None),
    (("normalization",), []),
    (("crop_size",), 49),
    (("crop_size",), 0),
    (("crop_size",), "32"),
    (("image_size",), "32"),
    (("image_size",), 16),
    (("precision",), "banana"),
    (("precision",), 16),
    (("precision",), None),
    (("task",), "banana"),
    (("task",), []),
    (("batch_size",), -3),
    (("batch_size",), 0),
    (("batch_size",), 2.5),
    (("batch_size",), True),
    (("window_hours",), "48"),
    (("window_hours",), 10**9),
    (("image_size",), 10**7),
    (("before_hours",), -5),
    (("preset",), "banana"),
    (("label_names", 0), "Shock"),
    (("n_features",), 58),
    (("n_features",), 59.0),
    (("label_names",), "x"),
    (("label_names", 0), 5),
    (("best_epoch",), "x"),
    (("best_epoch",), -1),
    (("val_prauc_macro",), math.nan),
    (("val_prauc_macro",), "x"),
    (("variables",), None),
    (("variables",), ["a"]),
    (("variables", 5, "kind"), "x"),
    (("variables", 5, "normal"), "x"),
    (("model",), "x"),
    (("model", "class_path"), 5),
    (("model", "init_args"), []),
    (("model", "init_args"), None),
    (("drfuse",), 3),
    (("preset",), 3),
    (("view",), "AP"),
    (("foo",), 1),
]


@pytest.mark.parametrize(("keys", "value"), DAMAGE, ids=str)
def test_a_value_that_train_does_not_write_is_refused(
    run: Path, tmp_path: Path, keys: tuple[Any, ...], value: Any
) -> None:
    with pytest.raises(InputError, match=r"/config\.json is damaged: .+; train the run again"):
        Predictor.open(changed(run, tmp_path / "run", *keys, value=value))


@pytest.mark.parametrize(("name", "value"), [("crop_size", 31), ("precision", "bf16-mixed")])
def test_a_value_that_may_be_right_but_was_changed_is_refused(
    run: Path, tmp_path: Path, name: str, value: Any
) -> None:
    facts = json.loads((changed(run, tmp_path / "run", name, value=value) / "config.json").read_text())
    facts["sha256"] = json.loads((run / "config.json").read_text())["sha256"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="its values are not those that `drfuse train` wrote; train the run"):
        Predictor.open(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '{"a": 1', "[" * 100_000, "\xff"])
def test_a_file_that_train_does_not_write_is_refused(run: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"/config\.json is damaged: .+; train the run again"):
        Predictor.open(tmp_path / "run")


def test_a_run_of_an_earlier_version_is_read(run: Path, tmp_path: Path) -> None:
    for name in ("preset", "before_hours", "view"):
        earlier = changed(run, tmp_path / name, name)
        assert getattr(Predictor.open(earlier).facts, name) is None
        assert getattr(RunFacts.read(run), name) is not None


def test_a_class_is_never_imported(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_a_stranger.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for number, path in enumerate(("of_a_stranger.Model", "os.system", "drfuse.models.base.Any", "DrFuse")):
        strange = changed(run, tmp_path / str(number), "model", "class_path", value=path)
        with pytest.raises(InputError, match=rf"{path}, which is not one of drfuse's; import it before"):
            Predictor.open(strange)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [{"n_labels": 3}, {"sale": 1.0}])
def test_arguments_that_the_class_does_not_take_are_refused(
    run: Path, tmp_path: Path, value: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"cannot be loaded: .*; train it again"):
        Predictor.open(changed(run, tmp_path / "run", "model", "init_args", value=value))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CxrResNet, DAFT])
def test_a_pretrained_backbone_is_not_needed_again(
    kind: Any, small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    ResNetBackbone(config).save_pretrained("backbone")
    model = (
        partial(kind, dim=8, cxr_backbone="backbone")
        if kind is CxrResNet
        else partial(kind, cxr_backbone="backbone")
    )
    out = train(small_cohort, tmp_path / "run", model, epochs=1, crop_size=32, accelerator="cpu").folder
    shutil.rmtree("backbone")
    predicted = Predictor.open(out).predict(small_cohort)
    np.testing.assert_array_equal(predicted.logits, Predictions.read(Run(out).predictions).logits)
    assert "backbone" not in json.dumps(RunFacts.read(out).model["init_args"]["cxr_backbone"])
    for number, spec in enumerate(("backbone", "someone/backbone", "../backbone")):
        strange = changed(out, tmp_path / str(number), "model", "init_args", "cxr_backbone", value=spec)
        with pytest.raises(InputError, match=f"no configuration of its pretrained .* {spec} is not read"):
            Predictor.open(strange)


# --- one batch ----------------------------------------------------------------------------------------------


def calls_of(model: FusionModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that notes the stays and radiographs of each batch that the model reads."""
    seen: list[tuple[int, int]] = []
    forward = type(model).forward

    def noting(model: FusionModel, batch: Batch) -> FusionOutput:
        seen.append((len(batch), len(batch.cxr)))
        return forward(model, batch)

    monkeypatch.setattr(type(model), "forward", noting)
    return seen


def test_prediction_reads_matched_stays_again_without_either_modality(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = tiny_drfuse().eval(), make_batch(cxr_of=(1, 3))
    with torch.no_grad():
        expected = model(batch).logits
        alone = model(take_stays(batch, [1, 3]).keep_cxr(torch.tensor([], dtype=torch.int64))).logits
        seen = calls_of(model, monkeypatch)
        _, logits, without, _, _ = predict_batch(model, batch, torch.zeros(N_FEATURES))
    assert seen == [(4, 2), (2, 2), (2, 0)]
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(without, torch.stack([expected[0], alone[0], expected[2], alone[1]]))


@pytest.mark.parametrize("name", list(shipped_models()))
def test_without_the_ehr_a_prediction_does_not_depend_on_the_record(name: str) -> None:
    kind = shipped_models()[name]
    torch.manual_seed(0)
    taken = inspect.signature(kind).parameters
    model = kind(
        N_FEATURES, N_LABELS, **{key: size for key, size in TINY_SIZES.items() if key in taken}
    ).eval()
    batch, mean_hour = make_batch(cxr_of=(1, 3)), torch.ones(N_FEATURES)
    other = replace(batch, ehr=batch.ehr + 1)
    with torch.no_grad():
        _, logits, _, one, _ = predict_batch(model, batch, mean_hour)
        _, others, _, two, _ = predict_batch(model, other, mean_hour)
    assert torch.equal(torch.nan_to_num(one), torch.nan_to_num(two))
    assert one[[0, 2]].isnan().all()
    assert one[[1, 3]].isnan().all() == ("cxr" not in model.reads)
    if "ehr" not in model.reads:
        assert torch.equal(one[[1, 3]], logits[[1, 3]])
    elif not isinstance(model, FittedModel):
        assert not torch.equal(logits, others)


def test_without_radiographs_nothing_is_predicted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EhrTransformer(N_FEATURES, N_LABELS, dim=8, heads=2, feedforward=16).eval()
    seen = calls_of(model, monkeypatch)
    _, logits, without, _, _ = predict_batch(model, make_batch(cxr_of=()), torch.zeros(N_FEATURES))
    assert seen == [(4, 0)]
    assert torch.equal(logits, without)
