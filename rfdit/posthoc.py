"""An average of any length after training: compose, validate, fit, combine, write. See conf/posthoc.yaml."""

from collections.abc import Collection
from pathlib import Path

import hydra
from omegaconf import DictConfig

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, register, validate
from rfdit.ema.posthoc import PowerProfile, combine, fit
from rfdit.ema.profiles import power_of
from rfdit.ema.snapshots import Snapshot, read_snapshots
from rfdit.sample import open_checkpoint
from rfdit.training.checkpoint import SavedRun, write_checkpoint

POOR = 0.1  # share of a profile; between the kept lengths and up to half as long again it is a few hundredths


def find_snapshots(folder: Path) -> dict[Path, Snapshot]:
    """A run's snapshots by file; raises ValueError if there are none, or they do not belong together."""
    found = read_snapshots(folder)
    if not found:
        raise ValueError(f"ckpt names a run without snapshots in {folder}; train with ema=power")
    begun = {s.step - s.updates: s.profile for s in found.values()}
    if len(begun) > 1:
        names = ", ".join(f"{profile} at step {step}" for step, profile in sorted(begun.items()))
        raise ValueError(f"{folder} has averages that began apart ({names}); move all but one kind away")
    return found


def pick_step(wanted: int | None, snapshots: Collection[Snapshot]) -> int:
    """The step where the average ends; raises ValueError for one without a snapshot.

    A profile ends abruptly, and no sum of others ends where none of them does.
    """
    steps = sorted({snapshot.step for snapshot in snapshots})
    step = steps[-1] if wanted is None else wanted
    if step not in steps:
        nearest = min(steps, key=lambda other: abs(other - step))
        raise ValueError(
            f"step={step} has no snapshot; the nearest of the {len(steps)} steps that have is {nearest}"
        )
    return step


def write_average(
    out: Path, saved: SavedRun, files: list[Path], coefficients: list[float], step: int, std: float
) -> None:
    """A checkpoint whose only weights are the average; what is not trained comes from the saved run."""
    network = saved.network | dict(combine(files, coefficients))
    if unknown := network.keys() - saved.network.keys():
        raise ValueError(f"{files[0].parent} has weights that ckpt={saved.path} lacks, as {min(unknown)}")
    # So that what is measured of it says which average it is.
    profile = {"_target_": "rfdit.ema.PowerFunction", "std": std}
    config = saved.config | {"callbacks": {"ema": {"profiles": {"ema": profile}}}}
    checkpoint = {
        "rfdit": {"config": config, "latents": saved.latents},
        "global_step": step,
        "state_dict": {},
        "ema": {"ema": {"updates": step, "network": network}},
    }
    write_checkpoint(checkpoint, out)


def posthoc(cfg: DictConfig) -> Path:
    """One call of the command; returns the checkpoint that was written."""
    config = validate(cfg)
    std = config["std"]
    power = power_of(std, setting="std")
    saved = open_checkpoint(config["ckpt"])
    run = saved.path.parent.parent if saved.path.parent.name == "checkpoints" else saved.path.parent
    snapshots = find_snapshots(run / "ema")
    marks = list(snapshots.values())
    step = pick_step(config["step"], marks)
    stored = [PowerProfile(power=power_of(mark.std, setting="std"), end=mark.updates) for mark in marks]
    # All averages began at the same step, the run's first unless profiles were added later.
    found = fit(stored, PowerProfile(power=power, end=step - marks[0].step + marks[0].updates))
    if found.error > POOR:
        print(
            f"std={std:g} is far from what the snapshots' profiles can add up to: {found.error:.0%} of its profile "
            "is missed; take one nearer to theirs, or snapshots more often",
            flush=True,
        )
    out = Path(config["out"] or run / "posthoc" / f"std_{std:g}_step_{step:08d}.ckpt")
    write_average(out, saved, list(snapshots), found.coefficients.tolist(), step, std)
    print(
        f"std={std:g} at step {step} from {len(marks)} snapshots, its profile met to {found.error:.2%}; "
        f"sample with: python sample.py ckpt={out}",
        flush=True,
    )
    return out


@hydra.main(config_path=str(CONFIG_DIR), config_name="posthoc", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    with explain_errors("posthoc", ValueError, OSError):
        posthoc(cfg)


def main() -> None:
    """The entry of `python -m rfdit.posthoc`."""
    register()
    with explain_errors("posthoc"):
        _main()


if __name__ == "__main__":
    main()
