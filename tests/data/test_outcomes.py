"""What is remembered of rows: by whom, for how long, and how it is counted."""

import multiprocessing
import pickle
from pathlib import Path

import pytest

from rfdit.data.outcomes import CAUSES, PASSING, RECORD, Outcomes, count_outcomes
from rfdit.data.skips import SkipReason


def test_every_cause_of_fetching_can_be_written_down() -> None:
    assert set(CAUSES) == {reason for reason in SkipReason if reason.startswith("fetch_")}
    assert set(CAUSES) > PASSING


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_written_is_known(tmp_path: Path, kept: bool) -> None:
    outcomes = Outcomes(tmp_path / "rot/rows" if kept else None)
    for row, cause in enumerate(CAUSES):
        assert outcomes.cause(row, ask_again=60) is None  # of which nothing is known
        assert outcomes.put(row, cause) is None
    for row, cause in enumerate(CAUSES):
        assert outcomes.cause(row, ask_again=60) == cause
        assert outcomes.cause(row, ask_again=0) == (None if cause in PASSING else cause)
    assert outcomes.put(2, SkipReason.FETCH_HASH) == CAUSES[2]
    assert outcomes.put(2, None) == SkipReason.FETCH_HASH
    assert outcomes.put(2, None) is None
    assert outcomes.cause(2, ask_again=60) is None


def die(outcomes: Outcomes, row: int) -> None:
    outcomes.put(row, SkipReason.FETCH_NOT_FOUND)


@pytest.mark.parametrize("kept", [True, False])
def test_forked_processes_tell_each_other(tmp_path: Path, kept: bool) -> None:
    outcomes = Outcomes(tmp_path / "rows" if kept else None)
    processes = [multiprocessing.get_context("fork").Process(target=die, args=(outcomes, n)) for n in (0, 9)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [outcomes.cause(row, ask_again=60) for row in range(11)]
    assert [row for row, cause in enumerate(found) if cause] == [0, 9]


def test_others_find_it_by_its_file(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path / "rows")
    copy = pickle.loads(pickle.dumps(outcomes))
    outcomes.put(1, SkipReason.FETCH_HASH)
    assert copy.cause(1, ask_again=60) == SkipReason.FETCH_HASH
    assert Outcomes(tmp_path / "rows").cause(1, ask_again=60) == SkipReason.FETCH_HASH


def test_rows_are_counted_by_what_became_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfdit.data.outcomes.AT_ONCE", 3)
    outcomes = Outcomes(tmp_path / "rows")
    assert count_outcomes(tmp_path / "rows") == (0, {})
    for row in (0, 3, 4, 17):
        outcomes.put(row, None)
    for row in (1, 3, 20):
        outcomes.put(row, SkipReason.FETCH_TIMEOUT)
    outcomes.put(5, SkipReason.FETCH_HASH)
    assert count_outcomes(tmp_path / "rows") == (3, {"fetch_timeout": 3, "fetch_hash": 1})


def test_a_code_without_a_name_is_asked_again(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path / "rows")
    (tmp_path / "rows").write_bytes(RECORD.pack(len(CAUSES) + 2, 1) + RECORD.pack(255, 1))
    assert [outcomes.cause(row, ask_again=60) for row in (0, 1)] == [None, None]
    assert count_outcomes(tmp_path / "rows") == (0, {})
    assert outcomes.put(1, SkipReason.FETCH_HASH) is None
    assert outcomes.cause(1, ask_again=60) == SkipReason.FETCH_HASH


def test_what_nothing_is_known_of_takes_no_room(tmp_path: Path) -> None:
    Outcomes(tmp_path / "rows").put(10**8, None)
    status = (tmp_path / "rows").stat()
    assert status.st_size == 5 * (10**8 + 1)
    assert status.st_blocks * 512 < 10**6
