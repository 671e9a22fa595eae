"""Fetching in the background of code that is not asynchronous."""

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rfdit.data.fetch import Fetcher, FetchSession

T = TypeVar("T")


class FetchThread:
    """A thread with an event loop and open connections, for as long as this object lives."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._loop = asyncio.new_event_loop()
        opened: concurrent.futures.Future[FetchSession] = concurrent.futures.Future()
        done = asyncio.Event()
        thread = threading.Thread(
            target=_run, args=(self._loop, fetcher, opened, done), daemon=True, name="rfdit-fetch"
        )
        thread.start()
        self._session = opened.result()
        self.close = weakref.finalize(self, _stop, self._loop, done, thread)

    def submit(self, work: Callable[[FetchSession], Awaitable[T]]) -> concurrent.futures.Future[T]:
        """Begins `work(session)`. Cancelling the future cancels it."""

        async def run() -> T:
            return await work(self._session)

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Calls `function` there, soon."""
        self._loop.call_soon_threadsafe(function)


def _run(
    loop: asyncio.AbstractEventLoop,
    fetcher: Fetcher,
    opened: "concurrent.futures.Future[FetchSession]",
    done: asyncio.Event,
) -> None:
    async def serve() -> None:
        try:
            async with fetcher.session() as session:
                opened.set_result(session)
                await done.wait()
                others = asyncio.all_tasks() - {asyncio.current_task()}
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)

    try:
        loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, done: asyncio.Event, thread: threading.Thread) -> None:
    if thread.is_alive():  # in a forked process it is not
        loop.call_soon_threadsafe(done.set)
        if thread is not threading.current_thread():  # where the garbage collector may run, too
            thread.join(timeout=5)
