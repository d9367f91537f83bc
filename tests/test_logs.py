"""Progress bars are drawn on standard error, where somebody looks."""

import pytest

from drfuse import logs
from drfuse.logs import Terminal, tracked


def test_a_bar_leaves_nothing_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(3), "reading")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_is_drawn_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: bool
) -> None:
    monkeypatch.setattr(logs, "ERRORS", Terminal(stderr=True, force_terminal=True))
    assert list(tracked(iter(range(3)), "reading", 3, shown=shown)) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert ("reading" in err) == shown
