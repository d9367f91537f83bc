"""The linear baselines, against plain loops and scikit-learn's own classes."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from drfuse.cohort.variables import load_variables
from drfuse.data import Batch, EhrFeatures
from drfuse.errors import InputError
from drfuse.models import FittingData, LogisticCxr, LogisticEhr, LogisticLate
from drfuse.models.linear import STRENGTHS, LogisticHead
from tests.builders import N_FEATURES, N_LABELS, make_batch, take_stays

VARIABLES = load_variables()
NORMALIZATION = {
    one.name: {"mean": 0.9 * one.normal, "std": 0.2 * one.normal + 1}
    for one in VARIABLES
    if one.kind == "continuous"
}
FEATURES = EhrFeatures(VARIABLES, NORMALIZATION)
VALUES_OF = torch.zeros(N_FEATURES, 2)
VALUES_OF[(0, 1, 2), (0, 1, 1)] = torch.tensor([1.0, 2.0, 3.0])


def record(n_stays: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return values (B, T, V), two thirds of them missing, and hours (B,); variable 0 is never observed."""
    rng = np.random.default_rng(seed)
    low, high = (np.array([getattr(one, name) for one in VARIABLES]) for name in ("valid_low", "valid_high"))
    values = np.round(low + (high - low) * rng.random((n_stays, 9, len(VARIABLES)))).astype(np.float32)
    values[rng.random(values.shape) < 2 / 3] = np.nan
    values[..., 0] = np.nan
    return torch.from_numpy(values), torch.from_numpy(rng.integers(1, 10, n_stays))


def scaled(name: str, value: float) -> float:
    if name not in NORMALIZATION:
        return value
    z = (value - NORMALIZATION[name]["mean"]) / NORMALIZATION[name]["std"]
    return 0.0 if abs(z) > 10 else z


def naive_summaries(values: Tensor, n_hours: int) -> list[float]:
    """Return mean, deviation, first, last and share observed of each variable of one stay (T, V)."""
    columns = []
    for v, variable in enumerate(VARIABLES):
        seen = [float(x) for x in values[:n_hours, v] if not math.isnan(x)]
        known = [scaled(variable.name, value) for value in seen or [variable.normal]]
        share = len(seen) / n_hours
        columns.append([np.mean(known), np.std(known), known[0], known[-1], share])
    return [float(x) for x in np.array(columns).T.ravel()]


def batch_of(values: Tensor, n_hours: Tensor) -> Batch:
    return replace(make_batch((), n_hours.tolist()), ehr=FEATURES(values, n_hours), n_hours=n_hours)


def data(batches: Sequence[Batch], validation: Sequence[Batch] | None = None) -> FittingData:
    return FittingData(batches, batches if validation is None else validation, VALUES_OF)


def stays(n: int, cxr_of: Sequence[int] | None = None, seed: int = 0, image_size: int = 16) -> Batch:
    """Return random stays, whose labels depend on the hours and the images."""
    batch = make_batch(range(n) if cxr_of is None else cxr_of, [6, 3, 1, 5] * (n // 4), image_size, seed)
    signal = batch.ehr[:, 0, 0].clone()
    signal[batch.cxr_of] += 3 * batch.cxr.mean(dim=(1, 2, 3))
    labels = (signal[:, None] + torch.linspace(-1, 1, N_LABELS) > 0).float()
    return replace(batch, labels=labels)


def split(batch: Batch, size: int) -> list[Batch]:
    return [take_stays(batch, range(i, min(i + size, len(batch)))) for i in range(0, len(batch), size)]


# --- the record ---------------------------------------------------------------------------------------------


def test_the_summaries_are_those_of_plain_loops() -> None:
    values, n_hours = record(6)
    model = LogisticEhr(len(FEATURES), N_LABELS)
    model.values_of.copy_(FEATURES.values_of)
    got = model.summaries(batch_of(values, n_hours)).numpy()
    expected = [naive_summaries(values[b], int(n_hours[b])) for b in range(6)]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_cohort_of_other_variables_says_what_to_do() -> None:
    model = LogisticEhr(N_FEATURES, N_LABELS, n_variables=3)
    with pytest.raises(
        InputError, match=r"made for 3 variables, but the cohort has 2; set --model\.n_variables 2"
    ):
        model.fit(data([stays(8)]))


@pytest.mark.parametrize("n_variables", [0, N_FEATURES])
def test_variables_are_fewer_than_features(n_variables: int) -> None:
    with pytest.raises(InputError, match=f"n_variables is {n_variables}"):
        LogisticEhr(N_FEATURES, N_LABELS, n_variables)


# --- the regression -----------------------------------------------------------------------------------------


def inputs_and_labels(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, 4)) * [1, 100, 0.01, 0] + [5, -3, 2, 7]
    logits = (inputs[:, :1] - 5) + 8 * rng.normal(size=(n, 3)) + [0, -1, 1]
    return inputs, (logits > 0).astype(float)


def test_the_weights_are_those_of_the_exact_solution_at_the_best_strength() -> None:
    inputs, labels = inputs_and_labels()
    val_inputs, val_labels = inputs_and_labels(60, seed=1)
    head = LogisticHead(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it converges
        head.fit(inputs, labels, val_inputs, val_labels)
    deviation = np.where(inputs.std(0) > 0, inputs.std(0), 1)
    standard, val_standard = ((x - inputs.mean(0)) / deviation for x in (inputs, val_inputs))
    losses, logits = {}, {}
    for strength in STRENGTHS:
        exact = [
            LogisticRegression(C=strength, tol=1e-10, max_iter=10000).fit(standard, label)
            for label in labels.T
        ]
        logits[strength] = np.stack([one.decision_function(val_standard) for one in exact], axis=1)
        p = expit(logits[strength])
        losses[strength] = -np.log(np.where(val_labels == 1, p, 1 - p)).mean()
    best = min(losses, key=lambda strength: losses[strength])
    assert STRENGTHS[0] < best < STRENGTHS[-1]  # a choice that could have been another
    assert head.strength.item() == pytest.approx(best)
    got = head(torch.from_numpy(val_inputs).float()).detach().numpy()
    np.testing.assert_allclose(got, logits[best], atol=2e-3)


def test_a_label_without_two_classes_gets_its_share_as_a_constant() -> None:
    inputs, labels = inputs_and_labels(100)
    labels[:, 0], labels[:, 1] = 0, 1
    head = LogisticHead(4, 3)
    head.fit(inputs, labels, inputs, labels)
    probabilities = head(torch.from_numpy(inputs).float()).sigmoid().detach()
    torch.testing.assert_close(probabilities[:, 0], torch.full((100,), 0.5 / 101))
    torch.testing.assert_close(probabilities[:, 1], torch.full((100,), 100.5 / 101))
    assert probabilities[:, 2].std() > 0.01


def test_without_validation_stays_the_strongest_penalty_is_taken() -> None:
    inputs, labels = inputs_and_labels(100)
    head = LogisticHead(4, 3)
    head.fit(inputs, labels, inputs[:0], labels[:0])
    assert head.strength.item() == pytest.approx(STRENGTHS[0])


# --- the radiograph -----------------------------------------------------------------------------------------


def test_the_scores_are_principal_components_of_the_reduced_images() -> None:
    batch = stays(40)
    model = LogisticCxr(N_FEATURES, N_LABELS, n_components=6, side=8)
    model.fit(data(split(batch, 16)))
    reduced = batch.cxr.unflatten(-1, (8, 2)).unflatten(-3, (8, 2)).mean(dim=(3, 5)).flatten(1).numpy()
    expected = PCA(6).fit_transform(reduced.astype(np.float64))
    got = model.scores(batch).numpy()
    signs = np.sign((got * expected).sum(axis=0))
    np.testing.assert_allclose(got * signs, expected, atol=1e-4)


def test_components_of_many_images_are_found_block_by_block() -> None:
    rng = np.random.default_rng(0)
    batch = stays(1100)
    few = torch.from_numpy(rng.normal(size=(1100, 3)) @ rng.normal(size=(3, 64))).float()  # of rank 3
    model = LogisticCxr(N_FEATURES, N_LABELS, n_components=5, side=8)
    model.fit(data(split(batch.with_cxr(few.view(-1, 1, 8, 8)), 100)))
    assert (model.components.norm(dim=1) > 0).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]  # no rounding errors
    centred = few - few.mean(dim=0)
    torch.testing.assert_close(centred @ model.components.T @ model.components, centred, atol=1e-3, rtol=0)


@pytest.mark.parametrize("n_images", [2, 3])
def test_fewer_images_than_components_are_enough(n_images: int) -> None:
    batch = stays(8, range(n_images))
    model = LogisticCxr(N_FEATURES, N_LABELS, n_components=6, side=8)
    model.fit(data([batch]))
    assert model(batch).logits[:n_images].isfinite().all()
    assert not model.components[n_images:].any()


def test_images_of_any_size_are_read() -> None:
    model = LogisticCxr(N_FEATURES, N_LABELS, n_components=4, side=8)
    model.fit(data([stays(12, image_size=16)]))
    for size in (5, 8, 16, 23):
        assert model(make_batch((0, 2), image_size=size)).logits[[0, 2]].isfinite().all()


# --- both ---------------------------------------------------------------------------------------------------


def late() -> LogisticLate:
    return LogisticLate(N_FEATURES, N_LABELS, n_variables=2, n_components=4, side=8)


def test_late_fusion_is_the_mean_of_the_probabilities_and_the_ehr_s_alone_without_a_radiograph() -> None:
    training, batch = stays(40), make_batch((0, 2))
    model = late()
    model.fit(data([training]))
    ehr, cxr = LogisticEhr(N_FEATURES, N_LABELS, 2), LogisticCxr(N_FEATURES, N_LABELS, 4, 8)
    ehr.fit(data([training]))
    cxr.fit(data([training]))
    p_ehr, p_cxr = ehr(batch).logits.sigmoid(), cxr(batch).logits.sigmoid()
    got = model(batch).logits
    torch.testing.assert_close(got[[0, 2]].sigmoid(), (p_ehr + p_cxr)[[0, 2]] / 2)
    torch.testing.assert_close(got[[1, 3]], ehr(batch).logits[[1, 3]], rtol=0, atol=0)


@pytest.mark.parametrize("cxr_of", [(), (3,)])
def test_without_radiographs_to_learn_from_the_ehr_decides_alone(cxr_of: Sequence[int]) -> None:
    model = late()
    model.fit(data([stays(12, cxr_of)]))
    batch = make_batch((0, 2))
    torch.testing.assert_close(model(batch).logits, model.ehr(batch).logits, rtol=0, atol=0)
    assert model.cxr(batch).logits.isnan().all()


def test_a_fit_repeats_bit_by_bit_and_does_not_depend_on_the_batches() -> None:
    batch, found = stays(60), []
    for size in (60, 60, 7):
        model = late()
        model.fit(data(split(batch, size)))
        found.append(model.state_dict())
    first, again, others = found
    for name, weight in first.items():
        assert torch.equal(weight, again[name]), name
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4)
