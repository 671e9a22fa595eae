"""A bounded cache in memory."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LRU(Generic[K, V]):
    """Keeps the `size` most recently used entries; 0 keeps nothing.

    evicted: is called with each value that is evicted.
    """

    def __init__(self, size: int, *, evicted: Callable[[V], object] | None = None) -> None:
        self.size = size
        self._evicted = evicted
        self._entries: OrderedDict[K, V] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: K) -> V:
        """An entry, which becomes the most recently used; raises KeyError if it is missing."""
        self._entries.move_to_end(key)
        return self._entries[key]

    def __setitem__(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        self.shrink(self.size)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """An entry, made if it is missing."""
        if key in self._entries:
            return self[key]
        self[key] = value = make()
        return value

    def shrink(self, size: int) -> None:
        """Evict the least recently used entries until `size` are left."""
        while len(self._entries) > size:
            _, value = self._entries.popitem(last=False)
            if self._evicted is not None:
                self._evicted(value)
