"""A thread that fetches in the background of synchronous code."""

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from rfdit.data.urls.fetch import Fetcher

if TYPE_CHECKING:
    from rfdit.data.urls.session import FetchSession

T = TypeVar("T")
_Opened = concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, "FetchSession", asyncio.Event]]


class FetchThread:
    """A thread with an event loop and open connections, which lives as long as this object."""

    def __init__(self, fetcher: Fetcher) -> None:
        opened: _Opened = concurrent.futures.Future()
        work = _serve(fetcher, opened)
        thread = threading.Thread(target=asyncio.run, args=(work,), daemon=True, name="rfdit-fetch")
        thread.start()
        self._loop, self._session, done = opened.result()
        self.close = weakref.finalize(self, _stop, self._loop, done, thread)

    def submit(self, work: Callable[["FetchSession"], Awaitable[T]]) -> concurrent.futures.Future[T]:
        """Begin `work(session)`; cancelling the future cancels it."""

        async def run() -> T:
            return await work(self._session)

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call `function` in the thread, soon."""
        self._loop.call_soon_threadsafe(function)


async def _serve(fetcher: Fetcher, opened: _Opened) -> None:
    """Hold the session open until the event is set."""
    done = asyncio.Event()
    try:
        async with fetcher.session() as session:
            opened.set_result((asyncio.get_running_loop(), session, done))
            await done.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
    except Exception as error:
        if opened.done():
            raise
        opened.set_exception(error)


def _stop(loop: asyncio.AbstractEventLoop, done: asyncio.Event, thread: threading.Thread) -> None:
    if thread.is_alive():  # in a forked process it is not
        loop.call_soon_threadsafe(done.set)
        if thread is not threading.current_thread():  # where the garbage collector may run, too
            thread.join(timeout=5)
