"""`drfuse explain`: why a run predicts what it predicts for one stay."""

from dataclasses import dataclass
from pathlib import Path

from drfuse.arguments import check_arguments
from drfuse.data import Cohort
from drfuse.errors import InputError
from drfuse.imports import import_class
from drfuse.inference import Explanation, Predictor, explain_stay
from drfuse.inference.attributions import MOST_STEPS, CxrMethod, EhrMethod
from drfuse.inference.inputs import open_stays
from drfuse.models import FusionModel


@dataclass(frozen=True)
class Explained:
    """What `explain` found.

    Attributes:
        explanation: The explanation.
        out: The folder that it wrote, if it did.
    """

    explanation: Explanation
    out: Path | None


@check_arguments
def explain(
    run: Path,
    cohort: Path | None = None,
    stay: int | None = None,
    phenotype: str | None = None,
    mimic_iv: str | Path | None = None,
    mimic_cxr: Path | None = None,
    ehr: Path | None = None,
    cxr: Path | None = None,
    out: Path | None = None,
    ehr_method: EhrMethod = "integrated-gradients",
    cxr_method: CxrMethod = "integrated-gradients-grey",
    most_steps: int = MOST_STEPS,
    model: str | None = None,
    temp_dir: Path | None = None,
    overwrite: bool = False,
) -> Explained:
    """Explain what a run predicts for one stay.

    All phenotypes get their probability, modality weights and the exact Shapley values of the two modalities;
    one of them gets the hours, variables and regions of the radiograph that moved it. docs/explanations.md
    says how far to trust them.

    Args:
        run: Folder of a run, or one that `drfuse export` wrote.
        cohort: Folder of a cohort with the variables of the training.
        stay: The stay's id; needed unless the input has a single stay.
        phenotype: The phenotype whose hours, variables and regions are shown; by default the likeliest.
        mimic_iv: In place of a cohort, records as `drfuse prepare` takes them; diagnoses may be absent.
        mimic_cxr: The radiographs that belong to them.
        ehr: In place of a cohort, a CSV or Parquet file of measurements (docs/predict.md).
        cxr: The JPEG or PNG file of its only stay, or a folder of files named by their stays.
        out: Folder to write: a page, its figures as PNG and SVG, and everything as JSON.
        ehr_method: How to attribute a logit to hours and variables.
        cxr_method: How to attribute it to regions of the radiograph.
        most_steps: The most steps of integrated gradients; they are doubled until the sum is right.
        model: Import path of the run's model if it is not one of drfuse's; importing it runs its code.
        temp_dir: Folder for what is read from `mimic_iv`; by default the system's.
        overwrite: Replace the explanation at `out`.

    Raises:
        InputError: If the run or the stay cannot be read or do not fit together, or `out` exists.
    """
    if most_steps < 1:
        raise InputError(f"most_steps is {most_steps}; expected at least 1")
    if model is not None:
        import_class(model, FusionModel)
    predictor = Predictor.open(run)
    with open_stays(predictor.facts, cohort, mimic_iv, mimic_cxr, ehr, cxr, temp_dir) as stays:
        row = _row(stays, stay)
        explanation = explain_stay(predictor, stays, row, phenotype, ehr_method, cxr_method, most_steps)
    if out is not None:
        from drfuse.report.explanation import write_explanation

        write_explanation(explanation, out, overwrite)
    return Explained(explanation, out)


def _row(stays: Cohort, stay: int | None) -> int:
    """Return the row of a stay, which may be left out if it is the only one."""
    if stay is not None:
        return stays.row_of(stay)
    if len(stays) != 1:
        raise InputError(f"{stays.folder} has {len(stays):,} stays; choose one with --stay")
    return 0
