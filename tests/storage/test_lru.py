"""A bounded cache keeps what was used last."""

import pytest

from rfdit.storage.lru import LRU


def test_the_least_recently_used_is_evicted() -> None:
    evicted: list[int] = []
    cache: LRU[str, int] = LRU(2, evicted=evicted.append)
    cache["a"], cache["b"] = 1, 2
    assert cache["a"] == 1  # which makes b the older one
    cache["c"] = 3
    assert evicted == [2]
    assert "b" not in cache
    with pytest.raises(KeyError):
        cache["b"]
    cache.shrink(0)
    assert evicted == [2, 1, 3]


def test_what_is_missing_is_made_once() -> None:
    cache: LRU[str, list[int]] = LRU(1)
    assert cache.get_or_make("a", list) is cache.get_or_make("a", list)


def test_no_size_keeps_nothing() -> None:
    cache: LRU[str, int] = LRU(0)
    assert cache.get_or_make("a", lambda: 1) == 1
    assert len(cache) == 0
