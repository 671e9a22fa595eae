"""One process per device, all from one command line."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import torch

# What tells a process its place; all are put back afterwards, since a sweep runs many jobs in one process.
PLACE = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
INTERACTIVE = ("bash", "interactive")  # names of SLURM's jobs that are shells, in which nothing places ranks
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal for a process whose parent has died
SECONDS_TO_END = 30  # that the other ranks get when this one is done or has failed
# Exit codes of ranks that a signal has ended in good order.
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM}
PARENT = "RFDIT_PARENT"  # the process that started a rank


def is_placed() -> bool:
    """Whether torchrun, a scheduler, or rank 0 has started this process as one of several."""
    if "LOCAL_RANK" in os.environ:
        return True
    in_shell = os.environ.get("SLURM_JOB_NAME") in INTERACTIVE
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and not in_shell


def check_ranks(devices: int, nodes: int) -> None:
    """Raises ValueError for several machines without a launcher, and where one has started another number of ranks."""
    tasks = int(os.environ.get("SUBMITIT_LOCAL_NTASKS", "1"))  # which say nothing that ranks could meet by
    if tasks > 1 and not is_placed():
        raise ValueError(
            f"hydra.launcher.tasks_per_node={tasks} of submitit_local would train {tasks} times in one folder; "
            "leave it at 1, since trainer.devices alone starts the ranks of one machine"
        )
    if nodes > 1 and not is_placed():
        raise ValueError(
            f"trainer.num_nodes={nodes} needs torchrun or a scheduler on each machine to start its ranks; "
            "without one use trainer.num_nodes=1"
        )
    placed = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS"))
    if is_placed() and placed is not None and int(placed) != devices * nodes:
        raise ValueError(
            f"trainer.devices={devices} times trainer.num_nodes={nodes} is not the number of ranks that were "
            f"started, {placed}; give those of each machine and the number of machines"
        )


class RankFailedError(ValueError):
    """Another rank failed, and said why."""


class LocalRanks:
    """A context in which this process is rank 0 of `count` on this machine.

    command: starts another rank; it must not start ranks in turn, which LOCAL_RANK tells it.
    count: 1, or a launcher that has placed this process already, makes the context start nothing.
    placed: whether that was a launcher.

    The others start with `start()`, so that what is wrong with a configuration is said once. A rank
    that fails ends all: none is left waiting for it. Lightning's own launcher repeats the command line,
    which under Hydra's multirun is the whole sweep.
    """

    def __init__(self, *, command: Sequence[str], count: int) -> None:
        self.command = list(command)
        self.placed = is_placed()
        self.count = 1 if self.placed else count
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._before: dict[str, str | None] = {}
        self._over = threading.Event()
        self._threads = torch.get_num_threads()

    def __enter__(self) -> "LocalRanks":
        if PARENT in os.environ:
            _die_with(int(os.environ[PARENT]))
        self._before = {name: os.environ.get(name) for name in PLACE}
        self._grouped = torch.distributed.is_initialized()
        if self.count > 1:
            threads = max(1, self._threads // self.count)
            os.environ |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(_free_port()),
                "NODE_RANK": "0",
                "LOCAL_RANK": "0",
                "WORLD_SIZE": str(self.count),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            }
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        return self

    def start(self) -> None:
        """Starts the other ranks, and a watch over them."""
        place = {PARENT: str(os.getpid()), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for rank in range(1, self.count):
            environment = os.environ | place | {"LOCAL_RANK": str(rank)}
            self._ranks.append(subprocess.Popen(self.command, env=environment))
        if self._ranks:
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def _watch(self) -> None:
        """Ends this process when another rank has failed: it may wait for that one for ever."""
        while not self._over.wait(0.5):
            for rank in self._ranks:
                if rank.poll() not in (None, 0, *STOPPED):
                    # A collective usually fails by itself when a rank has gone.
                    if not self._over.wait(SECONDS_TO_END):
                        print(f"error: rank {self._ranks.index(rank) + 1} failed; this one ends", flush=True)
                        self._end(RuntimeError("another rank failed"))
                        os._exit(1)
                    return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        in_order = isinstance(error, SystemExit) and error.code in STOPPED
        failed = None if error is None or in_order else self._end(error)
        for rank in self._ranks:
            rank.wait()
        if torch.distributed.is_initialized() and not self._grouped:
            torch.distributed.destroy_process_group()
        torch.set_num_threads(self._threads)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if failed is not None and isinstance(error, RuntimeError):
            # This one only found that it was alone.
            raise RankFailedError(f"rank {failed} failed; what it said is above") from None

    def _end(self, error: BaseException) -> int | None:
        """Ends the other ranks, with time for what they have to say; the first that failed by itself."""
        failed = None
        wait = SECONDS_TO_END if isinstance(error, RuntimeError) else 2  # one that has gone ends collectives
        for signal_, seconds in ((None, wait), (signal.SIGTERM, SECONDS_TO_END), (signal.SIGKILL, 10)):
            for rank in self._ranks:
                if signal_ is not None and rank.poll() is None:
                    rank.send_signal(signal_)
            until = time.monotonic() + seconds if self._ranks else 0
            enough = any if signal_ is None else all  # the first that ends says what was wrong
            while time.monotonic() < until and not enough(rank.poll() is not None for rank in self._ranks):
                time.sleep(0.1)
            if signal_ is None:
                codes = enumerate((rank.poll() for rank in self._ranks), 1)
                failed = next((i for i, code in codes if code not in (None, 0, *STOPPED)), None)
        return failed


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _die_with(parent: int) -> None:
    """Ends this process when `parent` is killed: nobody else would."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
