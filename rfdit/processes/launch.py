"""Starts one process per device from one command line, and ends them together."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import torch

from rfdit.processes.ending import joined
from rfdit.processes.rank import has_local_rank
from rfdit.processes.signals import die_with_parent
from rfdit.processes.workers import worker_death

# The variables that tell a process its rank; restored afterwards, since a sweep runs many jobs in one process.
RANK_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
INTERACTIVE = ("bash", "interactive")  # names of SLURM's jobs that are shells, in which nothing starts ranks
SECONDS_TO_END = 30  # for the other ranks, when this one is done or has failed
# Exit codes of ranks that a signal has stopped in an orderly way.
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1}
PARENT = "RFDIT_PARENT"  # the process that started a rank


def is_launched() -> bool:
    """True if torchrun, a scheduler, or rank 0 has started this process as one of several."""
    if has_local_rank():
        return True
    in_shell = os.environ.get("SLURM_JOB_NAME") in INTERACTIVE
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and not in_shell


def check_ranks(devices: int, nodes: int) -> None:
    """Raises ValueError for several machines without a launcher, and for one that started another number of ranks."""
    tasks = int(os.environ.get("SUBMITIT_LOCAL_NTASKS", "1"))  # these tasks have no address for a rendezvous
    if tasks > 1 and not is_launched():
        raise ValueError(
            f"hydra.launcher.tasks_per_node={tasks} of submitit_local would train {tasks} times in one folder; "
            "leave it at 1, since trainer.devices alone starts the ranks of one machine"
        )
    if nodes > 1 and not is_launched():
        raise ValueError(
            f"trainer.num_nodes={nodes} needs torchrun or a scheduler on each machine to start its ranks; "
            "without one use trainer.num_nodes=1"
        )
    started = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS"))
    if is_launched() and started is not None and int(started) != devices * nodes:
        raise ValueError(
            f"trainer.devices={devices} times trainer.num_nodes={nodes} is not the number of ranks that were "
            f"started, {started}; give those of each machine and the number of machines"
        )


class RankFailedError(ValueError):
    """Another rank failed and has printed why."""


@dataclass(frozen=True)
class FailedRank:
    """A rank that has ended with an error; code: as `subprocess.Popen` returns it, -9 for SIGKILL."""

    rank: int
    code: int

    @property
    def killed(self) -> bool:
        """True if a signal has ended it, so that it has printed nothing."""
        return self.code < 0

    def __str__(self) -> str:
        if self.killed:
            return f"rank {self.rank} was killed by {signal.Signals(-self.code).name}"
        return f"rank {self.rank} failed; its error is printed above"


class LocalRanks:
    """A context in which this process is rank 0 of `count` on this machine.

    command: starts another rank, which finds LOCAL_RANK set and starts none itself.
    count: nothing is started for 1, or where a launcher has started the ranks.
    launched: True if a launcher has.

    The others start with `start()`, so that an error in the configuration is printed once. A rank that
    fails ends all, so that none waits for it. Lightning's own launcher repeats the command line, which
    under Hydra's multirun is the whole sweep.
    """

    def __init__(self, *, command: Sequence[str], count: int) -> None:
        self.command = list(command)
        self.launched = is_launched()
        self.count = 1 if self.launched else count
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._before: dict[str, str | None] = {}
        self._over = threading.Event()
        self._threads = torch.get_num_threads()

    def __enter__(self) -> "LocalRanks":
        if PARENT in os.environ:
            _die_with(int(os.environ[PARENT]))
        self._before = {name: os.environ.get(name) for name in RANK_VARIABLES}
        self._grouped = torch.distributed.is_initialized()
        if self.count > 1 or self.launched:
            joined.set()
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
        """Start the other ranks, and a thread that watches them."""
        common = {PARENT: str(os.getpid()), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for rank in range(1, self.count):
            environment = os.environ | common | {"LOCAL_RANK": str(rank)}
            self._ranks.append(subprocess.Popen(self.command, env=environment))
        if self._ranks:
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def _watch(self) -> None:
        """End this process when another rank has failed, since it may wait for that rank for ever."""
        while not self._over.wait(0.5):
            if (failed := self._failed()) is not None:
                # A collective usually fails by itself when a rank has gone.
                if not self._over.wait(SECONDS_TO_END):
                    self._end(RuntimeError("another rank failed"))
                    print(f"error: {failed}", flush=True)
                    os._exit(1)
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        orderly = isinstance(error, SystemExit) and error.code in STOPPED
        failed = None if error is None or orderly else self._end(error)
        for rank in self._ranks:
            while rank.poll() is None:
                time.sleep(0.1)
        if error is None:
            failed = self._failed()
        if torch.distributed.is_initialized() and not self._grouped:
            torch.distributed.destroy_process_group()
        torch.set_num_threads(self._threads)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if failed is not None and (failed.killed or error is None or _is_of_collective(error)):
            # The error of this rank, if any, only reports that the other has gone.
            raise RankFailedError(str(failed)) from None

    def _failed(self) -> "FailedRank | None":
        """The first of the other ranks that has failed; one that was killed before one that has printed an error."""
        codes = [(rank, process.poll()) for rank, process in enumerate(self._ranks, 1)]
        failed = [
            FailedRank(rank, code) for rank, code in codes if code is not None and code not in (0, *STOPPED)
        ]
        return min(failed, key=lambda rank: not rank.killed, default=None)

    def _end(self, error: BaseException) -> "FailedRank | None":
        """End the other ranks, with time to print their errors; returns the first that failed by itself."""
        failed = None
        # A collective ends in a RuntimeError when another rank has gone.
        wait = SECONDS_TO_END if _is_of_collective(error) else 2
        for signal_, seconds in ((None, wait), (signal.SIGTERM, SECONDS_TO_END), (signal.SIGKILL, 10)):
            for rank in self._ranks:
                if signal_ is not None and rank.poll() is None:
                    rank.send_signal(signal_)
            until = time.monotonic() + seconds if self._ranks else 0
            enough = any if signal_ is None else all  # the first that ends has printed what was wrong
            while time.monotonic() < until and not enough(rank.poll() is not None for rank in self._ranks):
                time.sleep(0.1)
            if signal_ is None:
                failed = self._failed()
        return failed


def _is_of_collective(error: BaseException) -> bool:
    """True for an error that may only report that another rank has gone."""
    return isinstance(error, RuntimeError) and worker_death(error) is None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _die_with(parent: int) -> None:
    """Let this process end when `parent` is killed, since nothing else would end it."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
