"""Hourly values to features, against plain loops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from drfuse.cohort.manifest import Variable
from drfuse.cohort.variables import load_variables
from drfuse.data import EhrFeatures

VARIABLES = load_variables()
NORMALIZATION = {
    variable.name: {"mean": variable.normal * 0.8 + 1, "std": 0.1 * variable.normal + 0.5}
    for variable in VARIABLES
    if variable.kind == "continuous"
}
NAN = math.nan


def random_values(n_stays: int = 4, hours: int = 9) -> tuple[Tensor, Tensor]:
    """Return values within and far outside the usual range, two thirds of them missing, and the hours."""
    rng = np.random.default_rng(0)
    values = np.full((n_stays, hours, len(VARIABLES)), NAN, np.float32)
    n_hours = [hours, 1, 4, 6][:n_stays]
    for v, variable in enumerate(VARIABLES):
        for b in range(n_stays):
            for t in range(hours):
                if rng.random() < 2 / 3:
                    continue
                if variable.kind == "categorical":
                    values[b, t, v] = rng.integers(int(variable.valid_low), int(variable.valid_high) + 1)
                else:
                    values[b, t, v] = variable.normal * rng.choice([0.2, 1.0, 1.3, 30.0])
    return torch.from_numpy(values), torch.tensor(n_hours)


def naive_features(values: Tensor, n_hours: Tensor) -> np.ndarray:
    stays = []
    for b in range(len(values)):
        hours = []
        for t in range(values.shape[1]):
            known: list[float] = []
            for v, variable in enumerate(VARIABLES):
                seen = [float(values[b, s, v]) for s in range(t + 1) if not math.isnan(values[b, s, v])]
                known.append(seen[-1] if seen else variable.normal)
            row: list[float] = []
            for value, variable in zip(known, VARIABLES, strict=True):
                if variable.kind == "continuous":
                    statistics = NORMALIZATION[variable.name]
                    z = (value - statistics["mean"]) / statistics["std"]
                    row.append(0.0 if abs(z) > 10 else z)
            for value, variable in zip(known, VARIABLES, strict=True):
                if variable.kind == "categorical":
                    row += [
                        float(value == category)
                        for category in range(int(variable.valid_low), int(variable.valid_high) + 1)
                    ]
            row += [float(not math.isnan(values[b, t, v])) for v in range(len(VARIABLES))]
            hours.append(row if t < n_hours[b] else [0.0] * len(row))
        stays.append(hours)
    return np.array(stays)


def features() -> EhrFeatures:
    return EhrFeatures(VARIABLES, NORMALIZATION)


def column(name: str) -> int:
    return features().names.index(name)


def one_variable(name: str, series: list[float], n_hours: int | None = None) -> Tensor:
    """Return the features (T, F) of a stay in which only one variable was observed."""
    values = torch.full((1, len(series), len(VARIABLES)), NAN)
    values[0, :, [variable.name for variable in VARIABLES].index(name)] = torch.tensor(series)
    return features()(values, torch.tensor([n_hours or len(series)]))[0]


def test_features_are_those_of_plain_loops() -> None:
    values, n_hours = random_values()
    got = features()(values, n_hours)
    assert got.dtype == torch.float32
    expected = naive_features(values, n_hours)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5)
    continuous = expected[..., :12]
    assert (continuous[0] == 0).any()  # some values were more than 10 deviations away


def test_the_17_variables_are_59_features_with_a_name_each() -> None:
    names = features().names
    assert len(features()) == len(names) == len(set(names)) == 59
    assert names[:2] == ["diastolic_blood_pressure", "fraction_inspired_oxygen"]
    assert names[12:14] == ["capillary_refill_rate=0", "capillary_refill_rate=1"]
    assert names[41] == "gcs_verbal_response=5"
    assert names[42:] == [f"{variable.name} observed" for variable in VARIABLES]


def test_the_values_can_be_read_from_the_features() -> None:
    values, n_hours = random_values(1)
    got = (features()(values, n_hours) @ features().values_of)[0].numpy()
    assert got.shape == (9, 17)
    for t in range(9):
        for v, variable in enumerate(VARIABLES):
            seen = [float(x) for x in values[0, : t + 1, v] if not math.isnan(x)]
            expected = seen[-1] if seen else variable.normal
            if variable.kind == "continuous":
                z = (expected - NORMALIZATION[variable.name]["mean"]) / NORMALIZATION[variable.name]["std"]
                expected = 0.0 if abs(z) > 10 else z
            assert got[t, v] == pytest.approx(expected, abs=1e-4), variable.name


def test_a_value_is_carried_forward_until_the_next_one() -> None:
    got = one_variable("heart_rate", [NAN, 100.0, NAN, NAN, 60.0, NAN])[:, column("heart_rate")]
    mean, std = NORMALIZATION["heart_rate"]["mean"], NORMALIZATION["heart_rate"]["std"]
    expected = [(value - mean) / std for value in (86.0, 100.0, 100.0, 100.0, 60.0, 60.0)]
    assert got.tolist() == pytest.approx(expected, rel=1e-5)


def test_later_hours_do_not_reach_earlier_ones() -> None:
    values, n_hours = random_values()
    later = values.clone()
    later[:, 5:] = 1.0
    mine, other = features()(values, n_hours), features()(later, n_hours)
    assert torch.equal(mine[:, :5], other[:, :5])


def test_masks_tell_what_was_observed_in_the_hour() -> None:
    got = one_variable("ph", [NAN, 7.2, NAN])[:, column("ph observed")]
    assert got.tolist() == [0.0, 1.0, 0.0]


def test_a_value_of_zero_is_an_observation() -> None:
    got = one_variable("capillary_refill_rate", [1.0, 0.0])
    assert got[:, column("capillary_refill_rate=0")].tolist() == [0.0, 1.0]
    assert got[:, column("capillary_refill_rate observed")].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("deviations", "expected"), [(9.9, 9.9), (10.1, 0.0), (-9.9, -9.9), (-10.1, 0.0)])
def test_what_lies_more_than_ten_deviations_away_becomes_the_mean(deviations: float, expected: float) -> None:
    statistics = NORMALIZATION["glucose"]
    value = statistics["mean"] + deviations * statistics["std"]
    got = one_variable("glucose", [value])[0, column("glucose")]
    assert got.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variable", [v for v in VARIABLES if v.kind == "categorical"], ids=lambda v: v.name)
def test_each_category_has_a_column_of_its_own(variable: Variable) -> None:
    categories = range(int(variable.valid_low), int(variable.valid_high) + 1)
    got = one_variable(variable.name, [float(category) for category in categories])
    first = column(f"{variable.name}={categories[0]}")
    assert torch.equal(got[:, first : first + len(categories)], torch.eye(len(categories)))


def test_every_hour_has_one_category_of_each_scale() -> None:
    values, n_hours = random_values()
    got = features()(values, n_hours)
    assert torch.equal(got[..., 12:42].sum(-1), 5.0 * (torch.arange(9) < n_hours[:, None]))


@pytest.mark.parametrize(("charted", "category"), [(16.0, 15), (2.0, 3), (7.4, 7), (7.6, 8)])
def test_a_score_off_the_scale_counts_as_the_nearest_on_it(charted: float, category: int) -> None:
    got = one_variable("gcs_total", [charted])[0]
    assert got[column(f"gcs_total={category}")] == 1.0
    assert got[column("gcs_total=3") : column("gcs_total=15") + 1].sum() == 1.0


def test_padded_hours_are_zero_whatever_was_stored_there() -> None:
    got = one_variable("heart_rate", [80.0, 90.0, 100.0, 110.0], n_hours=2)
    assert (got[2:] == 0).all()
    assert (got[:2].abs().sum(-1) > 0).all()


def test_the_values_are_not_changed() -> None:
    values, n_hours = random_values()
    before = values.clone()
    features()(values, n_hours)
    assert torch.equal(torch.nan_to_num(values, -1.0), torch.nan_to_num(before, -1.0))
    assert torch.equal(values.isnan(), before.isnan())


def test_every_feature_is_of_the_variable_in_its_name() -> None:
    features = EhrFeatures(VARIABLES, NORMALIZATION)
    owners = [VARIABLES[index].name for index in features.variable_of]
    assert owners == [name.removesuffix(" observed").split("=")[0] for name in features.names]


def test_a_mean_record_has_means_normal_categories_and_no_observation() -> None:
    features = EhrFeatures(VARIABLES, NORMALIZATION)
    record = features.mean_record(3)
    assert record.shape == (3, len(features))
    normal = {f"{v.name}={v.normal:g}" for v in VARIABLES if v.kind == "categorical"}
    expected = torch.tensor([float(name in normal) for name in features.names])
    assert len(normal) == 5
    assert torch.equal(record, expected.expand(3, -1))
