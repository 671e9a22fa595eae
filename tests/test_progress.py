"""The display of progress, in a terminal and in a log file."""

import io
import re

import pytest
from rich.console import Console

from rfdit.progress import ProgressDisplay, duration, tracked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list of one number."""
    now = [0.0]
    monkeypatch.setattr("rfdit.progress.time.monotonic", lambda: now[0])
    return now


def test_lines_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setattr("rfdit.progress.LINE_SECONDS", 0.0)
    for shown in (True, False):
        with ProgressDisplay("sampling", total=4000, unit="images", shown=shown) as display:
            clock[0] += 60
            display.advance(1000, "3.00/s")
            display.advance(500)
    with ProgressDisplay("training", total=None, unit="steps", completed=7) as display:
        display.update(9, "loss 0.5000")
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "sampling: 1,000 of 4,000 images, 25%  elapsed 1:00  remaining 3:00  3.00/s"
    assert second.startswith("sampling: 1,500 of 4,000 images, 38%  ")
    assert third == "training: 9 steps  elapsed 0:00  loss 0.5000"


@pytest.mark.parametrize(
    ("limit", "remaining"), [(None, "1:00"), (90.0, "1:00"), (20.0, "0:20"), (-1.0, "0:00")]
)
def test_time_left_counts_from_the_start_of_this_process_and_ends_at_a_limit(
    capsys: pytest.CaptureFixture[str], clock: list[float], limit: float | None, remaining: str
) -> None:
    given = None if limit is None else lambda: limit
    display = ProgressDisplay("training", total=300, unit="steps", completed=100, limit=given)
    clock[0] = 60.0
    display.update(200)  # 100 steps a minute
    assert capsys.readouterr().out == (
        f"training: 200 of 300 steps, 67%  elapsed 1:00  remaining {remaining}\n"
    )


def test_nothing_done_gives_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay("training", total=300, unit="steps", completed=100)
    display.update(100, "loss 0.5000", now=True)  # with gradients that are accumulated over many batches
    assert capsys.readouterr().out == "training: 100 of 300 steps, 33%  elapsed 0:00  loss 0.5000\n"


def test_no_line_before_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay("training", total=9, unit="steps")
    assert not display.due
    display.update(3)
    assert capsys.readouterr().out == ""
    display.update(4, now=True)
    assert "4 of 9" in capsys.readouterr().out


def test_the_bar_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("rfdit.progress.Console", lambda **_: console)
    with ProgressDisplay("training", total=9, unit="steps", completed=2) as display:
        display.update(4, "loss 0.5000")
        display.completed = 9
    assert "loss 0.5000" in screen.getvalue()
    assert re.search(r"9 of 9 steps, 100%  elapsed 0:00  remaining 0:00", screen.getvalue())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3600, "1:00:00"), (90_061, "25:01:01")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tracked_gives_the_items(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked("abc", "reading", total=3, unit="letters")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""  # too fast to need a display
