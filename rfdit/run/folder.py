"""The files of a run in its folder: configuration, overrides, environment, metrics."""

import csv
import io
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rfdit.processes.rank import is_rank_zero
from rfdit.run.row_sums import check_rows
from rfdit.storage.atomic import naming, write_bytes
from rfdit.storage.checked import check_text, checked_text
from rfdit.storage.locks import only_process
from rfdit.storage.text import decode_text, text_lines

PACKAGES = ("rfdit", "torch", "lightning", "hydra-core", "diffusers", "open_clip_torch", "webdataset")


def only_run(folder: Path) -> AbstractContextManager[None]:
    """Context of the one run in a folder, which rank 0 holds for all ranks.

    Raises ValueError, naming the folder and the other process, if another run is going on there.
    """
    if not is_rank_zero():
        return nullcontext()
    return only_process(folder / "run.lock", setting="run_dir")


def git_state(folder: Path) -> dict[str, str | bool] | None:
    """The commit, and whether the tree differs from it; None outside a checkout."""

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
        "command": f"{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}",
        "git": git_state(Path(__file__).parent),
        "versions": versions,
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads(), "gpus": gpus},
    }


def describe_run(folder: Path, *, config_yaml: str, overrides: Sequence[str]) -> None:
    """Write config.yaml (resolved) and overrides.txt, with checksums, and add a line to environment.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "config.yaml", checked_text(config_yaml))
    write_bytes(folder / "overrides.txt", checked_text("".join(f"{override}\n" for override in overrides)))
    record_start(folder)


def record_start(folder: Path) -> None:
    """Add a line to environment.jsonl, which has one for each start of a command."""
    starts = folder / "environment.jsonl"
    with naming(starts), starts.open("a") as file:
        file.write(json.dumps(environment()) + "\n")


# What a start writes before the first step.
OF_A_START = {"config.yaml", "overrides.txt", "environment.jsonl", "run.lock", "log.txt", "loggers.json"}


def discard_start(folder: Path, *, dated: bool = False) -> None:
    """Remove the folder of a run that failed before its first step, unless anything else is in it.

    dated: its name is `outputs/DATE/TIME`, and empty folders above it are removed too.
    """
    with suppress(OSError):  # the failure is what is reported
        files = list(folder.iterdir())
        if {file.name for file in files} <= OF_A_START:
            for file in files:
                file.unlink()
            folder.rmdir()
            if dated:
                folder.parent.rmdir()
                folder.parent.parent.rmdir()


def read_overrides(folder: Path) -> list[str]:
    """The overrides of a run's last start; [] without the file. Raises ValueError for a damaged one."""
    file = folder / "overrides.txt"
    if not file.exists():
        return []
    data = file.read_bytes()
    check_text(data, place=str(file))
    return [line for line in text_lines(decode_text(data)) if not line.startswith("#")]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv as text, empty where nothing was logged; [] without a file.

    A last row that a kill has cut is left out. Raises ValueError, naming the line, for any other that is not of
    numbers, or not what was written.
    """
    if not path.exists():
        return []
    text = check_rows(path, path.read_bytes()).decode(errors="replace")
    try:
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    for number, row in enumerate(rows, 1):
        try:
            int(row["step"])
            list(map(float, filter(None, row.values())))
            whole = None not in row.values()
        except (KeyError, ValueError, TypeError):
            whole = False
        if whole:
            continue
        if number < len(rows):
            raise ValueError(f"{path} is damaged: line {number + 1} is not a row of numbers")
        return rows[:-1]
    return rows
