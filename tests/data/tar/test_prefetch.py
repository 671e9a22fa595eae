"""Shards come before their samples are due, in order, and only as many as there is room for."""

import threading

import pytest

from rfdit.data.tar.prefetch import RemoteShard, prefetched
from tests.support.waiting import wait_until

SIZE = 10  # bytes of each shard


class Shards:
    """Shards of ten numbers each; `fetched` are those that were fetched, in order."""

    def __init__(self) -> None:
        self.fetched: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, number: int) -> RemoteShard | None:
        return RemoteShard(str(number // 10), SIZE, lambda: self._fetch(number // 10))

    def _fetch(self, shard: int) -> None:
        with self._lock:
            self.fetched.append(shard)


def test_every_shard_once_a_visit_and_the_numbers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfdit.data.tar.prefetch.LOOKAHEAD", 20)
    shards = Shards()
    numbers = [number for _ in range(4) for number in range(60)]
    for place, number in enumerate(prefetched(iter(numbers), shards, room=3 * SIZE)):
        assert number == numbers[place]
        wait_until(lambda place=place: len(shards.fetched) > place // 10)
    assert sorted(shards.fetched) == sorted([*range(6)] * 4)


def test_the_next_group_is_fetched_while_this_one_is_read() -> None:
    shards = Shards()
    ahead = prefetched(range(100), shards, room=6 * SIZE)
    assert next(ahead) == 0
    wait_until(lambda: set(shards.fetched) == set(range(6)))  # as many as there is room for
    for number in range(1, 11):
        assert next(ahead) == number
    wait_until(lambda: set(shards.fetched) == set(range(7)))  # the first is used up, and makes room


def test_the_shard_that_is_due_comes_in_any_case() -> None:
    shards = Shards()
    ahead = prefetched(range(30), shards, room=SIZE // 2)
    for number in range(30):
        assert next(ahead) == number
        wait_until(lambda number=number: number // 10 in shards.fetched)


def test_mixed_shards_stay_until_they_are_used_up() -> None:
    shards = Shards()
    # Two groups of two shards, whose numbers alternate.
    numbers = [n for i in range(10) for n in (i, 10 + i)] + [n for i in range(10) for n in (20 + i, 30 + i)]
    ahead = prefetched(numbers, shards, room=3 * SIZE)
    for place, number in enumerate(numbers):
        assert next(ahead) == number
        wait_until(lambda: {0, 1, 2} <= set(shards.fetched))
        if place < 18:
            assert 3 not in shards.fetched  # there is room for one shard of the next group only
    assert sorted(shards.fetched) == [0, 1, 2, 3]


def test_what_is_here_is_passed_on_at_once() -> None:
    taken = []

    def numbers() -> object:
        for number in range(5):
            taken.append(number)
            yield number

    ahead = prefetched(numbers(), lambda number: None, room=0)
    assert (next(ahead), taken) == (0, [0])


def test_closing_the_iterator_cancels_the_fetches_that_have_not_begun() -> None:
    begun, gate, others = [], threading.Event(), set(threading.enumerate())

    def shard(number: int) -> RemoteShard:
        return RemoteShard(str(number), SIZE, lambda: (begun.append(number), gate.wait()))

    ahead = prefetched(range(50), shard, room=50 * SIZE)
    next(ahead)
    wait_until(lambda: len(begun) == 4)
    pool = set(threading.enumerate()) - others
    assert len(pool) == 4
    ahead.close()
    gate.set()
    for thread in pool:
        thread.join()
    assert len(begun) == 4
