"""`python -m tests.system.drill [corruptions=N] [kills=N] [seed=N] [only=NAME,...] [number=N]`: the drill.

Prints each fault, and the counts of each kind's outcomes as rows of docs/reliability.md. The exit code is 1 after
a fault. number: of one corruption, to see it again.
"""

import importlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import rfdit  # noqa: F401  # before torch, as every program does
from rfdit.__main__ import COMMANDS
from tests.support.commands.composing import compose_once
from tests.system.drill.corruptions import corrupt
from tests.system.drill.kills import kill
from tests.system.drill.kinds import KINDS
from tests.system.drill.works import WORKS

LAZY = [
    "diffusers",
    "pyarrow.parquet",
    "matplotlib.pyplot",
    "peft",
    "safetensors.torch",
]  # imported once, before all forks


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in these proportions that sum to `total`."""
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    return [end - start for start, end in zip([0, *ends], ends)]


def corruptions(folder: Path, settings: dict[str, str]) -> Iterator[tuple[str, list[Any]]]:
    """The corruptions of each kind."""
    kinds = [kind for kind in KINDS if not (only := settings.get("only")) or kind.name in only.split(",")]
    for kind, count in zip(kinds, shares([k.weight for k in kinds], int(settings.get("corruptions", 2000)))):
        numbers = [int(settings["number"])] if "number" in settings else range(count)
        place = folder / kind.name.replace(" ", "_")
        yield (
            kind.name,
            list(corrupt(kind, place, seed=int(settings.get("seed", 0)), numbers=numbers)),
        )


def kills(folder: Path, settings: dict[str, str]) -> Iterator[tuple[str, list[Any]]]:
    """The kills of each command."""
    works = [work for work in WORKS if not (only := settings.get("only")) or work.name in only.split(",")]
    for work, count in zip(works, shares([w.weight for w in works], int(settings.get("kills", 300)))):
        place = folder / f"killed_{work.name.replace(' ', '_')}"
        yield work.name, list(kill(work, place, seed=int(settings.get("seed", 0)), count=count))


def main(settings: dict[str, str]) -> int:
    torch.set_num_threads(1)
    compose_once()
    for name in (*LAZY, *(f"rfdit.commands.{command}" for command in COMMANDS)):
        importlib.import_module(name)
    total, faults = Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="rfdit-drill-") as folder:
        for part in (corruptions, kills):
            begun = time.monotonic()
            for name, found in part(Path(folder), settings):
                for one in filter(lambda one: one.is_fault or "number" in settings, found):
                    print(f"  {one}", flush=True)
                faults += sum(one.is_fault for one in found)
                total[part.__name__] += len(found)
                counts = Counter(one.outcome if part is corruptions else one.signal for one in found)
                seconds, begun = time.monotonic() - begun, time.monotonic()
                listed = ", ".join(f"{n} {outcome}" for outcome, n in counts.most_common())
                print(f"| {name} | {len(found)} | {listed} | <!-- {seconds:.0f} s -->", flush=True)
    print(f"{dict(total)}, {faults} faults", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    code = main(dict(argument.split("=", 1) for argument in sys.argv[1:]))
    sys.stdout.flush()
    os._exit(code)  # what commands have registered to run at exit was meant for their own processes
