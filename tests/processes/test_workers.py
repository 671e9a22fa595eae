"""A DataLoader worker that dies is told in one sentence."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, IterableDataset

from rfdit.config.errors import explain_errors
from rfdit.processes.workers import worker_death
from tests.support.commands.processes import finish, start_training
from tests.support.waiting import wait_until


class Dying(IterableDataset[int]):
    """A data set whose worker ends in the middle, as one does that the system kills for its memory."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __iter__(self) -> Iterator[int]:
        yield 0
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told"),
    # PyTorch knows the signal only if it has noticed the death before its own time limit.
    [("killed", r"(was killed by a signal \(Killed\)|ended unexpectedly)"), ("gone", "ended unexpectedly")],
)
@pytest.mark.parametrize(("command", "setting"), [("train", "data.num_workers"), ("encode", "num_workers")])
def test_the_death_of_a_worker_is_a_sentence(how: str, told: str, command: str, setting: str) -> None:
    with pytest.raises(SystemExit) as ended, explain_errors(command):
        list(DataLoader(Dying(how), batch_size=None, num_workers=1))
    expected = rf"error: a DataLoader worker \(process \d+\) {told}; if memory ran out, give a smaller {setting} or .*"
    assert re.fullmatch(expected, str(ended.value.code))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_its_batch_is_received(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = iter(DataLoader(list(range(100)), num_workers=1))

    def broken(**_: object) -> None:
        raise error

    monkeypatch.setattr(batches._data_queue, "get", broken)  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as ended, explain_errors("train"):
        list(batches)
    assert str(ended.value.code).startswith("error: a DataLoader worker ended unexpectedly; if memory")


def test_other_errors_are_not_deaths() -> None:
    assert worker_death(ConnectionResetError()) is None
    assert worker_death(None) is None
    assert worker_death(RuntimeError("CUDA out of memory")) is None
    assert worker_death(ValueError("DataLoader worker (pid 3) is killed by signal: Killed. ")) is None


@pytest.mark.slow
def test_training_ends_in_a_sentence(tmp_path: Path) -> None:
    process = start_training("data.num_workers=1", "trainer.max_steps=100000", "run_dir=run", cwd=tmp_path)

    def workers() -> list[int]:
        metrics = tmp_path / "run/metrics.csv"  # it trains
        if not metrics.exists():
            return []
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    wait_until(workers, process)
    os.kill(workers()[0], signal.SIGKILL)
    said = finish(process, code=1)
    assert "Traceback" not in said
    assert re.fullmatch(
        r"error: a DataLoader worker (\(process \d+\) )?(was killed by|ended unexpectedly).*",
        said.splitlines()[-1],
    )
