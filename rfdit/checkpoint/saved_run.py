"""A checkpoint: written whole or not at all, read without running code, checked before it is used."""

import glob
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfdit.autoencoder.contract import LatentContract
from rfdit.checkpoint.base import Base
from rfdit.checkpoint.sharded import REST, is_sharded, make_way, read_rest, read_sharded, remove_shards
from rfdit.config.build import latent_shape
from rfdit.network import is_for_training_only
from rfdit.storage.atomic import remove_abandoned, write_atomically
from rfdit.storage.checksum import changed_record
from rfdit.storage.untrusted import check_plain, explained, unreadable

FORMAT = 2  # number of the format of a checkpoint's contents
NEEDED = (
    "model",
    "prediction",
    "conditioner",
    "autoencoder",
    "sampler",
)  # groups without which no model can be built
# The sections of a checkpoint that only training reads, with their types.
RESUMED = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict, "rng": dict}


def checkpoint_header(
    config: dict[str, Any],
    latents: dict[str, Any],
    class_names: Sequence[str] | None = None,
    base: Base | None = None,
) -> dict[str, Any]:
    """The part of a checkpoint, under the key "rfdit", that describes the run to which its weights belong.

    config: the resolved training configuration. latents: the latent contract. class_names: by number, if they
        are known; whoever reads the checkpoint opens no file for them. base: that of adapters, which are then all
        of its weights.
    """
    names = None if class_names is None else list(class_names)
    return {"format": FORMAT, "config": config, "latents": latents, "class_names": names} | (
        {} if base is None else {"base": asdict(base)}
    )


def write_checkpoint(checkpoint: dict[str, Any], target: Path) -> None:
    """Replace a checkpoint at once: a kill, a loss of power or a full disk leaves the old one."""

    def write(file: Any) -> None:
        torch.save(checkpoint, file)
        make_way(target)

    remove_abandoned(target.parent, names=glob.escape(target.name), quiet=0)
    try:
        write_atomically(target, write, durable=True)
    except RuntimeError as error:  # torch's word for the OSError of a full disk
        raise OSError(f"{target} cannot be written; the disk may be full") from error
    remove_shards(target)


@dataclass(frozen=True)
class SavedRun:
    """A trained model: the configuration it was made with and the weights it reached.

    path: the checkpoint, or the folder of an exported model.
    config: the resolved training configuration. latents: the latent contract as a dict.
    network: state dict of the trained `Network`; empty in a checkpoint from `rfdit posthoc`.
    ema: state dicts of its averages by profile, the evaluated one first; empty for a run without one.
    class_names: names of the classes by number; None where they are not known.
    base: the weights that its adapters change, which are then all that network and ema have; None for a whole network.
    """

    path: Path
    step: int
    config: dict[str, Any]
    latents: dict[str, Any]
    network: dict[str, Tensor]
    ema: dict[str, dict[str, Tensor]]
    class_names: list[str] | None = None
    base: Base | None = None

    @classmethod
    def checked(
        cls,
        path: Path,
        *,
        step: Any,
        config: Any,
        latents: Any,
        network: Any,
        ema: Any,
        class_names: Any = None,
        base: Any = None,
    ) -> "SavedRun":
        """The run with what was found at `path`; raises ValueError, naming it, for any other structure."""
        if type(step) is not int or step < 0:
            raise ValueError(f"{path} is damaged: its step is not a number of steps")
        try:
            for name, settings in (("config", config), ("latents", latents)):
                check_plain(settings, name)
                if type(settings) is not dict:
                    raise ValueError(f"its {name} is a {type(settings).__name__}, not settings")
            LatentContract.from_dict(latents)
            if class_names is not None and not _are_names(class_names):
                raise ValueError("its class_names are not names of classes")
            read_base = Base.read(base)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        for name, state in [("weights", network), *ema.items()]:
            if wrong := [
                key for key, x in state.items() if type(key) is not str or not isinstance(x, Tensor)
            ]:
                raise ValueError(f"{path} is damaged: {wrong[0]} of its {name} is not a tensor")
        return cls(
            path=path,
            step=step,
            config=config,
            latents=latents,
            network=network,
            ema=ema,
            class_names=class_names,
            base=read_base,
        )

    def check_model(self) -> None:
        """Raises ValueError, naming the file, if its configuration is not that of a model."""
        conditioner = self.config.get("conditioner")
        labels = isinstance(conditioner, dict) and conditioner.get("num_classes") is not None
        needed = NEEDED if labels else (*NEEDED, "text_encoder")
        if missing := [group for group in needed if not isinstance(self.config.get(group), dict)]:
            raise ValueError(f"{self.path} is damaged: its configuration has no {', '.join(missing)}")
        classes = self.num_classes
        try:
            latent_shape(self.config)
            if classes is not None and not (type(classes) is int and 0 < classes <= self._largest_tensor()):
                raise ValueError("conditioner.num_classes is not the number of classes of its weights")
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged: {error}") from None

    def _largest_tensor(self) -> int:
        states = (self.network, *self.ema.values())
        return max((x.numel() for state in states for x in state.values()), default=0)

    @property
    def num_classes(self) -> int | None:
        """The number of classes of a model trained on labels; None for one trained on captions."""
        return self.config["conditioner"].get("num_classes")

    @property
    def knows_labels(self) -> bool:
        """True for a model trained on class labels, False for one trained on captions."""
        return self.num_classes is not None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents that the model was trained on."""
        return latent_shape(self.config)

    @property
    def run_folder(self) -> Path:
        """The folder of the run, of an exported model, or of a checkpoint outside of a run folder."""
        if self.path.is_dir() and not is_sharded(self.path):
            return self.path
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent

    def weights(self, name: str) -> dict[str, Tensor]:
        """State dict of `raw`, of a profile, or of the first one as `ema`, without what only training needs.

        Raises ValueError that lists what there is.
        """
        found = {"raw": self.network} if self.network else {}
        if self.ema:
            found = {"ema": next(iter(self.ema.values()))} | self.ema | found
        if name not in found:
            raise ValueError(f"weights={name} is not in ckpt={self.path}; it has {', '.join(found)}")
        return {tensor: value for tensor, value in found[name].items() if not is_for_training_only(tensor)}


def _are_names(found: Any) -> bool:
    return type(found) is list and all(type(name) is str for name in found)


def read_raw(path: Path, *, weights: bool = True) -> dict[str, Any]:
    """The dict of a checkpoint, which is one file or a folder of shards.

    weights: False leaves the tensors unchecked, and those of shards on the meta device, for readers that
        need only the rest of the checkpoint.
    Raises ValueError if it is not a checkpoint, is damaged, or holds code, and OSError if it may not be read.
    """
    sharded = is_sharded(path)
    try:
        (path / REST if sharded else path).open("rb").close()
    except FileNotFoundError:
        raise ValueError(f"ckpt={path} does not exist") from None
    except OSError as error:
        raise unreadable(f"ckpt={path}", error) from None
    try:
        if sharded:
            return read_sharded(path) if weights else read_rest(path)
        changed = changed_record(path, tensors=weights)
    except (ValueError, PermissionError):
        raise
    except Exception as error:
        raise _no_checkpoint(path, error) from None
    if changed:
        raise ValueError(
            f"ckpt={path} is damaged: {changed} in it is not what was written; take another checkpoint"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except PermissionError:
        raise
    except Exception as error:  # it may be a ValueError, such as one about the byte order
        raise _no_checkpoint(path, error) from None


def _no_checkpoint(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"ckpt={path} cannot be read as a checkpoint ({type(error).__name__}): it is damaged, or holds "
        "more than tensors and plain data, which is never loaded; take another checkpoint"
    )


def read_checkpoint(path: Path, *, weights: bool = True) -> SavedRun:
    """The run in a checkpoint that rfdit wrote; `weights` as of `read_raw`.

    Raises ValueError for any other file, a damaged checkpoint, and one of another format.
    """
    raw = read_raw(path, weights=weights)
    if not isinstance(raw, dict) or "rfdit" not in raw:
        raise ValueError(f"ckpt={path} was not written by rfdit's train.py")
    header, prefix = raw["rfdit"], "network."
    with explained(f"ckpt={path} is damaged: it has another structure than a checkpoint"):
        if header["format"] != FORMAT:
            raise ValueError(
                f"ckpt={path} has format {header['format']}, and this rfdit reads format {FORMAT}; use the rfdit "
                "that wrote it"
            )
        try:
            saved = SavedRun.checked(
                path,
                step=raw["global_step"],
                config=header["config"],
                latents=header["latents"],
                class_names=header.get("class_names"),
                base=header.get("base"),
                network={
                    k.removeprefix(prefix): v for k, v in raw["state_dict"].items() if k.startswith(prefix)
                },
                ema={name: dict(average["network"]) for name, average in raw.get("ema", {}).items()},
            )
        except KeyError as error:
            raise ValueError(f"ckpt={path} is damaged: it lacks a part of a checkpoint ({error})") from None
    for section, kind in RESUMED.items():
        if section in raw and type(raw[section]) is not kind:
            raise ValueError(f"ckpt={path} is damaged: its {section} are not what training wrote")
    return saved
