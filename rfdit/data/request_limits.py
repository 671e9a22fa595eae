"""How many requests are under way at once, how long one may take, and how much memory all of them."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager


class RequestSlots:
    """Lets `total` requests pass at once, of which `per_host` to one host.

    A request waits for its host first: those to a slow host never hold more than their own slots.
    """

    def __init__(self, *, total: int, per_host: int) -> None:
        self._all, self._per_host = asyncio.Semaphore(total), per_host
        self._hosts: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def one(self, host: str) -> AsyncIterator[AsyncExitStack]:
        """Holds a slot, until it is closed."""
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
    """Seconds that are left; they pass only while `running` and not `paused`."""

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
        """While `running`: for what the server cannot help."""
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
    """Lets samples that are worked on ahead hold `limit` bytes together, and the due one what it needs.

    They have places, 0, 1, ..., and come due in this order. Who waits for room gets it when another
    sample is done with, or when it is due itself: so the order cannot lock up, as long as who waits
    holds nothing that the due one needs. Not thread-safe.
    """

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._limit, self._due = limit, 0
        self._held: Counter[int] = Counter()
        self._changed = asyncio.Event()

    async def take(self, place: int, size: int) -> None:
        """Waits for room for `size` more bytes."""
        while not self.has_room(place, size):
            self._changed.clear()
            await self._changed.wait()
        self._held[place] += size
        self.total += size

    def has_room(self, place: int, size: int) -> bool:
        """Whether `take` would not wait."""
        return place <= self._due or self.total + size <= self._limit

    def give_back(self, place: int) -> None:
        """Whatever a place holds."""
        self.total -= self._held.pop(place, 0)
        self._changed.set()

    def advance(self) -> None:
        """The due sample is done with, and the next one due."""
        self.give_back(self._due)
        self._due += 1


class Portion:
    """What one place of a budget holds; by default, of a budget that is nobody else's."""

    def __init__(self, budget: ByteBudget | None = None, place: int = 0) -> None:
        self._budget, self._place = budget or ByteBudget(0), place

    async def take(self, size: int) -> None:
        """Waits for room for `size` more bytes."""
        await self._budget.take(self._place, size)

    def has_room(self, size: int) -> bool:
        """Whether `take` would not wait."""
        return self._budget.has_room(self._place, size)

    def reset(self) -> None:
        """Holds nothing any more."""
        self._budget.give_back(self._place)
