"""Without the packages of the extra `urls`, everything but data=laion_urls works."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = "import sys; sys.modules['aiohttp'] = sys.modules['pyarrow'] = None\n"


def run(program: str, *arguments: str) -> str:
    """The output of a program in an interpreter without these packages."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + program, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_missing_package_is_one_clear_sentence() -> None:
    program = """
import importlib, pkgutil, rfdit.data
for module in pkgutil.walk_packages(rfdit.data.__path__, "rfdit.data."):
    if module.name != "rfdit.data.urls.session":
        importlib.import_module(module.name)
from rfdit.data.urls.fetch import Fetcher
from rfdit.data.urls.source import UrlTables
try:
    UrlTables(fetcher=Fetcher())
except ValueError as error:
    print(error)
"""
    assert run(program) == "data.laion_urls needs aiohttp: pip install 'rfdit[urls]'\n"


@pytest.mark.slow
def test_training_needs_no_package_of_the_extra(tmp_path: Path) -> None:
    program = "from rfdit.commands.train import main; main()"
    small = [
        "model.width=24",
        "model.depth=2",
        "model.num_heads=2",
        "trainer.max_steps=1",
        "data.batch_size=2",
    ]
    run(program, *small, "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}")
    assert (tmp_path / "run/finished.json").exists()
