"""Shards come before their samples are due, in order, and only as many as there is room for."""

import threading
import time
from collections.abc import Callable

import pytest

from rfdit.data.prefetch import RemoteShard, fetched_ahead

SIZE = 10  # bytes of each shard


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Shards:
    """Shards of ten numbers each; `asked` are those that were fetched, in order."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, number: int) -> RemoteShard | None:
        return RemoteShard(str(number // 10), SIZE, lambda: self._fetch(number // 10))

    def _fetch(self, shard: int) -> None:
        with self._lock:
            self.asked.append(shard)


def test_every_shard_once_a_visit_and_the_numbers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfdit.data.prefetch.LOOKAHEAD", 20)
    shards = Shards()
    numbers = [number for _ in range(4) for number in range(60)]
    for place, number in enumerate(fetched_ahead(iter(numbers), shards, room=3 * SIZE)):
        assert number == numbers[place]
        eventually(lambda place=place: len(shards.asked) > place // 10)
    assert sorted(shards.asked) == sorted([*range(6)] * 4)


def test_the_next_group_is_fetched_while_this_one_is_read() -> None:
    shards = Shards()
    ahead = fetched_ahead(range(100), shards, room=6 * SIZE)
    assert next(ahead) == 0
    eventually(lambda: set(shards.asked) == set(range(6)))  # as many as there is room for
    for number in range(1, 11):
        assert next(ahead) == number
    eventually(lambda: set(shards.asked) == set(range(7)))  # the first is used up, and makes room


def test_the_shard_that_is_due_comes_in_any_case() -> None:
    shards = Shards()
    ahead = fetched_ahead(range(30), shards, room=SIZE // 2)
    for number in range(30):
        assert next(ahead) == number
        eventually(lambda number=number: number // 10 in shards.asked)


def test_mixed_shards_stay_until_they_are_used_up() -> None:
    shards = Shards()
    # Two groups of two shards, whose numbers alternate.
    numbers = [n for i in range(10) for n in (i, 10 + i)] + [n for i in range(10) for n in (20 + i, 30 + i)]
    ahead = fetched_ahead(numbers, shards, room=3 * SIZE)
    for place, number in enumerate(numbers):
        assert next(ahead) == number
        eventually(lambda: {0, 1, 2} <= set(shards.asked))
        if place < 18:
            assert 3 not in shards.asked  # there is room for one shard of the next group only
    assert sorted(shards.asked) == [0, 1, 2, 3]


def test_what_is_here_is_passed_on_at_once() -> None:
    taken = []

    def numbers() -> object:
        for number in range(5):
            taken.append(number)
            yield number

    ahead = fetched_ahead(numbers(), lambda number: None, room=0)
    assert (next(ahead), taken) == (0, [0])


def test_nothing_is_fetched_for_who_has_left() -> None:
    begun, gate = [], threading.Event()

    def shard(number: int) -> RemoteShard:
        return RemoteShard(str(number), SIZE, lambda: (begun.append(number), gate.wait()))

    ahead = fetched_ahead(range(50), shard, room=50 * SIZE)
    next(ahead)
    eventually(lambda: len(begun) == 4)
    ahead.close()
    gate.set()
    time.sleep(0.2)
    assert len(begun) == 4
