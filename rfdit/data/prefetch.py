"""What makes shards come before their samples are due."""

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from rfdit.data.daemon_pool import DaemonPool
from rfdit.data.remote import UnreadableShardError

# Samples of a process whose shards are fetched before they are due, if there is room: at first, and after
# a while, since finding so many takes time in which the first batch could be there.
AT_FIRST, LOOKAHEAD = 2048, 65_536
FETCHES = 4  # shards fetched at once by a process


@dataclass(frozen=True)
class RemoteShard:
    """A shard that is elsewhere. size: in bytes. fetch: brings it here, unless it is."""

    name: str
    size: int
    fetch: Callable[[], object] = field(compare=False)


def fetched_ahead(
    numbers: Iterable[int], remote_shard: Callable[[int], RemoteShard | None], *, room: int
) -> Iterator[int]:
    """The numbers, whose shards are being fetched while earlier numbers are passed on.

    remote_shard: of a number; None if its shard is here.
    room: bytes of the shards that are fetched and still needed. The shard that is due next comes in any
        case; more only as far as they fit, so that none is evicted for another that is needed later.
    """
    window, ahead = _Window(room), min(AT_FIRST, LOOKAHEAD)
    try:
        for number in numbers:
            shard = remote_shard(number)
            if shard is None and not window:
                yield number
                continue
            window.append(number, shard)
            if len(window) > ahead or window.is_full:
                yield window.popleft()
                ahead = min(ahead + 1, LOOKAHEAD)
        while window:
            yield window.popleft()
    finally:
        window.close()


class _Window:
    """Numbers in order, and which of their shards are being fetched."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._begun: deque[tuple[int, RemoteShard | None]] = deque()
        self._waiting: deque[tuple[int, RemoteShard | None]] = deque()
        self._needed: Counter[RemoteShard] = Counter()  # by the numbers that have begun
        self._held = 0  # bytes of these
        self._pool: DaemonPool | None = None

    def __len__(self) -> int:
        return len(self._begun) + len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for the next shard."""
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
                self._held -= shard.size
        self._begin()
        return number

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _begin(self) -> None:
        """Begins to fetch, in order, as far as there is room."""
        while self._waiting:
            shard = self._waiting[0][1]
            if shard is not None and shard not in self._needed:
                if self._begun and self._held + shard.size > self._room:
                    return
                self._pool = self._pool or DaemonPool(FETCHES, name="rfdit-spool")
                self._pool.submit(lambda shard=shard: _quietly(shard))  # type: ignore[misc]
                self._held += shard.size
            if shard is not None:
                self._needed[shard] += 1
            self._begun.append(self._waiting.popleft())


def _quietly(shard: RemoteShard) -> None:
    # Whoever needs the shard will ask for it again, and be told.
    with contextlib.suppress(UnreadableShardError, ValueError):
        shard.fetch()
