"""Ctrl-C ends a program with one line and exit code 130, whatever it is doing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = """
import os, signal, sys, time
from rfdit.processes.interrupt import ended_by_interrupt

def ctrl_c():
    signal.raise_signal(signal.SIGINT)

with ended_by_interrupt() as interrupt:
"""
LINE = "stopped by SIGINT\n"


def run(body: str, **variables: str) -> tuple[int, str]:
    """Exit code and output of a program with this body inside of `ended_by_interrupt`."""
    program = START + "".join(f"    {line}\n" for line in body.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "body",
    [
        # While it imports: nothing that an import does with exceptions matters.
        "try:\n    ctrl_c()\nexcept BaseException:\n    print('went on')",
        # While it works.
        "interrupt.raises()\nctrl_c()",
        # Where an exception becomes another one, or an exit.
        "interrupt.raises()\ntry:\n    ctrl_c()\nexcept BaseException:\n    raise OSError('the disk')",
        "interrupt.raises()\ntry:\n    ctrl_c()\nexcept BaseException:\n    sys.exit(1)",
        # The second one, where the first was lost.
        "interrupt.raises()\ntry:\n    ctrl_c()\nexcept BaseException:\n    ctrl_c()",
    ],
)
def test_it_ends_in_one_line(body: str) -> None:
    assert run(body) == (130, LINE)


def test_a_line_of_its_own_stays_the_only_one() -> None:
    ends = "interrupt.raises()\ntry:\n    ctrl_c()\nexcept KeyboardInterrupt:\n    print('mine')\n    sys.exit(130)"
    assert run(ends) == (130, "mine\n")


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_of_several_ranks_one_prints(variable: str) -> None:
    assert run("ctrl_c()", **{variable: "1"}) == (130, "")
    assert run("ctrl_c()", **{variable: "0"}) == (130, LINE)


def test_other_ends_are_left_alone() -> None:
    assert run("print('done')") == (0, "done\n")
    assert run("raise SystemExit('error: a sentence')") == (1, "error: a sentence\n")


def test_a_worker_that_was_just_forked_prints_nothing() -> None:
    body = (
        "interrupt.raises()\nif not os.fork():\n    ctrl_c()\nprint(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    assert run(body) == (0, "130\n")


def test_a_program_in_the_background_of_a_shell_is_ended_too() -> None:
    """A shell without job control lets such programs ignore SIGINT."""
    program = START + "    print('ready', flush=True)\n    time.sleep(600)\n"
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == (LINE, None)
    assert process.returncode == 130


def test_a_program_is_ready_for_it_before_it_imports_torch() -> None:
    program = "import rfdit.__main__, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"
    for script in ("train", "sample"):
        assert f'run("{script}")' in (ROOT / f"{script}.py").read_text()
