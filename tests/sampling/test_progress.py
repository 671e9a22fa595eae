"""A log file is told now and then how far sampling is."""

import re

import pytest

import rfdit.sampling.progress
from rfdit.sampling.progress import SampleProgress


def test_lines_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rfdit.sampling.progress, "SECONDS_BETWEEN_LINES", -1)
    for shown in (True, False):
        with SampleProgress(total=4000, world=2, shown=shown) as progress:
            progress.advance(1000)
            progress.advance(500)
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1,000 of 4,000 pictures  [\d.]+/s  [\d.]+ min left", first)
    assert second.startswith("1,500 of 4,000")
