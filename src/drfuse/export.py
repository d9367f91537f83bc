"""A run in, a folder in the hub's form out: weights, facts, recalibration, licence note and model card."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drfuse.arguments import check_arguments
from drfuse.errors import InputError
from drfuse.files import atomic_folder
from drfuse.imports import imported_classes
from drfuse.report.model_card import SHARING, CardFacts, Origin, model_card
from drfuse.run import Run

logger = logging.getLogger(__name__)

_NOTES: dict[Origin, str] = {
    "simulated": "The licence of the weights is {license}.",
    "mimic": (
        "To share them, submit them to PhysioNet as a project for credentialed users. Whoever has signed the "
        "data use agreement can then use them under the PhysioNet Credentialed Health Data License 1.5.0, as "
        "the data themselves: https://physionet.org/content/mimiciv/view-license/. Do not put them where "
        "others can download them. The openly licensed MIMIC-IV demo alone has no such limit."
    ),
    "unknown": "Find out before you share them. Whoever exported them says that their licence is {license}.",
}


@dataclass(frozen=True)
class Exported:
    """What `drfuse export` wrote.

    Attributes:
        folder: The folder.
        files: The names of its files.
        sharing: A sentence on who may have the weights.
    """

    folder: Path
    files: list[str]
    sharing: str


@check_arguments
def export(
    run: Path,
    out: Path,
    cohort: Path | None = None,
    license: str | None = None,  # noqa: A002 - the word of the hub and of the command line
    overwrite: bool = False,
) -> Exported:
    """Write a folder to hand on: the model in the form of the Hugging Face hub, with a model card.

    It holds `config.json`, `model.safetensors`, `README.md` (the card), `LICENSE.md`, `sums.json` and, if the
    run has one, `recalibration.json`; no predictions, checkpoints or logs, which name patients. Nothing is
    uploaded.

    Args:
        run: Folder that `drfuse train` wrote. What `drfuse evaluate` measured is in the card.
        out: Folder to write.
        cohort: Folder of the cohort that the run was trained on, for a run of an earlier version, which does
            not know its cohort's counts.
        license: Licence of the weights as the hub spells it, such as `mit`. Weights trained on MIMIC have
            that of PhysioNet.
        overwrite: Replace an earlier export at `out`.

    Raises:
        InputError: If `run` is not a finished run or is damaged, `cohort` is not its cohort, or a licence is
            given for weights trained on MIMIC.
    """
    opened = Run.open(run)  # a wrong folder is refused before anything is imported
    from drfuse.evaluation import Recalibration
    from drfuse.models import FusionModel
    from drfuse.models.hub import CARD, HUB_FILES, LICENSE
    from drfuse.training import TrainOptions

    facts, options = opened.read_facts(), opened.read_options()
    kind: Any = imported_classes(FusionModel).get(facts.model["class_path"], FusionModel)
    card = CardFacts(
        facts,
        facts.cohort_summary if cohort is None else opened.check_cohort(cohort).summary,
        options={name: options[name] for name in TrainOptions.names("decides") if name in options},
        started=[modality for modality in ("ehr", "cxr") if options.get(f"init_{modality}")],
        reads=kind.reads,
        test_sets=_test_sets(opened),
        has_recalibration=Recalibration.read(run, facts.label_names) is not None,
        license_id=license,
    )
    if license is not None and card.origin == "mimic":
        raise InputError(
            "--license: weights trained on MIMIC may be shared only as a credentialed PhysioNet project; "
            "leave it out"
        )
    try:
        text = str(model_card(card))
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # metrics of an earlier version
        reason = error if isinstance(error, InputError) else f"its form is not that of today ({error!r})"
        raise InputError(f"{opened.metrics}: {reason}; run `drfuse evaluate` again") from error
    note = _NOTES[card.origin].format(license=license or "not stated")
    with atomic_folder(out, "folder of `drfuse export`", CARD, HUB_FILES, overwrite) as folder:
        folder.chmod(0o700)
        for path in (opened.facts, opened.model, opened.recalibration):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        Run(folder).write_sums()
        (folder / CARD).write_text(text, encoding="utf-8")
        (folder / LICENSE).write_text(
            f"# Licence of the weights\n\n{SHARING[card.origin]}\n\n{note}\n", encoding="utf-8"
        )
        files = sorted(path.name for path in folder.iterdir())
    return Exported(out, files, SHARING[card.origin])


def _test_sets(run: Run) -> Mapping[str, Any]:
    """Return what was measured on each test set; nothing if the run was not evaluated.

    Raises:
        InputError: If `metrics.json` is damaged.
    """
    if not run.metrics.is_file():
        logger.warning(
            "%s was not evaluated; run `drfuse evaluate` first to have its metrics in the card", run.folder
        )
        return {}
    found: Mapping[str, Any] = run.read_metrics()["test"]
    return found
