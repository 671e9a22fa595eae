"""Commands in processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.support.commands.command_line import FEW_SHAPES, fast

ROOT = Path(__file__).parents[3]
# A run of moments that is the same to the last bit, whatever became of it in between.
SETTINGS = [
    "model.width=24", "model.num_heads=2", "model.depth=1", "trainer.log_every_n_steps=1", "callbacks.grid=null",
    "trainer.val_every_n_steps=null", "callbacks.checkpoints.every_n_steps=1", "text_encoder.width=16",
    "trainer.precision=fp32", "callbacks.throughput=null", "logger.tensorboard=null", "trainer.accelerator=cpu",
    "data.num_workers=0", FEW_SHAPES,
]  # fmt: skip


def environment(cache: Path | None = None) -> dict[str, str]:
    """The environment of a script in a process of its own. cache: a folder for it; None is this process's."""
    own = {} if cache is None else {"XDG_CACHE_HOME": str(cache)}
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | own


def start(*command: str | Path, cwd: Path, **variables: str) -> "subprocess.Popen[str]":
    """A Python program in a process group of its own; all that it prints comes through one pipe."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment() | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def start_training(*overrides: str, cwd: Path, module: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """train.py with the settings of `CommandLine.train`. module: `-m ...` that runs it."""
    return start(*module, ROOT / "train.py", *fast(*overrides), cwd=cwd)


def start_sampling(*overrides: str, cwd: Path, threads: str = "1") -> "subprocess.Popen[str]":
    cache = str(cwd / "cache")
    return start(
        ROOT / "sample.py",
        "accelerator=cpu",
        *overrides,
        cwd=cwd,
        XDG_CACHE_HOME=cache,
        OMP_NUM_THREADS=threads,
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """The output of a run; its process group is ended with it."""
    try:
        output = process.communicate(timeout=1200)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, output[-3000:]
    return output


def alive(pid: int) -> bool:
    """True while a process runs; a zombie, which its parent has not waited for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_all(process: "subprocess.Popen[str]") -> None:
    """The launcher, its ranks and their workers: torchrun gives the ranks sessions of their own."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
    family = {process.pid}
    for _ in range(4):
        family |= {pid for pid, parent in parents if parent in family}
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=120)


# Holds the lock, and has a child that outlives it as DataLoader workers may.
HOLDER = """
import os, sys, time
from pathlib import Path
from rfdit.storage.locks import only_process

with only_process(Path(sys.argv[1]), setting="out"):
    if child := os.fork():
        print(child, flush=True)
    time.sleep(600)
"""


def lock_holder(lock: Path) -> AbstractContextManager["subprocess.Popen[str]"]:
    """A process that holds the lock until it is killed."""
    return process_with_child(HOLDER, str(lock))


@contextmanager
def process_with_child(program: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A Python program that prints the number of its child once both are at work; both are killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.communicate(timeout=120)
