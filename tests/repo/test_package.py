"""The installed package works outside the checkout."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.commands.command_line import FEW_SHAPES

ROOT = Path(__file__).parents[2]


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "rfdit").rglob("__init__.py")}
    assert set(listed) == found | {"rfdit.conf"}


@pytest.mark.slow
def test_the_wheel_carries_conf_and_trains(tmp_path: Path, shapes_cache: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(pip, check=True, timeout=300)
    (wheel,) = tmp_path.glob("rfdit-*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    configs = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert {
        path.relative_to(installed / "rfdit/conf") for path in (installed / "rfdit/conf").rglob("*.yaml")
    } == configs
    command = [
        sys.executable,
        "-m",
        "rfdit",
        "train",
        "trainer.max_steps=1",
        "run_dir=run",
        "data.num_workers=0",
        FEW_SHAPES,
    ]
    environment = {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(shapes_cache), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    where = [sys.executable, "-c", "import rfdit; print(rfdit.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert found.stdout.startswith(str(installed))
