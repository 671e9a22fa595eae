"""Dead links are remembered by all processes, for a while if they may recover, and counted."""

import multiprocessing
import pickle
from pathlib import Path

import pytest

from rfdit.data.skips import SkipReason
from rfdit.data.urls.dead_links import CAUSES, RECORD, TRANSIENT, LinkCounts, LinkStates


def test_every_cause_of_fetching_can_be_written_down() -> None:
    assert set(CAUSES) == {reason for reason in SkipReason if reason.startswith("fetch_")}
    assert set(CAUSES) > TRANSIENT


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_written_is_known(tmp_path: Path, kept: bool) -> None:
    states = LinkStates(tmp_path / "dead_links/rows" if kept else None)
    for row, cause in enumerate(CAUSES):
        assert states.cause(row, retry_after=60) is None  # of which nothing is known
        states.record(row, cause)
    for row, cause in enumerate(CAUSES):
        assert states.cause(row, retry_after=60) == cause
        assert states.cause(row, retry_after=0) == (None if cause in TRANSIENT else cause)
    states.record(2, SkipReason.FETCH_HASH)
    assert states.cause(2, retry_after=60) == SkipReason.FETCH_HASH
    states.record(2, None)
    assert states.cause(2, retry_after=60) is None


def die(states: LinkStates, row: int) -> None:
    states.record(row, SkipReason.FETCH_NOT_FOUND)


@pytest.mark.parametrize("kept", [True, False])
def test_forked_processes_tell_each_other(tmp_path: Path, kept: bool) -> None:
    states = LinkStates(tmp_path / "rows" if kept else None)
    processes = [multiprocessing.get_context("fork").Process(target=die, args=(states, n)) for n in (0, 9)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [states.cause(row, retry_after=60) for row in range(11)]
    assert [row for row, cause in enumerate(found) if cause] == [0, 9]


def test_others_find_it_by_its_file(tmp_path: Path) -> None:
    states = LinkStates(tmp_path / "rows")
    copy = pickle.loads(pickle.dumps(states))
    states.record(1, SkipReason.FETCH_HASH)
    assert copy.cause(1, retry_after=60) == SkipReason.FETCH_HASH
    assert LinkStates(tmp_path / "rows").cause(1, retry_after=60) == SkipReason.FETCH_HASH


def test_rows_are_counted_by_what_became_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfdit.data.urls.dead_links.RECORDS_AT_ONCE", 3)
    states = LinkStates(tmp_path / "rows")
    assert states.counts().as_dict() == {"alive": 0, "dead": {}}
    for row in (0, 3, 4, 17):
        states.record(row, None)
    for row in (1, 3, 20):
        states.record(row, SkipReason.FETCH_TIMEOUT)
    states.record(5, SkipReason.FETCH_HASH)
    assert states.counts().as_dict() == {"alive": 3, "dead": {"fetch_timeout": 3, "fetch_hash": 1}}


def test_a_code_without_a_name_is_asked_again(tmp_path: Path) -> None:
    states = LinkStates(tmp_path / "rows")
    (tmp_path / "rows").write_bytes(RECORD.pack(len(CAUSES) + 2, 1) + RECORD.pack(255, 1))
    assert [states.cause(row, retry_after=60) for row in (0, 1)] == [None, None]
    assert states.counts().as_dict() == {"alive": 0, "dead": {}}
    states.record(1, SkipReason.FETCH_HASH)
    assert states.cause(1, retry_after=60) == SkipReason.FETCH_HASH


def test_what_nothing_is_known_of_takes_no_room(tmp_path: Path) -> None:
    LinkStates(tmp_path / "rows").record(10**8, None)
    status = (tmp_path / "rows").stat()
    assert status.st_size == 5 * (10**8 + 1)
    assert status.st_blocks * 512 < 10**6


def test_counts_are_reported_by_cause() -> None:
    counts = LinkCounts(1, {"fetch_timeout": 2, "fetch_not_found": 1})
    counts.merge(LinkCounts(**counts.as_dict()))
    assert counts.summary() == "2 of 8 URLs alive; dead: 4 fetch_timeout, 2 fetch_not_found"
    dead = {"fetch_timeout": 4, "fetch_not_found": 2}
    assert counts.report() == {"urls": 8, "alive_share": 0.25, "alive": 2, "dead": dead}
    assert LinkCounts().report()["alive_share"] is None
