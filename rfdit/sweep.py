"""Sweeps that may be interrupted: points that are done are skipped, begun ones resumed, failures recorded."""

import gc
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict

from rfdit.command_line import sentence
from rfdit.training.checkpoint import changed_settings, read_checkpoint
from rfdit.training.metrics_csv import read_metrics
from rfdit.training.run_state import (
    FAILED,
    RunState,
    finished_run,
    mark_failed,
    mark_finished,
    read_state,
)


class SweepFolder(Callback):  # type: ignore[misc]
    """Names a sweep's points by what is swept and says how to resume it; Hydra calls it where a sweep starts."""

    started: ClassVar[Path | None] = None  # the folder of the sweep that this process has started

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        SweepFolder.started = folder
        swept, fixed = swept_settings(config)
        with open_dict(config):
            # With nothing swept the one point has the name of all that was set.
            unnamed = sorted(fixed) if swept else ["run_dir"]
            keys = ",".join(f"'{key}'" for key in unnamed)
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
            sweeper = config.hydra.sweeper
            typed = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
            assert isinstance(typed, list)
            if "max_failure_rate" in sweeper and not any("max_failure_rate" in str(o) for o in typed):
                sweeper.max_failure_rate = 1.0  # a trial that fails does not stop the others
        print(f"sweep in {folder}; when interrupted, resume with: {again(folder)}", flush=True)


def swept_settings(config: DictConfig) -> tuple[set[str], set[str]]:
    """The names of the settings that a sweep varies, and of those that all its points share."""
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    params = config.hydra.sweeper.get("params") or {}
    overrides = OverridesParser.create().parse_overrides(typed)
    swept = {o.key_or_group for o in overrides if o.is_sweep_override()} | {str(key) for key in params}
    return swept, {o.key_or_group for o in overrides} - swept


def again(folder: Path) -> str:
    """The command that resumes the sweep of this process."""
    others = [a for a in sys.argv[1:] if a not in ("-m", "--multirun") and not a.startswith("run_dir=")]
    return shlex.join(["python", "train.py", "-m", f"run_dir={folder}", *others])


def is_done(folder: Path, config: dict[str, Any]) -> RunState | None:
    """The end of the run in the folder, if it has ended and was made with these very settings.

    Raises ValueError for one with others that leave nothing to train.
    """
    done = finished_run(folder)
    if done is None:
        return None
    changed = changed_settings(yaml.safe_load((folder / "config.yaml").read_text()), config)
    if changed and (done.step or 0) >= config["trainer"]["max_steps"] > 0:
        raise ValueError(
            f"{folder} holds a finished run of {done.step} steps with other settings: here "
            f"{'; '.join(changed)}; give another run_dir"
        )
    return None if changed else done


def finish_trained(folder: Path, config: dict[str, Any]) -> RunState | None:
    """Marks a point as finished whose last checkpoint has all its steps; None for any other.

    A signal after the last step leaves such a point. An evaluation that was due then is missing: it is said
    to be, and an earlier one does not stand in for it.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if finished_run(folder) is not None or not last.exists():
        return None
    saved = read_checkpoint(last, weights=False)
    if not saved.step >= config["trainer"]["max_steps"] > 0 or changed_settings(saved.config, config):
        return None
    last_values = {
        name: (int(row["step"]), float(value))
        for row in read_metrics(folder / "metrics.csv")
        for name, value in row.items()
        if value and name != "step"
    }
    stale = {n for n, (at, _) in last_values.items() if n.startswith("eval/") and at < saved.step - 1}
    metrics = {name: value for name, (_, value) in last_values.items() if name not in stale}
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        mark_finished(folder, step=saved.step, metrics=metrics)
        print(f"{folder} was stopped after its last step, {_without(folder, stale)}", flush=True)
    return RunState("finished", step=saved.step, metrics=metrics)


def _without(folder: Path, stale: set[str]) -> str:
    """What a point lacks that was stopped after its last step."""
    if not stale:
        return "and lacks nothing that is known of"
    command = shlex.join(["python", "sample.py", f"ckpt='{folder}'", "eval=quick"])
    return f"and lacks that step's {', '.join(sorted(stale))}, which sample.py can make: {command} ..."


def run_point(folder: Path, run: Callable[[], float | None]) -> float | None:
    """Runs one point of a sweep; what goes wrong is recorded in its folder.

    Raises RuntimeError for a failure where the sweeper keeps count of them itself; returns None otherwise.
    """
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        (folder / FAILED).unlink(missing_ok=True)
    try:
        return run()
    except Exception as error:
        known = isinstance(error, ValueError | OSError)
        text = sentence(error, "train") if known else f"{type(error).__name__}: {error}"
        mark_failed(folder, text, error)
        print(f"failed: {folder}: {text}", flush=True)
    finally:
        gc.collect()  # the network and the optimiser of this point are in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if "max_failure_rate" in HydraConfig.get().sweeper:
        raise RuntimeError(text)
    return None


@contextmanager
def summed_up() -> Iterator[None]:
    """Ends a sweep with a line for each point; exit code 1 if any failed, and a shell's after Ctrl-C."""
    SweepFolder.started = None
    whole = False
    try:
        yield
        whole = True
    except KeyboardInterrupt:
        if SweepFolder.started is None:
            raise
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        failed = _print_summary(SweepFolder.started, whole) if SweepFolder.started else False
    if failed:
        raise SystemExit(1)


def _print_summary(folder: Path, whole: bool) -> bool:
    """Whether any point failed. whole: the sweep was not interrupted."""
    points = {path.name: state for path in sorted(folder.glob("*")) if (state := read_state(path))}
    if not points:
        return False
    for name, state in points.items():
        print(f"  {state.name:10}  {name}  {_detail(folder / name, state)}".rstrip())
    counts = Counter(state.name for state in points.values())
    print(
        f"sweep in {folder}: " + ", ".join(f"{counts[n]} {n}" for n in ("finished", "failed", "unfinished"))
    )
    if not whole or counts["failed"] or counts["unfinished"]:
        print(f"resume with: {again(folder)}", flush=True)
    return counts["failed"] > 0


def _detail(folder: Path, state: RunState) -> str:
    if state.name == "failed":
        return str(state.error)
    if state.name == "finished":
        loss = (state.metrics or {}).get("val/loss")
        return f"{state.step} steps" + ("" if loss is None else f", val/loss {loss:.4f}")
    rows = read_metrics(folder / "metrics.csv")
    return f"logged up to step {rows[-1]['step']}" if rows else ""
