"""`manifest.json`: how a cohort was made, and what is in it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from drfuse.errors import InputError, MissingInputError

FORMAT_VERSION = 2
"""Raised when the same sources and options give different files; other versions are refused."""


@dataclass(frozen=True)
class Variable:
    """One clinical variable, from `variables.csv` and `variable_ranges.csv`.

    Attributes:
        name: Its name in the cohort.
        kind: `continuous`, or `categorical`: whole numbers from `valid_low` to `valid_high`.
        unit: Unit of its values.
        normal: The value used until the first observation.
        valid_low: The preset `extended` raises lower values to this one.
        valid_high: The preset `extended` lowers higher values to this one.
    """

    name: str
    kind: Literal["continuous", "categorical"]
    unit: str
    normal: float
    valid_low: float
    valid_high: float


@dataclass(frozen=True)
class FlowStep:
    """An inclusion criterion and the number of stays left after it."""

    criterion: str
    stays: int


@dataclass(frozen=True)
class CohortSummary:
    """What a model card says about a cohort: releases and counts, without paths.

    Attributes:
        releases: The release of each source, by its name.
        simulated: Whether `drfuse simulate` made the sources.
        flow: The inclusion flow.
        splits: The number of stays, and of stays with a radiograph, in each split.
    """

    releases: dict[str, str]
    simulated: bool
    flow: list[FlowStep]
    splits: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Manifest:
    """How a cohort was made, and what is in it.

    Attributes:
        drfuse: The version of this package that made it.
        sources: Release and files of each source folder.
        options: The options of `prepare` that determine the cohort's content.
        flow: The inclusion flow.
        variables: The variables on the last axis of `ehr.npy`, in order.
        phenotypes: The label columns of `stays.parquet`, in order.
        splits: The number of stays, and of stays with a radiograph, in each split.
        warnings: What was left out of the sources, such as rows that do not parse (see `left_out.COUNTS`).
        files: SHA-256 of the cohort's other files.
        format_version: `FORMAT_VERSION`.
    """

    drfuse: str
    sources: dict[str, Any]
    options: dict[str, Any]
    flow: list[FlowStep]
    variables: list[Variable]
    phenotypes: list[str]
    splits: dict[str, dict[str, int]]
    warnings: dict[str, Any]
    files: dict[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def summary(self) -> CohortSummary:
        """The releases and counts of the cohort."""
        return CohortSummary(
            releases={name: str(source.get("release")) for name, source in self.sources.items()},
            simulated=bool(self.sources) and all(one.get("simulated") for one in self.sources.values()),
            flow=self.flow,
            splits=self.splits,
        )

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Return the manifest of the cohort in `folder`.

        Raises:
            MissingInputError: If there is no manifest.
            InputError: If it is damaged, or of another format version.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise MissingInputError(
                f"{folder} is not a cohort: it has no manifest.json; make one with `drfuse prepare`"
            )
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["format_version"] != FORMAT_VERSION:
                raise InputError(
                    f"{path} has format version {fields['format_version']}, this drfuse reads "
                    f"{FORMAT_VERSION}; make the cohort again with `drfuse prepare --overwrite`"
                )
            fields["flow"] = [FlowStep(**step) for step in fields["flow"]]
            fields["variables"] = [Variable(**variable) for variable in fields["variables"]]
            return cls(**fields)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged; run `drfuse prepare` again") from error
