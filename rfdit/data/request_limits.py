"""How many requests are under way at once, and how long one may take."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class RequestSlots:
    """Lets `total` requests pass at once, of which `per_host` to one host.

    A request waits for its host first: those to a slow host never hold more than their own slots.
    """

    def __init__(self, *, total: int, per_host: int) -> None:
        self._all, self._per_host = asyncio.Semaphore(total), per_host
        self._hosts: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def one(self, host: str) -> AsyncIterator[None]:
        """Holds a slot."""
        self._users[host] += 1
        slots = self._hosts.setdefault(host, asyncio.Semaphore(self._per_host))
        try:
            async with slots, self._all:
                yield
        finally:
            self._users[host] -= 1
            if not self._users[host]:  # there are millions of hosts
                del self._users[host], self._hosts[host]


class Clock:
    """Seconds that are left; they pass only while `running`."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises TimeoutError inside when no time is left."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.left):
                yield
        finally:
            self.left -= time.monotonic() - began
