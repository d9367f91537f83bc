"""External validation: a run predicts the stays of a cohort that it was not trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl

from drfuse.errors import InputError
from drfuse.escapes import csv_of
from drfuse.files import make_own_folder, write_whole
from drfuse.run import Predictions, Run, RunFacts, predictions_file

if TYPE_CHECKING:
    from drfuse.data import Cohort, Task


@dataclass(frozen=True)
class Shift:
    """By how much one input or label of other stays differs from those of the training.

    Attributes:
        kind: `radiograph`, `variable` or `label`.
        name: Its name.
        trained_share: In the training split, the share of stays with a radiograph, of hours in which the
            variable was observed, or of stays with the label; None if that is not known.
        share: The same of the other stays.
        trained_mean: Mean of the variable in the training split.
        mean: Its mean in the other stays.
        difference: The difference of the means, in standard deviations of the training split.
    """

    kind: Literal["radiograph", "variable", "label"]
    name: str
    trained_share: float | None
    share: float | None
    trained_mean: float | None = None
    mean: float | None = None
    difference: float | None = None


@dataclass(frozen=True)
class External:
    """A cohort that a run was not trained on.

    Attributes:
        cohort: The name of its folder.
        folder: Where its predictions and metrics are.
        fingerprint: Its fingerprint.
        shift: How its stays differ from those of the training.
    """

    cohort: str
    folder: Path
    fingerprint: str
    shift: list[Shift]


def predict_elsewhere(
    run: Run,
    on: "Cohort | Path",
    other_people: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
) -> tuple[Run, External]:
    """Predict every stay with known labels of another cohort.

    The predictions, all of them of the split `test`, and `shift.csv` are written into a folder below the
    run, named after the cohort, in which `evaluate` then writes metrics as in a run. If the predictions are
    there already, the network does not run again.

    Args:
        run: A finished run.
        on: The cohort or its folder.
        other_people: Whether a `subject_id` of the cohort and one of the run mean different people.
        accelerator: `cpu`, `gpu`, or `auto` for a GPU if there is one.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If the cohort does not fit the run, or has a subject of its training or validation split.
    """
    from drfuse.data import Cohort  # not sooner, because it needs PyTorch
    from drfuse.inference import Predictor
    from drfuse.inference.predictor import find_device

    predictor = Predictor.open(run.folder).to(find_device(accelerator))
    cohort = on if isinstance(on, Cohort) else Cohort.open(on, verify=True)
    dataset = predictor.dataset(cohort)
    rows = dataset.task.rows()
    trained = run.read_predictions("train", logits_only=True)
    if not other_people:
        validated = run.read_predictions("validation", logits_only=True)
        learned = pl.concat([trained.stays["subject_id"], validated.stays["subject_id"]])
        refuse_shared_subjects(learned, cohort, run.folder)
    files = Run(run.external / f"{cohort.folder.resolve().name}-{cohort.fingerprint[:8]}")
    for folder in (run.external, files.folder):
        make_own_folder(folder)
    if not files.is_finished:
        with predictions_file(files.predictions, files.write_sums) as append:
            for block in predictor.predict_blocks(cohort, rows, progress=progress):
                append(block.as_split("test"))
    shift = input_shift(predictor.facts, trained, cohort, dataset.task)
    write_whole(files.shift_table, csv_of(pl.DataFrame(shift, infer_schema_length=None)))
    return files, External(cohort.folder.resolve().name, files.folder, cohort.fingerprint, shift)


def refuse_shared_subjects(learned: pl.Series, cohort: "Cohort", of: Path) -> None:
    """Raise InputError if a cohort has one of the subjects that a run learned from.

    The validation split counts too: the best epoch, the recalibration and the prediction sets come from it.

    Args:
        learned: The `subject_id` of the training and validation splits.
        cohort: The other cohort.
        of: The run or its cohort, for the message.
    """
    there = cohort.columns("subject_id")["subject_id"]
    if shared := learned.unique().is_in(there.implode()).sum():
        raise InputError(
            f"{shared} subjects of {cohort.folder} have ids of subjects in the training or validation split "
            f"of {of}, so predictions of them would look too good; choose a cohort of other people, or, if "
            "the ids only happen to be the same, --other-people"
        )


def input_shift(facts: RunFacts, trained: Predictions, cohort: "Cohort", task: "Task") -> list[Shift]:
    """Return by how much the stays of a task differ from those that a run was trained on, a row an input.

    Args:
        facts: The facts of the run; one of an earlier version does not say what was observed.
        trained: Its predictions of the training split.
        cohort: The other cohort.
        task: Its task.
    """
    from drfuse.data.summary import summarize_inputs

    rows, own = task.rows(), facts.inputs or {}
    other, labels = summarize_inputs(cohort, rows), task.labels_of(rows)
    imaged, prevalence = trained.stays["has_cxr"].to_numpy(), trained.labels.mean(axis=0)
    return [
        Shift("radiograph", "radiograph", float(imaged.mean()), float(cohort.has_cxr[rows].mean())),
        *(_of_variable(name, own.get(name), other[name]) for name in other),
        *(
            Shift("label", name, float(prevalence[c]), float(labels[:, c].mean()))
            for c, name in enumerate(facts.label_names)
        ),
    ]


def _of_variable(
    name: str, own: Mapping[str, float | None] | None, other: Mapping[str, float | None]
) -> Shift:
    own = own or dict.fromkeys(other)
    difference = None
    if own["mean"] is not None and other["mean"] is not None and own["std"]:
        difference = (other["mean"] - own["mean"]) / own["std"]
    return Shift("variable", name, own["observed"], other["observed"], own["mean"], other["mean"], difference)
