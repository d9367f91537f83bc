"""Maps of logits to probabilities, learned on the validation split."""

import json
import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss

from drfuse.errors import InputError
from drfuse.evaluation.recalibration import Method, Recalibration, fit_recalibration, recalibrate
from drfuse.run import Predictions, Run, sha256_of_json

LABELS = ["gout", "shock", "sepsis"]


def predictions(true: Any, n: int = 2000, seed: int = 0, stays_each: int = 2) -> Predictions:
    """Return predictions of the validation split; `true` gives the true probability of each logit (n, 3)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, size=(n, 3)).astype(np.float32)
    labels = (rng.random((n, 3)) < true(logits.astype(float))).astype(np.uint8)
    stays = pl.DataFrame({"subject_id": np.arange(n) // stays_each, "stay_id": np.arange(n)}).with_columns(
        split=pl.lit("validation"), has_cxr=pl.lit(True)
    )
    return Predictions(LABELS, stays, logits, labels, None)


def fitted(given: Predictions) -> Recalibration:
    found = fit_recalibration(given)
    assert found is not None
    return found


def step(z: Any) -> Any:
    return np.select([z < -2, z < 0], [0.02, 0.5], 0.6)


TRUTHS: dict[Method, Any] = {
    "none": expit,
    "temperature": lambda z: expit(z / 3),
    "platt": lambda z: expit(z * [0.5, 1, 2] + [1, 0, -1]),
    "isotonic": step,
}


@cache
def example(method: Method) -> tuple[Predictions, Recalibration]:
    """Return predictions whose labels a method's own kind of map made, and what was learned of them."""
    given = predictions(TRUTHS[method])
    return given, fitted(given)


@pytest.mark.parametrize("method", get_args(Method))
def test_the_method_that_made_the_labels_wins(method: Method) -> None:
    given, found = example(method)
    assert found.method == method == min(found.log_loss, key=found.log_loss.__getitem__)
    assert list(found.log_loss) == list(get_args(Method))
    assert (found.n_stays, found.n_subjects, list(found.few)) == (2000, 1000, [])
    z = np.repeat([[-2.5], [-1.0], [0.5]], 3, axis=1)
    np.testing.assert_allclose(found.apply(z), TRUTHS[method](z), atol=0.1)
    assert found == fitted(given)


def test_a_temperature_divides_every_logit_and_has_the_lowest_log_loss() -> None:
    given, found = example("temperature")
    (slope,), (intercept,) = set(found.slopes), set(found.intercepts)
    assert (1 / slope, intercept) == (pytest.approx(3, rel=0.15), 0)
    y = given.labels.ravel()
    near = [log_loss(y, expit(given.logits * slope * k).ravel()) for k in (0.98, 1, 1.02)]
    assert min(near) == near[1]
    np.testing.assert_allclose(found.apply(given.logits), expit(given.logits.astype(float) * slope))


def test_a_platt_curve_has_the_mean_and_the_moment_of_its_targets() -> None:
    given, found = example("platt")
    y, z = given.labels.astype(float), given.logits.astype(float)
    n = y.sum(axis=0)
    targets = np.where(y == 1, (n + 1) / (n + 2), 1 / (len(y) - n + 2))
    residuals = found.apply(z) - targets  # where the log loss is lowest, its gradient is 0
    np.testing.assert_allclose([residuals.mean(axis=0), (residuals * z).mean(axis=0)], 0, atol=1e-4)


def test_an_isotonic_curve_is_that_of_scikit_learn_within_platts_targets() -> None:
    given, found = example("isotonic")
    y, z = given.labels[:, 0], given.logits[:, 0].astype(float)
    n = y.sum()
    curve = IsotonicRegression(y_min=1 / (len(y) - n + 2), y_max=(n + 1) / (n + 2), out_of_bounds="clip").fit(
        z, y
    )
    at = np.linspace(-9, 9, 500)
    probabilities = found.apply(np.stack([at] * 3, axis=1))
    np.testing.assert_allclose(probabilities[:, 0], curve.predict(at), atol=1e-9)
    assert 0 < probabilities.min() < probabilities.max() < 1
    assert (np.diff(probabilities, axis=0) >= 0).all()


def test_the_log_loss_is_of_stays_that_were_not_learned_from() -> None:
    found = fitted(predictions(lambda z: np.full_like(z, 0.3)))  # the logits say nothing
    entropy = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7))
    assert found.method == "platt"
    assert entropy - 0.01 < found.log_loss["platt"] < found.log_loss["isotonic"]
    given = predictions(lambda z: np.full_like(z, 0.3), stays_each=20)
    copied = given.labels[::20].repeat(20, axis=0), given.logits[::20].repeat(20, axis=0)
    memorized = fitted(replace(given, labels=copied[0], logits=copied[1]))  # a subject's stays are all alike
    assert memorized.log_loss["isotonic"] > memorized.log_loss["platt"]


def test_a_rare_label_has_the_temperature_of_all() -> None:
    given = predictions(TRUTHS["platt"])
    labels = given.labels.copy()
    labels[:, 2] = 0
    labels[:8, 2] = 1  # 8 stays of 4 subjects
    found = fitted(replace(given, labels=labels))
    assert (found.method, list(found.few)) == ("platt", ["sepsis"])
    assert found.intercepts[2] == 0
    assert 0.05 < 1 / found.slopes[2] < 20
    stepwise = predictions(step)
    found = fitted(replace(stepwise, labels=np.where([True, True, False], stepwise.labels, 0)))
    assert list(found.curves) == ["gout", "shock"]


def test_a_curve_never_falls() -> None:
    found = fitted(predictions(lambda z: expit(-2 * z)))
    probabilities = found.apply(np.linspace(-20, 20, 50).repeat(3).reshape(-1, 3))
    assert (np.diff(probabilities, axis=0) >= 0).all()
    flat = predictions(lambda z: expit(z * [1, -2, 1]))
    found = fitted(flat)
    assert found.method in ("platt", "isotonic")
    np.testing.assert_allclose(found.apply([[0.0, 3.0, 0.0]])[0, 1], flat.labels[:, 1].mean(), atol=0.05)


@pytest.mark.parametrize("method", get_args(Method))
def test_missing_and_infinite_logits(method: Method) -> None:
    given = predictions(TRUTHS[method])
    given.logits[:2] = np.nan
    given.logits[2], given.logits[3] = np.inf, -np.inf
    given.labels[2], given.labels[3] = 1, 0
    found = fitted(given)
    assert (found.method, found.n_stays, found.n_subjects) == (method, 1998, 999)
    low, high, missing = found.apply([[-np.inf] * 3, [np.inf] * 3, [np.nan] * 3])
    assert np.isnan(missing).all()
    assert ((low < 0.3) & (high > 0.5)).all()
    if method == "none":
        assert (low.tolist(), high.tolist()) == ([0] * 3, [1] * 3)


def test_only_the_validation_split_is_learned_from() -> None:
    given, found = example("platt")
    more = replace(given, stays=given.stays.with_columns(split=pl.lit("test")), logits=-given.logits * 9)
    assert fitted(Predictions.concatenate([more, given])) == found


@pytest.mark.parametrize("method", get_args(Method))
def test_what_is_written_is_read(tmp_path: Path, method: Method) -> None:
    assert Recalibration.read(tmp_path) is None
    given, learned = example(method)
    given.write(Run(tmp_path).predictions)
    assert recalibrate(Run(tmp_path)) == Recalibration.read(tmp_path) == learned
    before = Run(tmp_path).recalibration.read_bytes()
    recalibrate(Run(tmp_path))
    assert Run(tmp_path).recalibration.read_bytes() == before


def test_without_validation_stays_nothing_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = predictions(expit)
    one_subject = given.of_split("validation")
    for useless in (
        replace(given, stays=given.stays.with_columns(split=pl.lit("test"))),
        replace(given, logits=np.full_like(given.logits, np.nan)),
        replace(given, labels=np.zeros_like(given.labels)),
        replace(one_subject, stays=one_subject.stays.with_columns(subject_id=pl.lit(1))),
    ):
        useless.write(Run(tmp_path).predictions)
        with caplog.at_level(logging.WARNING):
            assert recalibrate(Run(tmp_path)) is None
        assert "too few predicted stays in the validation split" in caplog.text
        assert not Run(tmp_path).recalibration.exists()
        caplog.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slopes": [1.0]}, "slopes are not 3"),
        ({"slopes": [1.0, 1.0, -1.0]}, "slopes are not 3 finite numbers of at least 0"),
        ({"intercepts": [0.0, 0.0, np.inf]}, "intercepts are not 3 finite"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"n_stays": "many"}, "n_stays is the text"),
        ({"extra": 1}, "extra is unknown"),
        ({"curves": {"flu": {"logits": [0.0], "probabilities": [0.5]}}}, "the curve of flu"),
        ({"curves": {"gout": {"logits": [1.0, 0.0], "probabilities": [0.5, 0.6]}}}, "does not rise"),
        ({"curves": {"gout": {"logits": [0.0, 1.0], "probabilities": [0.5]}}}, "the curve of gout"),
        ({"curves": {"gout": {"logits": [0.0, 1.0], "probabilities": [0.5, 2.0]}}}, "range of probabilities"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = Run(tmp_path).recalibration
    example("platt")[1].write(path)
    content = json.loads(path.read_text())
    del content["sha256"]
    content |= change
    path.write_text(json.dumps(content | {"sha256": sha256_of_json(content)}))
    with pytest.raises(InputError, match=rf"recalibration\.json is damaged: .*{message}"):
        Recalibration.read(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = Run(tmp_path).recalibration
    example("temperature")[1].write(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"slopes": [0.5, 0.5, 0.5]}))
    with pytest.raises(InputError, match=r"not those that drfuse wrote.*run `drfuse evaluate`"):
        Recalibration.read(tmp_path)
    recalibration = example("temperature")[1]
    recalibration.write(path)
    assert Recalibration.read(tmp_path, recalibration.label_names) == recalibration
    with pytest.raises(InputError, match="learned from other labels than the run predicts"):
        Recalibration.read(tmp_path, recalibration.label_names[::-1])
    path.write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        Recalibration.read(tmp_path)


def test_logits_of_other_labels_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected the logits \(N, 3\)"):
        example("none")[1].apply(np.zeros((5, 2)))


def test_a_file_is_small() -> None:
    _, found = example("isotonic")
    assert sum(len(curve["logits"]) for curve in found.curves.values()) < 200
    assert logit(found.curves["gout"]["probabilities"][0]) > -np.inf
