"""Threads that do not delay the end of a process."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T, R = TypeVar("T"), TypeVar("R")


class DaemonPool:
    """Makes calls in up to `threads` threads, in the order asked.

    The threads of concurrent.futures are waited for when Python ends, even if they are in the middle of
    a download of minutes; these are not.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._limit, self._name = threads, name
        self._threads: list[threading.Thread] = []
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Its result, or what it raises, will be the future's."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        if len(self._threads) < self._limit:
            thread = threading.Thread(target=_work, args=(self._calls,), daemon=True, name=self._name)
            thread.start()
            self._threads.append(thread)
        return future

    def map(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results in order; all calls are begun as soon as threads are free."""
        futures = [self.submit(lambda item=item: call(item)) for item in items]  # type: ignore[misc]
        for future in futures:
            yield future.result()

    def close(self) -> None:
        """Drops what has not begun; the threads end after the calls they are at."""
        while True:
            try:
                dropped = self._calls.get_nowait()
            except queue.Empty:
                break
            if dropped is not None:
                dropped[0].cancel()
        for _ in self._threads:
            self._calls.put(None)

    def __enter__(self) -> "DaemonPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _work(calls: "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
    while (task := calls.get()) is not None:
        future, call = task
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
