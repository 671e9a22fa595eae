"""The checkpoint from which a run resumes, and the settings that it must share with the run."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rfdit.autoencoder.contract import LatentContract
from rfdit.checkpoint.kept import kept_file, kept_steps
from rfdit.checkpoint.saved_run import SavedRun, read_checkpoint
from rfdit.checkpoint.sharded import is_sharded
from rfdit.differences import differences
from rfdit.network import is_for_training_only

# Settings that change speed, memory or paths, not the function that the weights compute.
EQUIVALENT = {"attention", "recompute", "source", "subfolder", "cache_size", "dtype", "drop", "base_width"}
# Settings of an auxiliary loss that decide how it is weighed, and where the weights of its teacher are.
WEIGHED = {"coefficient", "stop_step", "weights"}
LAST = Path("checkpoints", "last.ckpt")  # in a run folder


def find_checkpoint(ckpt: str, step: int | None = None) -> Path:
    """The file that `ckpt` names: itself, a run folder's last checkpoint, or the only one in a folder.

    step: the kept checkpoint of this step in a run folder instead.
    Raises ValueError if there is none, or several with no `last.ckpt` among them.
    """
    path = Path(ckpt).expanduser()
    if step is not None:
        return _find_step(path, step)
    if not path.is_dir() or is_sharded(path):
        if not path.exists():
            raise ValueError(f"ckpt={ckpt} does not exist; give a run folder or a .ckpt file")
        return path
    for last in (path / LAST, path / LAST.name):
        if last.exists():
            return last
    found = sorted(path.glob("checkpoints/*.ckpt")) or sorted(path.glob("*.ckpt"))
    if not found:
        raise ValueError(f"ckpt={ckpt} is a folder without checkpoints; give a run folder or a .ckpt file")
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in found)
        raise ValueError(
            f"ckpt={ckpt} holds several checkpoints and no last.ckpt ({names}); name one of them"
        )
    return found[0]


def _find_step(path: Path, step: int) -> Path:
    """The checkpoint of a step in a run folder; raises ValueError, with the steps that there are, without one."""
    if not path.is_dir() or is_sharded(path):
        raise ValueError(
            f"step={step} chooses among the checkpoints of a run; give its folder for ckpt={path}"
        )
    folder = path / LAST.parent if (path / LAST.parent).is_dir() else path
    if (file := kept_file(folder, step)).exists():
        return file
    last = folder / LAST.name
    newest = [read_checkpoint(last, weights=False).step] if last.exists() else []
    if newest == [step]:
        return last
    steps = sorted({*kept_steps(folder), *newest})
    raise ValueError(
        f"step={step} is not kept in {folder}; kept are {', '.join(map(str, steps)) or 'none'}. "
        "callbacks.checkpoints.keep_every and keep_last of train.py keep more"
    )


def newest_run(root: Path) -> Path | None:
    """The run folder under `root` whose last checkpoint is the newest."""
    found = root.glob(f"**/{LAST}")
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    return newest and newest.parent.parent


def find_resume(ckpt: str | None, run_dir: Path) -> Path | None:
    """The checkpoint from which a run in `run_dir` resumes; None for a new run.

    ckpt: None for a new run, `last` for one in `run_dir`, `auto` for either, or the path of a checkpoint.
    Raises ValueError for a checkpoint that does not exist, and where two runs would mix in one folder.
    """
    own = run_dir / LAST
    if ckpt is None:
        if own.exists():
            raise ValueError(
                f"run_dir={run_dir} holds a run already; give ckpt=last to resume it, or another run_dir"
            )
        return None
    if ckpt == "auto":
        return own if own.exists() else None
    if ckpt == "last":
        if own.exists():
            return own
        newest = newest_run(Path("outputs"))
        hint = f"; the newest run here is run_dir={newest}" if newest else ""
        raise ValueError(f"ckpt=last means run_dir={run_dir}, which has no {LAST}{hint}")
    path = find_checkpoint(ckpt)
    if own.exists() and own.resolve() != path.resolve():
        raise ValueError(
            f"ckpt={ckpt} and run_dir={run_dir} are two conflicting checkpoints: the folder has its own "
            f"{LAST}; give ckpt=last to resume that, or another run_dir"
        )
    return path


def read_resumable(
    path: Path, config: dict[str, Any], contract: LatentContract, tensors: Collection[str]
) -> SavedRun:
    """Reads a checkpoint without its weights, and checks that a run can resume from it.

    config, contract: the run's configuration and the latents of its autoencoder. tensors: names of its network's.
    Raises ValueError, naming what differs, for a checkpoint of another network, optimizer or latents, and
    for one that leaves no step to take.
    """
    saved = read_checkpoint(path, weights=False)
    if not saved.network:
        raise ValueError(f"ckpt={path} holds an average for sampling only, from which training cannot resume")
    contract.check(LatentContract.from_dict(saved.latents))
    found = [
        difference.text()
        for difference in differences(_trained(config), _trained(saved.config))
        if is_other(difference.path)
    ]
    if found:
        raise ValueError(f"ckpt={path} belongs to another network or optimizer: here {'; '.join(found)}")
    here, there = (_beside(names) for names in (tensors, saved.network))
    if here != there:
        raise ValueError(
            f"ckpt={path} was trained with {there or 'no'} layers beside the model, and this run has {here or 'none'}; "
            "give the auxiliary and weighting that it was trained with"
        )
    if saved.step >= config["trainer"]["max_steps"] > 0:
        raise ValueError(
            f"ckpt={path} is already at step {saved.step}; give trainer.max_steps more than that"
        )
    return saved


def _beside(tensors: Collection[str]) -> str:
    """The parts of a network that only training needs."""
    return " and ".join(sorted({name.partition(".")[0] for name in tensors if is_for_training_only(name)}))


def encoder_settings(node: dict[str, Any] | None) -> dict[str, Any] | None:
    """The settings of an encoder that decide its results."""
    # The weights are identified by their digest.
    without_effect = EQUIVALENT | {"slice_size", "pretrained", "weights"}
    return node and {
        name: encoder_settings(value) if isinstance(value, dict) else value
        for name, value in node.items()
        if name not in without_effect
    }


def is_other(path: str) -> bool:
    """True for a setting, by its dotted name, whose value decides what tensors there are or what they compute."""
    names = path.split(".")
    return (EQUIVALENT | WEIGHED if names[0] == "auxiliary" else EQUIVALENT).isdisjoint(names)


def _trained(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide which tensors a checkpoint holds: each optimizer has its own groups of parameters."""
    optimizer = config.get("optimizer")
    return {
        "model": config.get("model"),
        "prediction": config.get("prediction"),
        "conditioner": config.get("conditioner"),
        "optimizer": {"_target_": optimizer.get("_target_") if isinstance(optimizer, dict) else None},
        "freeze": config.get("freeze", []),
        "adapter": config.get("adapter"),
        "auxiliary": config.get("auxiliary"),
    }


def changed_settings(saved: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Settings that differ from a saved configuration's, as `path=here (there value)`; run_dir and ckpt aside."""
    run_dirs = str(config["run_dir"]), str(saved.get("run_dir"))
    return [
        difference.text()
        for difference in differences(config, saved)
        if difference.path not in ("run_dir", "ckpt")
        and str(difference.here).replace(*run_dirs) != str(difference.there)
    ]
