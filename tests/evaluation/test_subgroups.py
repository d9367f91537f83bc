"""Groups of patients: which group a stay is in, and its metrics against plain loops."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score

from drfuse.errors import InputError
from drfuse.evaluation import GroupMetrics, groups_of, resample, subgroups
from drfuse.evaluation.subgroups import group_by_radiograph


def stays_with(**columns: list[object]) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    nothing = {"age": [None] * n, "gender": [None] * n, "race": [None] * n, "admission_type": [None] * n}
    return pl.DataFrame(nothing | columns)


def example(n: int = 400) -> tuple[np.ndarray, np.ndarray, pl.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random((n, 3)) < 0.4).astype(np.uint8)
    scores = np.round(rng.normal(size=(n, 3)) + labels, 1)
    attributes = pl.DataFrame({"sex": rng.choice(["female", "male"], n)})
    return labels, scores, attributes, np.arange(n) // 2


def false_positive_rate(labels: np.ndarray, flagged: np.ndarray, average: str = "macro") -> float:
    return recall_score(1 - labels, ~flagged, average=average) * -1 + 1


def thresholds(labels: np.ndarray, scores: np.ndarray, specificity: float) -> list[float]:
    """Return the lowest score of each label with enough negatives at or below it, tried one by one."""
    return [
        min(t for t in s if (s[y == 0] <= t).mean() >= specificity)
        for y, s in zip(labels.T, scores.T, strict=True)
    ]


@pytest.mark.parametrize(
    ("age", "band"),
    [(18, "18-44"), (44.9, "18-44"), (45, "45-64"), (64, "45-64"), (65, "65-79"), (79, "65-79"), (80, "80+"),
     (91, "80+"), (None, "unknown"), (17, "unknown")],
)  # fmt: skip
def test_age_bands(age: float | None, band: str) -> None:
    assert groups_of(stays_with(age=[age]))["age"].to_list() == [band]


@pytest.mark.parametrize(
    ("race", "group"),
    [("WHITE", "White"), ("WHITE - RUSSIAN", "White"), ("BLACK/CAPE VERDEAN", "Black"),
     ("HISPANIC OR LATINO", "Hispanic"), ("HISPANIC/LATINO - CUBAN", "Hispanic"), ("ASIAN - KOREAN", "Asian"),
     ("AMERICAN INDIAN/ALASKA NATIVE", "other"), ("NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER", "other"),
     ("MULTIPLE RACE/ETHNICITY", "other"), ("OTHER", "other"), ("PORTUGUESE", "other"),
     ("SOUTH AMERICAN", "other"), ("UNKNOWN", "unknown"), ("UNABLE TO OBTAIN", "unknown"),
     ("PATIENT DECLINED TO ANSWER", "unknown"), (None, "unknown"), ("", "unknown")],
)  # fmt: skip
def test_races_of_mimic(race: str | None, group: str) -> None:
    assert groups_of(stays_with(race=[race]))["race"].to_list() == [group]


@pytest.mark.parametrize(
    ("admission", "group"),
    [("EW EMER.", "emergency"), ("DIRECT EMER.", "emergency"), ("URGENT", "urgent"), ("ELECTIVE", "elective"),
     ("SURGICAL SAME DAY ADMISSION", "elective"), ("AMBULATORY OBSERVATION", "observation"),
     ("DIRECT OBSERVATION", "observation"), ("EU OBSERVATION", "observation"),
     ("OBSERVATION ADMIT", "observation"), (None, "unknown")],
)  # fmt: skip
def test_every_admission_type_of_mimic(admission: str | None, group: str) -> None:
    assert groups_of(stays_with(admission_type=[admission]))["admission"].to_list() == [group]


def test_sexes_and_the_order_of_the_stays() -> None:
    found = groups_of(stays_with(gender=["M", "F", None, "M"]))
    assert found["sex"].to_list() == ["male", "female", "unknown", "male"]
    assert found.columns == ["age", "sex", "race", "admission"]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InputError, match="no gender, race"):
        groups_of(pl.DataFrame({"age": [1], "admission_type": ["URGENT"]}))


def test_a_group_is_measured_on_its_own_stays() -> None:
    labels, scores, attributes, units = example()
    female, male = subgroups(labels, scores, attributes, units, n_resamples=3).groups
    assert (female.attribute, female.group, male.group) == ("sex", "female", "male")
    here = (attributes["sex"] == "female").to_numpy()
    assert (female.n_stays, female.n_positive) == (here.sum(), labels[here].sum())
    assert female.n_stays + male.n_stays == len(labels)
    flagged = scores > thresholds(labels, scores, 0.9)
    for measured, metric, of in (
        (female.prauc_macro, average_precision_score, scores),
        (female.auroc_macro, roc_auc_score, scores),
        (female.tpr_macro, recall_score, flagged),
        (female.fpr_macro, false_positive_rate, flagged),
    ):
        assert measured.value == pytest.approx(metric(labels[here], of[here], average="macro"))
    gap = female.tpr_macro.value - recall_score(labels[~here], flagged[~here], average="macro")
    assert female.tpr_gap.value == pytest.approx(gap) == -male.tpr_gap.value
    gap = female.fpr_macro.value - false_positive_rate(labels[~here], flagged[~here])
    assert female.fpr_gap.value == pytest.approx(gap) == -male.fpr_gap.value
    others = roc_auc_score(labels[~here], scores[~here], average="macro")
    assert female.auroc_gap.value == pytest.approx(female.auroc_macro.value - others)


def test_intervals_are_those_of_a_plain_loop_over_the_same_resamples() -> None:
    labels, scores, attributes, units = example()
    found = subgroups(labels, scores, attributes, units, 70, seed=1, specificity=0.8, intervals="bootstrap")
    here = (attributes["sex"] == "male").to_numpy()
    praucs, gaps, false_gaps = [], [], []
    for counts in np.concatenate(list(resample(units, 70, 1))):
        everyone = np.repeat(np.arange(len(labels)), counts)
        flagged = scores > thresholds(labels[everyone], scores[everyone], 0.8)  # each resample has its own
        males, females = everyone[here[everyone]], everyone[~here[everyone]]
        praucs.append(average_precision_score(labels[males], scores[males], average="macro"))
        of_males, of_females = (
            recall_score(labels[rows], flagged[rows], average="macro") for rows in (males, females)
        )
        gaps.append(of_males - of_females)
        rates = [false_positive_rate(labels[rows], flagged[rows]) for rows in (males, females)]
        false_gaps.append(rates[0] - rates[1])
    male = found.groups[1]
    for measured, resampled in (
        (male.prauc_macro, praucs),
        (male.tpr_gap, gaps),
        (male.fpr_gap, false_gaps),
    ):
        assert (measured.low, measured.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]))


def test_hand_worked_rates() -> None:
    # ten negatives score 0 to 9: nine of them are at or below 8, so who scores above 8 is flagged
    scores = np.concatenate([np.arange(10.0), [8.0, 8.5, 9.5, 3.0]])[:, None]
    labels = np.repeat([0, 1], [10, 4])[:, None]
    attributes = pl.DataFrame({"age": ["old"] * 5 + ["young"] * 5 + ["old", "old", "young", "unknown"]})
    found = subgroups(labels, scores, attributes, np.arange(14), n_resamples=2)
    assert found.tpr_macro.value == pytest.approx(2 / 4)
    approx = pytest.approx
    rates = {one.group: (one.tpr_macro.value, one.tpr_gap.value) for one in found.groups}
    assert rates == {"old": (0.5, 0.0), "unknown": (0.0, approx(-2 / 3)), "young": (1.0, approx(2 / 3))}
    wrong = {one.group: (one.fpr_macro.value, one.fpr_gap.value) for one in found.groups}
    nan = (approx(np.nan, nan_ok=True),) * 2  # no negative
    assert wrong == {"old": (0, -1 / 5), "unknown": nan, "young": (1 / 5, 1 / 5)}  # of five negatives, the 9
    assert found.fpr_macro.value == 1 / 10


def test_a_gap_is_over_the_phenotypes_that_the_group_has() -> None:
    # an easy phenotype that all have and a hard one that the group has not: no gap of its own
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 0]])
    scores = np.array([[2.0, 0.0], [2.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
    attributes = pl.DataFrame({"sex": ["female", "male", "female", "male"]})
    found = subgroups(labels, scores, attributes, np.arange(4), n_resamples=2)
    assert found.tpr_macro.value == 0.5
    female = found.groups[0]
    assert (female.tpr_macro.value, female.tpr_gap.value) == (1.0, 0.0)


def test_few_positives_are_marked() -> None:
    rng = np.random.default_rng(0)
    labels = np.ones((151, 1), np.uint8)
    labels[150] = 0
    scores = rng.random((151, 1))
    attributes = pl.DataFrame({"race": ["White"] * 51 + ["Black"] * 50 + ["other"] * 49 + ["unknown"]})
    found = subgroups(labels, scores, attributes, np.arange(151), n_resamples=2)
    few = {one.group: (one.n_positive, one.few) for one in found.groups}
    assert few == {"White": (51, False), "Black": (50, False), "other": (49, True), "unknown": (0, True)}


def test_a_group_of_one_subject_has_no_interval_and_others_have() -> None:
    labels, scores, _, units = example()
    labels[:2] = [[1, 1, 0], [0, 0, 1]]
    attributes = pl.DataFrame({"ward": ["one"] * 2 + ["others"] * (len(labels) - 2)})
    one, others = subgroups(labels, scores, attributes, units, 20).groups
    for found in (one.auroc_macro, one.auroc_gap, one.prauc_macro, one.tpr_macro, one.tpr_gap):
        assert not np.isnan(found.value)
        assert np.isnan([found.low, found.high]).all()
    assert np.isnan([others.auroc_gap.low, others.tpr_gap.low]).all()
    assert others.auroc_macro.low < others.auroc_macro.value < others.auroc_macro.high


def test_a_group_without_a_positive_is_undefined() -> None:
    labels, scores, attributes, units = example()
    labels[(attributes["sex"] == "female").to_numpy()] = 0
    female = subgroups(labels, scores, attributes, units, n_resamples=2).groups[0]
    assert isinstance(female, GroupMetrics)
    assert np.isnan([female.prauc_macro.value, female.auroc_macro.value, female.tpr_gap.value]).all()


@pytest.mark.parametrize("specificity", [0.0, 1.1])
def test_impossible_specificities_are_refused(specificity: float) -> None:
    with pytest.raises(InputError, match="specificity is"):
        subgroups(*example(), specificity=specificity)


def crossed(n: int = 600) -> tuple[np.ndarray, np.ndarray, pl.DataFrame]:
    """Return labels, scores and groups: women of 80 or more are few."""
    rng = np.random.default_rng(0)
    labels = (rng.random((n, 3)) < 0.4).astype(np.uint8)
    sex = np.where(np.arange(n) % 2 == 0, "female", "male")
    age = np.where((np.arange(n) % 3 == 0) & ((sex == "male") | (np.arange(n) < 90)), "80+", "18-44")
    return labels, rng.normal(size=(n, 3)) + labels, pl.DataFrame({"sex": sex, "age": age})


def test_pairs_of_attributes_with_enough_positives_follow_the_single_groups() -> None:
    labels, scores, attributes = crossed()
    found = subgroups(labels, scores, attributes, np.arange(len(labels)), n_resamples=3)
    singles = [(one.attribute, one.group) for one in found.groups if not one.is_pair]
    assert singles == [("sex", "female"), ("sex", "male"), ("age", "18-44"), ("age", "80+")]
    pairs = [one for one in found.groups if one.is_pair]
    assert [one.group for one in pairs] == ["female, 18-44", "male, 18-44"]
    assert found.groups[4:] == pairs
    flagged = scores > thresholds(labels, scores, 0.9)
    for one in pairs:
        sex, age = one.group.split(", ")
        here = ((attributes["sex"] == sex) & (attributes["age"] == age)).to_numpy()
        assert (one.attribute, one.n_stays, one.few) == ("sex x age", here.sum(), False)
        assert one.auroc_macro.value == pytest.approx(roc_auc_score(labels[here], scores[here]))
        gap = [recall_score(labels[rows], flagged[rows], average="macro") for rows in (here, ~here)]
        assert one.tpr_gap.value == pytest.approx(gap[0] - gap[1])
        gap = [false_positive_rate(labels[rows], flagged[rows]) for rows in (here, ~here)]
        assert one.fpr_gap.value == pytest.approx(gap[0] - gap[1])
        assert np.isnan(one.auroc_gap.value)


def test_a_pair_that_is_one_of_its_groups_is_not_measured_twice() -> None:
    labels, scores, attributes = crossed()
    same = attributes.with_columns(
        ward=pl.col("sex").replace({"female": "a", "male": "b"}), all=pl.lit("all")
    )
    found = subgroups(labels, scores, same.drop("age"), np.arange(len(labels)), n_resamples=3)
    assert not any(one.is_pair for one in found.groups)


def test_pairs_change_no_other_number() -> None:
    labels, scores, attributes = crossed()
    units = np.arange(len(labels))
    both = subgroups(labels, scores, attributes, units, n_resamples=30).groups
    (female, male) = subgroups(labels, scores, attributes.select("sex"), units, n_resamples=30).groups
    assert both[:2] == [female, male]


@pytest.mark.parametrize(
    ("has_cxr", "groups"),
    [
        ([True, False], {"has_cxr": ["with CXR", "without CXR"]}),
        ([True, True], {}),
        ([False], {}),
        ([], {}),
    ],
)
def test_groups_by_radiograph(has_cxr: list[bool], groups: dict[str, list[str]]) -> None:
    assert group_by_radiograph(has_cxr).to_dict(as_series=False) == groups
