"""Raw files with known truth: a simulated hospital in MIMIC's layout.

`simulate` writes what `drfuse prepare` reads, and `truth.parquet` beside it; `oracle` and `ceilings` turn the
truth into what a perfect model would predict, and how well; `drawn_signs` says where radiographs show a
factor. docs/simulator.md describes the models of the two kinds of hospital.
"""

from drfuse.simulate.build import Simulation, simulate
from drfuse.simulate.disease import Disease, Kind, expected_advantage, factors_given
from drfuse.simulate.entangled import KINDS, EntangledDisease
from drfuse.simulate.signs import drawn_signs
from drfuse.simulate.truth import Reader, Truth, ceilings, oracle

__all__ = [
    "KINDS",
    "Disease",
    "EntangledDisease",
    "Kind",
    "Reader",
    "Simulation",
    "Truth",
    "ceilings",
    "drawn_signs",
    "expected_advantage",
    "factors_given",
    "oracle",
    "simulate",
]
