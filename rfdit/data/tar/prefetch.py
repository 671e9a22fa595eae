"""Remote shards that are copied before their samples are due."""

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from rfdit.data.tar.remote import UnreadableShardError
from rfdit.processes.pools import DaemonPool

# The number of samples ahead for which a process fetches shards, if there is room. The window starts small and
# grows by one with each sample, since looking up a whole window first would delay the first batch.
FIRST_LOOKAHEAD, LOOKAHEAD = 2048, 65_536
FETCHES = 4  # shards that a process fetches at the same time


@dataclass(frozen=True)
class RemoteShard:
    """A shard to be copied. size: in bytes. fetch: copies it, unless there is a copy."""

    name: str
    size: int
    fetch: Callable[[], object] = field(compare=False)


def prefetched(
    numbers: Iterable[int], remote_shard: Callable[[int], RemoteShard | None], *, room: int
) -> Iterator[int]:
    """Yield the numbers; meanwhile the shards of later ones are fetched.

    remote_shard: the shard of a number; None if it is local.
    room: limit on the bytes of shards that are fetched and still needed. The next shard is always fetched,
        and further ones only if they fit, so that no shard is evicted for one that is needed later.
    """
    window, lookahead = _Window(room), min(FIRST_LOOKAHEAD, LOOKAHEAD)
    try:
        for number in numbers:
            shard = remote_shard(number)
            if shard is None and not window:
                yield number
                continue
            window.append(number, shard)
            if len(window) > lookahead or window.is_full:
                yield window.popleft()
                lookahead = min(lookahead + 1, LOOKAHEAD)
        while window:
            yield window.popleft()
    finally:
        window.close()


class _Window:
    """The numbers in order, and the fetches of their shards."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._begun: deque[tuple[int, RemoteShard | None]] = deque()
        self._waiting: deque[tuple[int, RemoteShard | None]] = deque()
        self._needed: Counter[RemoteShard] = Counter()  # by the numbers in `_begun`
        self._needed_bytes = 0
        self._pool: DaemonPool | None = None

    def __len__(self) -> int:
        return len(self._begun) + len(self._waiting)

    @property
    def is_full(self) -> bool:
        """True if there is no room for the next shard."""
        return bool(self._waiting)

    def append(self, number: int, shard: RemoteShard | None) -> None:
        self._waiting.append((number, shard))
        self._begin()

    def popleft(self) -> int:
        number, shard = self._begun.popleft()
        if shard is not None:
            self._needed[shard] -= 1
            if not self._needed[shard]:
                del self._needed[shard]
                self._needed_bytes -= shard.size
        self._begin()
        return number

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _begin(self) -> None:
        """Start fetches in order, as far as there is room."""
        while self._waiting:
            shard = self._waiting[0][1]
            if shard is not None and shard not in self._needed:
                if self._begun and self._needed_bytes + shard.size > self._room:
                    return
                self._pool = self._pool or DaemonPool(FETCHES, name="rfdit-spool")
                self._pool.submit(lambda shard=shard: _fetch(shard))  # type: ignore[misc]
                self._needed_bytes += shard.size
            if shard is not None:
                self._needed[shard] += 1
            self._begun.append(self._waiting.popleft())


def _fetch(shard: RemoteShard) -> None:
    # The reader that needs the shard asks for it again, and gets the error then.
    with contextlib.suppress(UnreadableShardError, ValueError):
        shard.fetch()
