"""An average of any length, made after training from snapshots. See conf/posthoc.yaml."""

import shlex
from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from rfdit.checkpoint.saved_run import SavedRun, checkpoint_header, write_checkpoint
from rfdit.config.build import validate
from rfdit.config.command import command
from rfdit.config.overrides import setting
from rfdit.counted import counted
from rfdit.ema.profiles import power_of
from rfdit.ema.reconstruction import PowerProfile, combine, fit
from rfdit.ema.snapshots import Snapshot, read_snapshots
from rfdit.interchange.source import open_adapters
from rfdit.storage.folders import make_folder

POOR_FIT = 0.1  # a relative error; a few hundredths between the stored lengths and up to half as long again


def find_snapshots(folder: Path) -> dict[Path, Snapshot]:
    """The snapshots of a run by file; raises ValueError without any, or if their averages began at different steps."""
    found = read_snapshots(folder)
    if not found:
        raise ValueError(f"ckpt names a run without snapshots in {folder}; train with ema=power")
    begun = {s.step - s.updates: s.profile for s in found.values()}
    if len(begun) > 1:
        names = ", ".join(f"{profile} at step {step}" for step, profile in sorted(begun.items()))
        raise ValueError(
            f"{folder} has averages that began at different steps ({names}); move all but one kind away"
        )
    return found


def pick_step(step: int | None, snapshots: Collection[Snapshot]) -> int:
    """The step at which the average ends, by default the last; raises ValueError for one without a snapshot.

    A profile ends abruptly, and a sum of profiles ends only where one of them does.
    """
    steps = sorted({snapshot.step for snapshot in snapshots})
    step = steps[-1] if step is None else step
    if step not in steps:
        nearest = min(steps, key=lambda other: abs(other - step))
        raise ValueError(
            f"step={step} has no snapshot; the nearest of the {len(steps)} steps with snapshots is {nearest}"
        )
    return step


def write_average(
    out: Path, saved: SavedRun, files: list[Path], coefficients: list[float], step: int, std: float
) -> None:
    """Write a checkpoint whose only weights are the average; frozen weights come from the saved run.

    An average of adapters is one of adapters, of the same base.
    """
    network = saved.network | dict(combine(files, coefficients))
    if unknown := network.keys() - saved.network.keys():
        raise ValueError(
            f"{files[0].parent} has weights that ckpt={saved.path} lacks, such as {min(unknown)}"
        )
    # Evaluations record from this which average it is.
    profile = {"_target_": "rfdit.ema.PowerFunction", "std": std}
    config = saved.config | {"callbacks": {"ema": {"profiles": {"ema": profile}}}}
    checkpoint = {
        "rfdit": checkpoint_header(config, saved.latents, saved.class_names, saved.base),
        "global_step": step,
        "state_dict": {},
        "ema": {"ema": {"updates": step, "network": network}},
    }
    write_checkpoint(checkpoint, out)


def posthoc(cfg: DictConfig) -> Path:
    """Make one average; returns the checkpoint that was written."""
    config = validate(cfg)
    std = config["std"]
    power = power_of(std, setting="std")
    saved = open_adapters(config["ckpt"])
    run = saved.run_folder
    snapshots = find_snapshots(run / "ema")
    averages = list(snapshots.values())
    step = pick_step(config["step"], averages)
    stored = [PowerProfile(power=power_of(each.std, setting="std"), end=each.updates) for each in averages]
    # All averages began at the same step, the run's first unless profiles were added later.
    found = fit(stored, PowerProfile(power=power, end=step - averages[0].step + averages[0].updates))
    if found.error > POOR_FIT:
        print(
            f"std={std:g} is far from the snapshots' profiles: their best sum misses {found.error:.0%} of its profile; "
            "use a std nearer to theirs, or snapshots more often",
            flush=True,
        )
    out = Path(config["out"] or run / "posthoc" / f"std_{std:g}_step_{step:08d}.ckpt")
    make_folder(out.parent, setting="out")
    write_average(out, saved, list(snapshots), found.coefficients.tolist(), step, std)
    print(
        f"std={std:g} at step {step} from {counted(len(averages), 'snapshot')}, profile error {found.error:.2%}; "
        f"sample with: {shlex.join(['python', 'sample.py', setting('ckpt', out)])}",
        flush=True,
    )
    return out


@command("posthoc")
def main(cfg: DictConfig) -> None:
    """The program `rfdit posthoc`."""
    posthoc(cfg)
