"""A run's log has what is on the screen, without the bar."""

import errno
import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rfdit.progress import ProgressDisplay
from rfdit.run.log import logged

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")


def lines(folder: Path) -> list[str]:
    """The lines of a log without their times."""
    found = (folder / "log.txt").read_text().splitlines()
    assert all(STAMP.match(line) for line in found)
    return [STAMP.sub("", line) for line in found]


def test_what_is_printed_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    for text in ("one", "two"):
        with logged(tmp_path):
            print(text, "and", "more")
            print("in parts,", end=" ")
            print("one line")
            print("warned", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert lines(tmp_path) == [
        *("one and more", "in parts, one line", "warned"),
        *("two and more", "in parts, one line", "warned"),
    ]
    printed = capsys.readouterr()
    assert printed.out == "one and more\nin parts, one line\ntwo and more\nin parts, one line\n"
    assert printed.err == "warned\nwarned\n"


def test_an_error_is_logged_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), logged(tmp_path):
        raise ValueError("wrong")
    assert lines(tmp_path)[0] == "Traceback (most recent call last):"
    assert lines(tmp_path)[-1] == "ValueError: wrong"


def test_a_full_disk_names_the_log_and_other_errors_do_not(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError) as other, logged(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")  # such as a DataLoader's
    assert other.value.filename is None
    (tmp_path / "full").mkdir()
    (tmp_path / "full/log.txt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as full, logged(tmp_path / "full"):
        print("a line")
    assert full.value.filename == str(tmp_path / "full/log.txt")


def test_a_bar_is_a_line_in_the_log_and_what_is_printed_stands_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr("rfdit.progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr(
        "rfdit.progress.Console", lambda file: Console(file=file, force_terminal=True, width=120)
    )
    with logged(tmp_path), ProgressDisplay("training", total=9, unit="steps") as display:
        display.update(3, "loss 0.5")
        print("step 3  checkpoint: [last]")
        display.update(6)
    assert lines(tmp_path)[:2] == [
        "training: 3 of 9 steps, 33%  elapsed 0:00  remaining 0:00  loss 0.5", "step 3  checkpoint: [last]",
    ]  # fmt: skip
    assert "step 3  checkpoint: [last]\n" in screen.getvalue()
    assert "\x1b[2K" in screen.getvalue()  # the bar is drawn anew below
