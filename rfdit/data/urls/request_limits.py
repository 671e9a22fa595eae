"""Limits of requests: how many run at once, how long one may take, and how much memory all may hold."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager


class RequestSlots:
    """Allows `total` requests at once, `per_host` of them to one host.

    A request waits for its host first, so those to a slow host never hold more than their own slots.
    """

    def __init__(self, *, total: int, per_host: int) -> None:
        self._all, self._per_host = asyncio.Semaphore(total), per_host
        self._hosts: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def slot(self, host: str) -> AsyncIterator[AsyncExitStack]:
        """Hold a slot until the stack is closed."""
        self._users[host] += 1
        slots = self._hosts.setdefault(host, asyncio.Semaphore(self._per_host))
        try:
            async with AsyncExitStack() as slot:
                await slot.enter_async_context(slots)
                await slot.enter_async_context(self._all)
                yield slot
        finally:
            self._users[host] -= 1
            if not self._users[host]:  # there are millions of hosts
                del self._users[host], self._hosts[host]


class Clock:
    """Counts down `left` seconds while `running` and not `paused`."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self._began = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises TimeoutError inside when no time is left."""
        self._began = time.monotonic()
        try:
            async with asyncio.timeout(self.left) as self._timeout:
                yield
        finally:
            self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside `running`, for waits that the server does not cause."""
        self._stop()
        self._timeout.reschedule(None)
        try:
            yield
        finally:
            self._began = time.monotonic()
            self._timeout.reschedule(asyncio.get_running_loop().time() + self.left)

    def _stop(self) -> None:
        self.left -= time.monotonic() - self._began


class ByteBudget:
    """Lets samples that are fetched ahead hold `limit` bytes together; the due sample may exceed it.

    Samples have positions 0, 1, ... and come due in this order. One that waits for room gets it when
    another sample is consumed, or when it is due itself. There is thus no deadlock as long as a waiting
    sample holds nothing that the due one needs. Not thread-safe.
    """

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._limit, self._due = limit, 0
        self._held: Counter[int] = Counter()
        self._changed = asyncio.Event()

    async def take(self, position: int, size: int) -> None:
        """Wait for room for `size` more bytes."""
        while not self.has_room(position, size):
            self._changed.clear()
            await self._changed.wait()
        self._held[position] += size
        self.total += size

    def has_room(self, position: int, size: int) -> bool:
        """True if `take` would return at once."""
        return position <= self._due or self.total + size <= self._limit

    def give_back(self, position: int) -> None:
        """Release all bytes of a position."""
        self.total -= self._held.pop(position, 0)
        self._changed.set()

    def advance(self) -> None:
        """Release the due sample, which is consumed; the next one is due."""
        self.give_back(self._due)
        self._due += 1


class Reservation:
    """The bytes that one position of a budget holds; without a budget, one of its own."""

    def __init__(self, budget: ByteBudget | None = None, position: int = 0) -> None:
        self._budget, self._position = budget or ByteBudget(0), position

    async def take(self, size: int) -> None:
        """Wait for room for `size` more bytes."""
        await self._budget.take(self._position, size)

    def has_room(self, size: int) -> bool:
        """True if `take` would return at once."""
        return self._budget.has_room(self._position, size)

    def give_back(self) -> None:
        """Release all bytes."""
        self._budget.give_back(self._position)
