"""Results of made-up predictions that several test files read."""

import pytest

from drfuse.reproduce.results import Results
from tests.reproduce.samples import MAIN, VARIANTS, make_results


@pytest.fixture(scope="session")
def results() -> Results:
    return make_results([*MAIN, *VARIANTS])


@pytest.fixture(scope="session")
def four_systems() -> Results:
    """Return results of a model of each modality, of DrFuse and of one of its variants."""
    return make_results(["transformer", "resnet50", "drfuse", "drfuse-mse"])


@pytest.fixture(scope="session")
def mortality() -> Results:
    return make_results(["resnet50", "drfuse"], task="mortality")
