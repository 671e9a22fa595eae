"""One file holds what must survive: written atomically, read without running code, checked before use."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfdit.autoencoder.contract import LatentContract
from rfdit.checksum import changed_record
from rfdit.durable import flush
from rfdit.training.sharded_checkpoint import is_sharded, make_way, read_rest, read_sharded, remove_shards

# Settings that change speed, memory or places, not the function that the weights compute.
EQUIVALENT = {"attention", "recompute", "source", "subfolder", "cache_size", "dtype", "drop", "base_width"}


def write_checkpoint(checkpoint: dict[str, Any], target: Path) -> None:
    """Writes beside the target, flushes to disk, then renames: a kill or a full disk leaves the old file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.partial"):  # of runs that were killed
        left.unlink(missing_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        make_way(target)
        partial.replace(target)
        flush(target.parent)
        remove_shards(target)
    except RuntimeError as error:  # which torch makes of the OSError of a full disk
        raise OSError(f"{target} cannot be written, perhaps for want of room: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint says: the configuration it was made with and the weights it reached.

    config: the resolved training configuration. latents: the latent contract as a dict.
    network: state dict of the trained `Network`; empty in what rfdit.posthoc makes.
    ema: state dicts of its averages by profile, the evaluated one first; empty for a run without one.
    """

    path: Path
    step: int
    config: dict[str, Any]
    latents: dict[str, Any]
    network: dict[str, Tensor]
    ema: dict[str, dict[str, Tensor]]

    def weights(self, name: str) -> dict[str, Tensor]:
        """State dict of `raw`, of a profile, or of the first one as `ema`.

        Raises ValueError that lists what there is.
        """
        found = {"raw": self.network} if self.network else {}
        if self.ema:
            found = {"ema": next(iter(self.ema.values()))} | self.ema | found
        if name not in found:
            raise ValueError(f"weights={name} is not in ckpt={self.path}; it has {', '.join(found)}")
        return found[name]


def read_raw(path: Path, *, weights: bool = True) -> dict[str, Any]:
    """A checkpoint's dict, of one file or of shards; raises ValueError if it is none, damaged, or holds code.

    weights: False spares the time to check the tensors, for who reads only what is said beside them.
    """
    try:
        if is_sharded(path):
            return read_sharded(path) if weights else read_rest(path)
        if record := changed_record(path, tensors=weights):
            raise ValueError(
                f"ckpt={path} is damaged: {record} in it is not what was written; take another checkpoint"
            )
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise ValueError(f"ckpt={path} does not exist") from None
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"ckpt={path} cannot be read as a checkpoint ({type(error).__name__}): it is damaged, or holds "
            "more than tensors and plain data, which is never loaded; take another checkpoint"
        ) from None


def read_checkpoint(path: Path, *, weights: bool = True) -> SavedRun:
    """Reads and checks that rfdit wrote it; raises ValueError otherwise.

    weights: False leaves those of a sharded checkpoint on the meta device, and any unchecked, where nobody
        needs them.
    """
    raw = read_raw(path, weights=weights)
    if not isinstance(raw, dict) or "rfdit" not in raw:
        raise ValueError(f"ckpt={path} was not written by rfdit's train.py")
    prefix = "network."
    try:
        return SavedRun(
            path=path,
            step=raw["global_step"],
            config=raw["rfdit"]["config"],
            latents=raw["rfdit"]["latents"],
            network={k.removeprefix(prefix): v for k, v in raw["state_dict"].items() if k.startswith(prefix)},
            ema={name: average["network"] for name, average in raw.get("ema", {}).items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"ckpt={path} is damaged: it lacks a part of a checkpoint ({error})") from None


def find_checkpoint(ckpt: str) -> Path:
    """The file that `ckpt` means: itself, a run folder's last checkpoint, or the only one in a folder.

    Raises ValueError if there is none, or several with no `last.ckpt` among them.
    """
    path = Path(ckpt).expanduser()
    if not path.is_dir() or is_sharded(path):
        if not path.exists():
            raise ValueError(f"ckpt={ckpt} does not exist; give a run folder or a .ckpt file")
        return path
    for last in (path / "checkpoints" / "last.ckpt", path / "last.ckpt"):
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


def newest_run(root: Path) -> Path | None:
    """The run folder under `root` whose last checkpoint is the newest."""
    found = root.glob("**/checkpoints/last.ckpt")
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    return newest and newest.parent.parent


def check_resumable(saved: SavedRun, config: dict[str, Any], contract: LatentContract) -> None:
    """Raises ValueError, naming the differences, if a run with `config` cannot take the saved weights."""
    if not saved.network:
        raise ValueError(f"ckpt={saved.path} holds an average to sample from, and nothing to train on from")
    contract.check(LatentContract.from_dict(saved.latents))
    differences = []
    for group in ("model", "conditioner"):
        mine, theirs = _flatten(config.get(group)), _flatten(saved.config.get(group))
        for key in sorted(mine.keys() | theirs.keys()):
            if EQUIVALENT.isdisjoint(key.split(".")) and mine.get(key) != theirs.get(key):
                differences.append(f"{group}.{key}={mine.get(key)}, there {theirs.get(key)}")
    here, there = ((c.get("optimizer") or {}).get("_target_") for c in (config, saved.config))
    if here != there:  # another one has other groups of parameters
        differences.append(f"optimizer._target_={here}, there {there}")
    if differences:
        raise ValueError(
            f"ckpt={saved.path} belongs to another network or optimizer: here " + "; ".join(differences)
        )


# What runs did before there was a setting for it.
BEFORE: dict[str, Any] = {"callbacks.ema.every_n_steps": 1}


def changed_settings(saved: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The settings that differ from a saved configuration's, as `path=here (there value)`; run_dir and ckpt aside."""
    mine, theirs = _flatten(config), _flatten(saved)
    theirs = {key: value for key, value in BEFORE.items() if key in mine} | theirs
    run_dirs = str(config.get("run_dir")), str(saved.get("run_dir"))
    return [
        f"{key}={mine.get(key)} (there {theirs.get(key)})"
        for key in sorted(mine.keys() | theirs.keys())
        if key not in ("run_dir", "ckpt") and str(mine.get(key)).replace(*run_dirs) != str(theirs.get(key))
    ]


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {k: v for name, child in node.items() for k, v in _flatten(child, f"{prefix}{name}.").items()}
