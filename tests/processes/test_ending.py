"""The end of a process that has been one of several ranks."""

import subprocess
import sys
from pathlib import Path

import pytest

from rfdit.processes.ending import _exit_code

# A collective of the other rank's is still awaited by a thread when the program has ended.
LATE = """
import atexit, sys, time
import torch, torch.distributed as dist
from rfdit.processes.ending import ended_as_rank, joined

kept = []

def main(rank, store, how):
    store = dist.FileStore(store, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    kept.append(dist.new_group([0, 1]))
    dist.all_reduce(torch.ones(1000))
    if rank == 0:
        time.sleep(0.4)
        dist.all_reduce(torch.ones(1000))
        time.sleep(1)
    else:
        work = dist.all_reduce(torch.ones(1000), async_op=True)
        work.get_future().then(lambda _: None)
        joined.set()
        atexit.register(print, "tidied up")
        if how != "None":
            raise eval(how)

with ended_as_rank():
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("error", "code"), [("None", 0), ("SystemExit(143)", 143)])
def test_a_late_thread_of_a_collective_does_not_abort_it(error: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "late.py"), str(rank), str(tmp_path / "store"), error],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    out, _ = ranks[1].communicate()
    ranks[0].communicate()
    assert (ranks[1].returncode, out) == (code, "tidied up\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SystemExit(), 0, ""),
        (SystemExit(143), 143, ""),
        (SystemExit("error: no"), 1, "error: no\n"),
        (ValueError("bad"), 1, "ValueError: bad\n"),
    ],
)
def test_the_exit_code_and_the_message_are_python_s(
    error: BaseException,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # torch.distributed's adds the rank
    assert _exit_code(error) == code
    assert capsys.readouterr().err == said
