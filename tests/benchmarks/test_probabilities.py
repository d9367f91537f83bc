"""The truth that recalibration, net benefit and prediction sets are compared with."""

import numpy as np
import pytest
from scipy.special import expit

from benchmarks.probabilities import Hospital, probabilities


def test_the_true_net_benefit_is_of_the_whole_population() -> None:
    hospital = Hospital.draw(4000)
    found, p, y = (
        hospital.net_benefit(),
        expit(hospital.logits[:, 3].astype(float)),
        hospital.people.labels[:, 3],
    )
    treated = p >= 0.2
    assert found[1, 3] == pytest.approx((treated & y).mean() - (treated & ~y).mean() * 0.25)


def test_the_system_is_overconfident_and_reads_stays_with_a_radiograph_better() -> None:
    hospital = Hospital.draw(20_000)
    z, y = hospital.logits, hospital.people.labels
    error = [
        np.abs(expit(z[rows].astype(float)) - y[rows]).mean()
        for rows in (hospital.has_cxr, ~hospital.has_cxr)
    ]
    assert error[0] < error[1]
    sure = expit(z.astype(float)) < 0.05
    assert y[sure].mean() > 1.5 * expit(z.astype(float))[sure].mean()
    assert 0 < abs(hospital.fpr_gap()) < 0.2


def test_a_split_is_the_rows_that_were_asked_for() -> None:
    hospital = Hospital.draw(300)
    found = hospital.predictions(np.array([7, 5]), "validation")
    assert found.stays["stay_id"].to_list() == [7, 5]
    assert set(found.stays["split"]) == {"validation"}
    np.testing.assert_array_equal(found.logits, hospital.logits[[7, 5]])
    np.testing.assert_array_equal(found.labels, hospital.people.labels[[7, 5]])


@pytest.mark.slow
def test_every_measure_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    text = probabilities(sets=1, population=5000, resamples=20)
    assert "| 200 + 410 | 410 + 820 | 1,070 + 2,136 |" in text
    for row in (
        "chosen: temperature",
        "log loss, recalibrated",
        "macro net benefit at 20%",
        "sets, without CXR",
    ):
        assert f"\n| {row}" in text
