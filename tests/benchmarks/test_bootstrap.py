"""The benchmark compares the same resamples and says what it measured."""

from benchmarks.bootstrap import bootstrap


def test_both_are_measured_and_agree() -> None:
    table = bootstrap(stays=80, labels=3, resamples=70, loop_resamples=5, decimals=1)
    lines = dict(line.strip("| ").split(" | ") for line in table.splitlines()[2:])
    assert float(lines["largest difference on 5 resamples"]) < 1e-9
    assert lines["drfuse, 70 resamples, median of 5 runs"].endswith(" s")
    assert lines["scikit-learn, 5 resamples scaled to 70"].endswith(" s")
    assert float(lines["ratio"]) > 0
