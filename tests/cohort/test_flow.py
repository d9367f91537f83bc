import io
import subprocess
import sys

from rich.console import Console

from drfuse.cohort import FlowStep, Manifest
from drfuse.cohort.flow import flow_table, gaps


def test_the_flow_names_each_criterion_and_split() -> None:
    manifest = Manifest(
        drfuse="0",
        sources={},
        options={},
        flow=[FlowStep("all ICU stays", 73181), FlowStep("age at least 18 years", 61234)],
        variables=[],
        phenotypes=[],
        splits={"train": {"stays": 40000, "with_cxr": 7000}, "test": {"stays": 21234, "with_cxr": 3000}},
        warnings={},
        files={},
    )
    written = io.StringIO()
    Console(width=80, file=written).print(flow_table(manifest))
    lines = [line.split() for line in written.getvalue().splitlines()]
    assert ["all", "ICU", "stays", "73,181"] in lines
    assert ["age", "at", "least", "18", "years", "61,234", "10,000"] in lines
    assert ["train", "40,000", "7,000"] in lines


def test_the_flow_is_shown_without_what_evaluates() -> None:
    code = "import sys, drfuse.cli, drfuse.cohort.flow; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_stays_lack_is_said_in_shares() -> None:
    flow = [FlowStep("all ICU stays", 300), FlowStep("age", 200)]
    without = {"chart events": 0, "laboratory results": 3, "radiograph": 150}
    manifest = Manifest("0", {}, {}, flow, [], [], {}, {"stays_without": without}, {})
    assert gaps(manifest) == (
        "stays without chart events 0.0 %, without laboratory results 1.5 %, without radiograph 75.0 %"
    )


def test_an_earlier_manifest_says_nothing_of_it() -> None:
    assert gaps(Manifest("0", {}, {}, [FlowStep("all ICU stays", 3)], [], [], {}, {}, {})) == ""
