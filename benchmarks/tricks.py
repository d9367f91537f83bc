"""What do the options that change results cost in PRAUC, and what do they save?

`python -m benchmarks.tricks --cohort COHORT --config benchmarks/small.yaml` trains DrFuse with each option
and a few seeds, and compares the macro PRAUC of the test stays with that of the same training without it:
the mean over the seeds, with the 95 % interval of a bootstrap over subjects that pairs the two. Frozen
backbones are those of a `CxrResNet` that was trained before on the radiographs of the training split alone;
they are compared with training that goes on from the same weights. Seconds are those of whole trainings.
"""

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, cast

from benchmarks.command import command
from benchmarks.training import table
from drfuse.evaluation import SeededPrauc, compare, seeded_prauc
from drfuse.inference import Predictor
from drfuse.models import CxrResNet, DrFuse
from drfuse.run import Predictions, Run
from drfuse.training import TrainOptions, train
from drfuse.training.options import DEFAULTS, Without


def tricks(
    cohort: Path,
    seeds: Sequence[int] = (0, 1, 2),
    model_args: Mapping[str, Any] | None = None,
    settings: dict[str, dict[str, float]] | None = None,
    n_resamples: int = 1000,
    options: Annotated[TrainOptions, Without("seed", "train_on", "cxr_share", "freeze_cxr")] = DEFAULTS,
) -> str:
    """Measure the options that change results, and return a Markdown table.

    Args:
        cohort: A prepared cohort.
        seeds: Of each training.
        model_args: Arguments of DrFuse.
        settings: Learning rate and weight decay by system; those of `drfuse` count.
        n_resamples: Resamples of the test subjects.
        options: How each model is trained.
    """
    arguments = dict(model_args or {})
    options = options.changed(**(settings or {}).get("drfuse", {}))
    seconds: dict[str, float] = {}
    praucs: dict[str, SeededPrauc] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = _pretrain(cohort, folder, arguments, options)
        fresh = partial(DrFuse, **arguments)
        pretrained = partial(DrFuse, **arguments | {"cxr_backbone": str(backbone)})
        variants: list[tuple[str, str, Any, dict[str, Any]]] = [
            ("the default", "", fresh, {}),
            ("--cxr-share 0.5", "the default", fresh, {"cxr_share": 0.5}),
            ("--cxr-share 0", "the default", fresh, {"cxr_share": 0.0}),
            ("pretrained backbones", "", pretrained, {}),
            ("pretrained, --freeze-cxr", "pretrained backbones", pretrained, {"freeze_cxr": True}),
        ]
        for variant, _, model, changed in variants:
            start = perf_counter()
            runs = [
                train(
                    cohort,
                    folder / f"{variant}-{seed}",
                    model,
                    options.changed(**changed, seed=seed),
                    progress=False,
                ).folder
                for seed in seeds
            ]
            seconds[variant] = (perf_counter() - start) / len(seeds)
            praucs[variant] = _prauc(runs, n_resamples)
    rows = []
    for variant, against, _, _ in variants:
        found = praucs[variant]
        mean = found.mean
        row = [variant, f"{seconds[variant]:.0f}", f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"]
        row.append(", ".join(f"{value:.3f}" for value in found.values))
        if against:
            effect = compare(found, praucs[against])
            row += [against, f"{effect.difference:+.3f} ({effect.low:+.3f} to {effect.high:+.3f})"]
        rows.append(row + [""] * (6 - len(row)))
    columns = ("training", "s each", "macro PRAUC (95 %)", f"of seeds {list(seeds)}", "less that of", "")
    return table(f"Options that change results, on {cohort.name}", columns, rows).markdown()


def _pretrain(cohort: Path, folder: Path, arguments: Mapping[str, Any], options: TrainOptions) -> Path:
    """Return the backbone of a model of the radiographs alone."""
    taken = {name: arguments[name] for name in ("dim", "cxr_backbone") if name in arguments}
    model = partial(CxrResNet, **taken)
    options = options.changed(train_on="matched", matched_cxr_dropout=0.0)
    run = train(cohort, folder / "cxr", model, options, progress=False).folder
    encoder = cast(CxrResNet, Predictor.open(run).model).encoder
    encoder.backbone.save_pretrained(folder / "backbone")
    return folder / "backbone"


def _prauc(runs: Sequence[Path], n_resamples: int) -> SeededPrauc:
    predictions = [Predictions.read(Run(run).predictions) for run in runs]
    of_test = (predictions[0].stays["split"] == "test").to_numpy()
    return seeded_prauc(
        predictions[0].labels[of_test],
        [one.logits[of_test] for one in predictions],
        predictions[0].stays["subject_id"].to_numpy()[of_test],
        n_resamples,
    )


if __name__ == "__main__":
    command(tricks)
