"""The way in which OpenMP's threads wait is set before OpenMP is loaded, unless a user has chosen one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rfdit.processes.threads import OWN, WAITING

ROOT = Path(__file__).parents[2]


def printed(program: str, **own: str) -> str:
    """The output of a program where only these of the variables are set."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment | own, text=True, check=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.stdout


def test_it_is_set_before_torch_is_imported() -> None:
    program = "import rfdit, os, sys; print(*(os.environ[n] for n in {}), 'torch' in sys.modules)"
    assert printed(program.format(list(WAITING))) == f"{' '.join(WAITING.values())} False\n"


@pytest.mark.parametrize("name", OWN)
def test_a_setting_of_the_users_own_is_left_alone(name: str) -> None:
    program = f"import rfdit, os; print({{n: os.environ[n] for n in {OWN} if n in os.environ}})"
    assert printed(program, **{name: "7"}) == f"{{'{name}': '7'}}\n"


def test_these_tests_have_it() -> None:
    assert os.environ.items() >= WAITING.items() or any(name in os.environ for name in OWN)


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings libgomp for Linux")
def test_libgomp_reads_it() -> None:
    program = (
        "import rfdit, ctypes, importlib.util as u, pathlib as p\n"
        "ctypes.CDLL(str(next((p.Path(u.find_spec('torch').origin).parent / 'lib').glob('libgomp*'))))"
    )
    shown = printed(program, OMP_DISPLAY_ENV="VERBOSE")
    assert f"GOMP_SPINCOUNT = '{WAITING['GOMP_SPINCOUNT']}'" in shown
