"""How long a training step of each fusion takes beside DrFuse's, in turns, on the same batch.

`python -m benchmarks.fusions --config-file benchmarks/small.yaml` takes a minute; without `--config-file`,
the models have the published sizes.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from benchmarks.command import command
from benchmarks.training import (
    Precision,
    Step,
    in_turns,
    make_batch,
    make_task,
    n_images_of,
    table,
    training_step,
)
from drfuse.imports import import_class
from drfuse.models import FusionModel
from drfuse.reproduce.systems import paper_systems

SYSTEMS = ("drfuse", "additive-evidence", "late-fusion", "mmtm", "daft", "medfuse", "medfuse-ii")


def fusions(
    config_file: Path | None = None,
    systems: Sequence[str] = SYSTEMS,
    batch_size: int = 32,
    crop_size: int = 64,
    precision: Precision = "32-true",
    repeats: int = 10,
) -> str:
    """Measure a training step of each system beside that of the first.

    Args:
        config_file: Options of `drfuse reproduce`, whose `model_args` are the sizes.
        systems: Systems of `drfuse reproduce`.
        batch_size: Stays a batch.
        crop_size: Side of the radiographs in pixels.
        precision: Numbers to compute with.
        repeats: Steps of each, in turns.
    """
    options = {} if config_file is None else yaml.safe_load(config_file.read_text(encoding="utf-8"))
    batch = make_batch(batch_size, n_images_of(batch_size), crop_size)
    steps: dict[str, Step] = {}
    for name in systems:
        described = paper_systems()[name].with_arguments(options.get("model_args", {}))
        model = partial(import_class(described["class_path"], FusionModel), **described["init_args"])
        steps[name] = training_step(make_task(model, precision), [batch], precision)
    seconds = in_turns(steps, repeats)
    first = seconds[systems[0]]
    rows = [
        [paper_systems()[name].title, f"{1000 * s:.1f}", f"{s / first:.2f}"] for name, s in seconds.items()
    ]
    title = (
        f"A training step of {batch_size} stays, {len(batch.cxr)} of them with a radiograph of {crop_size} "
        f"pixels, {precision}"
    )
    return table(title, ("", "ms", f"times {paper_systems()[systems[0]].title}"), rows).markdown()


if __name__ == "__main__":
    command(fusions)
