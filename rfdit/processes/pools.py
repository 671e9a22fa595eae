"""Pools that end with the process that uses them: of daemon threads, and of spawned processes."""

import contextlib
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from typing import Any, TypeVar

from rfdit.processes.signals import hold_back_interrupt

T, R = TypeVar("T"), TypeVar("R")
MANY = 32  # items from which starting several processes pays off
MAX_PROCESSES = 16


class DaemonPool:
    """Runs calls in up to `threads` threads, in the order of submission.

    Python waits at its end for the threads of concurrent.futures, even in the middle of a long download; it
    does not wait for these.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._limit, self._name = threads, name
        self._threads: list[threading.Thread] = []
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """A future of the call's result, or of the exception that it raises."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        if len(self._threads) < self._limit:
            thread = threading.Thread(target=_work, args=(self._calls,), daemon=True, name=self._name)
            thread.start()
            self._threads.append(thread)
        return future

    def map(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results in order; every call starts as soon as a thread is free."""
        futures = [self.submit(lambda item=item: call(item)) for item in items]  # type: ignore[misc]
        yield from map(result_of, futures)

    def close(self) -> None:
        """Cancel the calls that have not begun; the threads end after their current call."""
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


def result_of(future: Future[R]) -> R:
    """Wait for a future in a way that Ctrl-C ends; returns its result, or raises its exception.

    While this thread starts another thread or a process, Ctrl-C reaches one of the others, and nothing
    wakes this one from a wait without a limit. After each second it sees what has come.
    """
    while not wait([future], timeout=1).done:
        pass
    return future.result()


def map_in_processes(call: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The results in order, computed by spawned processes if there are at least `MANY` items."""
    if len(items) < MANY:
        yield from map(call, items)
        return
    with _processes() as pool:
        # Ctrl-C reaches the whole process group; only this process acts on it, and not while it starts them.
        with hold_back_interrupt():
            futures = [pool.submit(call, item) for item in items]
        yield from map(result_of, futures)


@contextlib.contextmanager
def _processes() -> Iterator[ProcessPoolExecutor]:
    """Processes that are terminated if the work is interrupted."""
    others = set(multiprocessing.active_children())
    # Spawned: the threads of this process would not survive a fork.
    workers = min(len(os.sched_getaffinity(0)), MAX_PROCESSES)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
