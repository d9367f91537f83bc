"""`drfuse explain` from a run and a cohort, or from files of one patient."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from drfuse.cli import main
from drfuse.data import Cohort
from drfuse.demo import Demo, run_of
from drfuse.errors import InputError
from drfuse.explain import explain

pytestmark = pytest.mark.slow  # trained runs


def with_cxr(demo: Demo) -> int:
    cohort = Cohort.open(demo.folder / "cohort")
    return int(cohort.stay_id[np.flatnonzero(cohort.has_cxr)[0]])


@pytest.mark.slow
def test_a_stay_of_a_cohort_is_explained(
    small_demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cohort = run_of(small_demo.folder, "fused").folder, small_demo.folder / "cohort"
    out, stay = tmp_path / "explained", with_cxr(small_demo)
    options = ["--stay", str(stay), "--phenotype", "Shock", "--out", str(out)]
    main(["explain", str(run), str(cohort), *options, "--cxr-method", "integrated-gradients-black"])
    shown = capsys.readouterr().out
    assert f"Stay {stay}" in shown
    assert "What moved the EHR side of Shock" in shown
    stored = json.loads((out / "explanation.json").read_text("utf-8"))
    assert stored["stay_id"] == stay
    assert stored["image"]["method"] == "integrated-gradients-black"


def test_a_single_patient_is_explained_from_files(small_demo: Demo, tmp_path: Path) -> None:
    ehr, cxr = tmp_path / "ehr.csv", tmp_path / "cxr.png"
    pl.DataFrame(
        {
            "stay_id": [7] * 3,
            "hours": [0.5, 5.0, 9.0],
            "variable": ["heart_rate"] * 3,
            "value": [80, 120, 140],
        }
    ).write_csv(ehr)
    Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))).save(cxr)
    found = explain(run_of(small_demo.folder, "fused").folder, ehr=ehr, cxr=cxr).explanation
    assert found.stay_id == 7
    assert found.has_cxr
    assert found.values.shape == (9, 17)
    heart = [variable.name for variable in found.variables].index("heart_rate")
    assert np.flatnonzero(np.isfinite(found.values[:, heart])).tolist() == [0, 4, 8]
    assert found.record is not None
    assert found.image is not None


def test_which_stay_must_be_said_if_there_are_several(small_demo: Demo) -> None:
    run, cohort = run_of(small_demo.folder, "fused").folder, small_demo.folder / "cohort"
    with pytest.raises(InputError, match="has 120 stays; choose one with --stay"):
        explain(run, cohort)
    with pytest.raises(InputError, match="most_steps is 0; expected at least 1"):
        explain(run, cohort, with_cxr(small_demo), most_steps=0)
