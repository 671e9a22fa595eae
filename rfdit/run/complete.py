"""Runs that are complete: what a further start of them finds."""

import shlex
from pathlib import Path
from typing import Any

from rfdit.checkpoint.resume import LAST, changed_settings
from rfdit.checkpoint.saved_run import read_checkpoint
from rfdit.config.overrides import setting
from rfdit.counted import counted
from rfdit.processes.rank import is_rank_zero
from rfdit.run.folder import read_metrics
from rfdit.run.state import RunState, finished_run, mark_finished
from rfdit.storage.untrusted import read_yaml


def finished_point(folder: Path, config: dict[str, Any]) -> RunState | None:
    """The state of a run that has finished with these settings; None for any other.

    Raises ValueError for one with other settings and no step left to train.
    """
    done = finished_run(folder)
    if done is None:
        return None
    changed = changed_settings(read_yaml(folder / "config.yaml"), config)
    if changed and (done.step or 0) >= config["trainer"]["max_steps"] > 0:
        raise ValueError(
            f"{folder} holds a finished run of {counted(done.step or 0, 'step')} with other settings: here "
            f"{'; '.join(changed)}; give another run_dir"
        )
    return None if changed else done


def complete_run(folder: Path, config: dict[str, Any]) -> RunState | None:
    """The state of a run that has all its steps, for `ckpt=auto`; None for any other.

    Other settings than those of its checkpoint are no reason to train it again; they are printed.
    """
    # In this order: rank 0 may record the end between two looks of another rank.
    done = finish_trained(folder, config, changed=True) or finished_run(folder)
    steps = config["trainer"]["max_steps"]
    if done is None or not (done.step or 0) >= steps > 0:
        return None
    if is_rank_zero():
        changed = changed_settings(read_yaml(folder / "config.yaml"), config)
        others = f"; its settings are others: here {'; '.join(changed)}" if changed else ""
        print(f"nothing to do: run_dir={folder} is complete, at step {done.step}{others}", flush=True)
    return done


def finish_trained(folder: Path, config: dict[str, Any], *, changed: bool = False) -> RunState | None:
    """Record the end of a run whose last checkpoint has all its steps; returns None for any other run.

    changed: also of one with other settings.

    A signal after the last step leaves such a run. An evaluation that was due then is missing: this is
    printed, and the values of an earlier one do not stand in for it.
    """
    last = folder / LAST
    if finished_run(folder) is not None or not last.exists():
        return None
    saved = read_checkpoint(last, weights=False)
    if not saved.step >= config["trainer"]["max_steps"] > 0:
        return None
    if not changed and changed_settings(saved.config, config):
        return None
    last_values = {
        name: (int(row["step"]), float(value))
        for row in read_metrics(folder / "metrics.csv")
        for name, value in row.items()
        if value and name != "step"
    }
    stale = {n for n, (at, _) in last_values.items() if n.startswith("eval/") and at < saved.step - 1}
    metrics = {name: value for name, (_, value) in last_values.items() if name not in stale}
    if is_rank_zero():
        mark_finished(folder, step=saved.step, metrics=metrics)
        print(f"{folder} was stopped after its last step, {_missing(folder, stale)}", flush=True)
    return RunState("finished", step=saved.step, metrics=metrics)


def _missing(folder: Path, stale: set[str]) -> str:
    """The evaluations that a point lacks, and the command that makes them."""
    if not stale:
        return "and is complete"
    command = shlex.join(["python", "sample.py", setting("ckpt", folder), "eval=quick"])
    return f"and lacks that step's {', '.join(sorted(stale))}, which sample.py can make: {command} ..."
