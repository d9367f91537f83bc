"""`drfuse train`. The work is in `fit`, which is imported only when it is needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from drfuse.arguments import check_arguments
from drfuse.cohort.manifest import Manifest
from drfuse.imports import ClassOf, LazyClass, import_class
from drfuse.training.options import DEFAULTS, TrainOptions

if TYPE_CHECKING:
    from drfuse.models import FusionModel

Model = Annotated[
    Callable[[int, int], "FusionModel"] | str, ClassOf("drfuse.models", "FusionModel", given=(int, int))
]
"""A model's class, or its import path; or what makes a model from the numbers of features and labels."""


@dataclass(frozen=True)
class TrainedRun:
    """The result of a training.

    Attributes:
        folder: The run.
        best_epoch: The epoch whose weights were kept, from 0.
        val_prauc: Its macro PRAUC on the validation split.
        epochs: How many epochs were trained.
    """

    folder: Path
    best_epoch: int
    val_prauc: float
    epochs: int


@check_arguments
def train(
    cohort: Path,
    out: Path,
    model: Model = "drfuse.models.DrFuse",
    options: TrainOptions = DEFAULTS,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[object] = (),
    **changes: Any,
) -> TrainedRun:
    """Train a model on a cohort, keep its best weights, and predict every stay.

    A run that SIGINT or SIGTERM stops resumes after the step that it was at when it is started again with the
    same options, and ends as if it had not been stopped. A run that is killed resumes after an epoch.
    A `FittedModel` has no epochs: its own `fit` is called once.

    Args:
        cohort: Folder that `drfuse prepare` wrote.
        out: Folder of the run to write.
        model: The model's class, by import path. Its first two arguments are the numbers of features and
            labels; the others are options of their own (--model.help CLASS). Models of this package may be
            given by name:
        options: How it is trained.
        overwrite: Replace an existing run at `out`.
        progress: Whether to show progress bars.
        callbacks: Further Lightning callbacks.
        changes: Options by name, in place of those in `options`: `train(cohort, out, epochs=3)`.

    Raises:
        InputError: If the cohort or an option cannot be used, or `out` holds another run.
    """
    options = options.changed(**changes)
    Manifest.read(cohort)  # a wrong folder is refused before PyTorch is imported, which takes seconds
    if isinstance(model, LazyClass):
        model = model.load()
    from drfuse.models import FusionModel
    from drfuse.training.fit import fit_run
    from drfuse.training.peers import ends_with_peers

    chosen = import_class(model, FusionModel) if isinstance(model, str) else model
    with ends_with_peers():
        return fit_run(cohort, out, chosen, options, overwrite, progress, callbacks)
