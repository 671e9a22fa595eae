"""What a run folder says about its run."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("rfdit", "torch", "lightning", "hydra-core", "diffusers", "open_clip_torch", "webdataset")


def git_state(folder: Path) -> dict[str, str | bool] | None:
    """Commit and whether the tree differs from it; None outside a checkout."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict[str, Any]:
    """Versions, hardware, git state and the command, as plain data."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": git_state(Path(__file__).parent),
        "versions": versions,
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads(), "gpus": gpus},
    }


def describe_run(folder: Path, *, config_yaml: str, overrides: Sequence[str]) -> None:
    """Writes config.yaml (resolved), overrides.txt, and environment.json; one line is added per start."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_yaml)
    (folder / "overrides.txt").write_text("".join(f"{override}\n" for override in overrides))
    with (folder / "environment.jsonl").open("a") as file:
        file.write(json.dumps(environment()) + "\n")
