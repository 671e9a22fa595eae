"""The points of a sweep that can be interrupted: finished ones are skipped, begun ones resumed, failures recorded."""

import gc
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rfdit.config.errors import sentence
from rfdit.config.sweep import SweepFolder, resume_command
from rfdit.counted import counted
from rfdit.processes.rank import is_rank_zero
from rfdit.run.folder import read_metrics
from rfdit.run.state import FAILED, RunState, mark_failed, read_state


def run_point(folder: Path, run: Callable[[], float | None], *, sweeper_counts: bool) -> float | None:
    """Run one point of a sweep, and record a failure in its folder.

    sweeper_counts: the sweeper counts failures itself; after one it gets a RuntimeError, others None.
    """
    if is_rank_zero():
        (folder / FAILED).unlink(missing_ok=True)
    try:
        return run()
    except Exception as error:
        known = isinstance(error, ValueError | OSError)
        text = sentence(error, "train") if known else f"{type(error).__name__}: {error}"
        mark_failed(folder, text, error)
        print(f"failed: {folder}: {text}", flush=True)
    finally:
        gc.collect()  # reference cycles hold the network and the optimiser
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if sweeper_counts:
        raise RuntimeError(text)
    return None


@contextmanager
def summary_of_sweep() -> Iterator[None]:
    """Context that ends a sweep with a line for each point; exit code 1 if one failed, 130 after Ctrl-C."""
    SweepFolder.started = None
    complete = False
    try:
        yield
        complete = True
    except KeyboardInterrupt:
        if SweepFolder.started is None:
            raise
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        failed = _print_summary(SweepFolder.started, complete) if SweepFolder.started else False
    if failed:
        raise SystemExit(1)


def _print_summary(folder: Path, complete: bool) -> bool:
    """Print a line for each point; True if one failed. complete: the sweep was not interrupted."""
    points = {path.name: state for path in sorted(folder.glob("*")) if (state := read_state(path))}
    if not points:
        return False
    for name, state in points.items():
        print(f"  {state.name:10}  {name}  {_detail(folder / name, state)}".rstrip())
    counts = Counter(state.name for state in points.values())
    print(
        f"sweep in {folder}: " + ", ".join(f"{counts[n]} {n}" for n in ("finished", "failed", "unfinished"))
    )
    if not complete or counts["failed"] or counts["unfinished"]:
        print(f"resume with: {resume_command(folder)}", flush=True)
    return counts["failed"] > 0


def _detail(folder: Path, state: RunState) -> str:
    if state.name == "failed":
        return str(state.error)
    if state.name == "finished":
        loss = (state.metrics or {}).get("val/loss")
        return f"{counted(state.step or 0, 'step')}" + ("" if loss is None else f", val/loss {loss:.4f}")
    rows = read_metrics(folder / "metrics.csv")
    return f"logged up to step {rows[-1]['step']}" if rows else ""
