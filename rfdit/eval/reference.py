"""Statistics of real images, with which evaluations compare: compose, validate, measure, write.

Run as python -m rfdit.eval.reference; see conf/reference.yaml.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from jaxtyping import UInt8
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, build, register, validate
from rfdit.data.decode import SampleDecoder
from rfdit.data.decoded import decoded_samples
from rfdit.data.sample import Decoder
from rfdit.data.shards import resolve_shards
from rfdit.data.skips import SkipReason
from rfdit.data.source import Source
from rfdit.eval.build_reference import build_reference
from rfdit.eval.real_images import NpzImages, PictureFolder, SourcePart
from rfdit.eval.reference_files import save_reference
from rfdit.training.device import pick_device

CHUNK = 32  # images that a worker decodes at a time


@dataclass
class Decoded:
    """Images of a source; what cannot be read is left out and counted."""

    source: Source
    decoder: Decoder
    size: tuple[int, int]
    workers: int
    skipped: Counter[SkipReason]

    def __iter__(self) -> Iterator[UInt8[Tensor, "3 H W"]]:
        for sample in decoded_samples(
            self.source, self.decoder, self.size, chunk=CHUNK, workers=self.workers
        ):
            if isinstance(sample, SkipReason):
                self.skipped[sample] += 1
            else:
                yield sample.image


def open_images(config: dict[str, Any]) -> tuple[Iterable[Tensor], int, str]:
    """The images of the configuration, how many there are at most, and where they come from, in words.

    Raises ValueError, naming the setting.
    """
    if config["images"] is None:
        data = config["data"]
        if config["resolution"] is not None:
            raise ValueError("resolution is that of images=...; for data give data.resolution")
        reader, decoder = build(data["reader"]), build(data["decoder"])
        given = build(data["shards"]) if isinstance(data["shards"], dict) else data["shards"]
        shards = resolve_shards(given, suffixes=reader.suffixes)
        source: Source = reader(shards, filters=build(data["filters"]))
        size, said = _size(data["resolution"], "data.resolution"), _named(shards)
    else:
        path, decoder = Path(config["images"]).expanduser(), SampleDecoder(caption_key=None)
        wanted = None if config["resolution"] is None else _size(config["resolution"], "resolution")
        if path.suffix == ".npz":
            return _npz(path, wanted, config["count"])
        if not path.is_dir():
            raise ValueError(f"images={path} is no folder and no .npz; for tar shards use data=laion")
        pictures = PictureFolder(path)
        source, size, said = pictures, wanted or pictures.one_size(), path.name
    count = sum(source.shard_sizes)
    if config["count"] is not None:
        if not 2 <= config["count"] <= count:
            raise ValueError(f"count={config['count']}: there are {count} images, and at least 2 are needed")
        chosen = np.random.default_rng(config["seed"]).permutation(count)[: config["count"]]
        source, said = SourcePart(source, chosen), f"{said}, {config['count']} random images"
        count = config["count"]
    return Decoded(source, decoder, size, config["num_workers"], Counter()), count, said


def _npz(path: Path, size: tuple[int, int] | None, count: int | None) -> tuple[Iterable[Tensor], int, str]:
    images = NpzImages(path)
    if size not in (None, images.size):
        raise ValueError(f"resolution={size}: the images of {path} have {images.size}, and are not resized")
    if count is not None:
        raise ValueError(f"count={count}: an npz is read whole; leave it out")
    return images, images.count, path.name


def _named(shards: Sequence[str]) -> str:
    """The data in words, without folders, which say nothing elsewhere."""
    first, last = (Path(shard).name for shard in (shards[0], shards[-1]))
    return first if len(shards) == 1 else f"{len(shards)} shards, {first} to {last}"


def _size(resolution: Any, setting: str) -> tuple[int, int]:
    sides = [resolution, resolution] if isinstance(resolution, int) else resolution
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides):
        raise ValueError(f"{setting}={resolution} is no side and no [height, width] in pixels")
    return sides[0], sides[1]


def reference(cfg: DictConfig) -> Path:
    """One run of the command; returns the file that was written. Raises ValueError, naming the setting."""
    OmegaConf.set_struct(cfg, False)
    if cfg.images is not None:
        cfg.data = {}
    # Not all of the group is built, so its parts are checked and not the whole.
    cfg.data.pop("_target_", None)
    cfg.data.pop("val_shards", None)
    config = validate(cfg)
    out = Path(config["out"]).expanduser()
    if config["features"] < 0 or config["batch_size"] < 1:
        raise ValueError(
            f"features={config['features']}, batch_size={config['batch_size']}: at least 0 and 1 are wanted"
        )
    device = pick_device(config["accelerator"], "accelerator")
    images, count, data = open_images(config)
    kept = np.random.default_rng(config["seed"]).permutation(count)[: config["features"]]
    made = build_reference(
        images,
        build(config["network"]),
        data=data,
        device=device,
        batch_size=config["batch_size"],
        keep=frozenset(kept.tolist()),
    )
    save_reference(made, out)
    skipped = images.skipped if isinstance(images, Decoded) else Counter()
    left_out = "".join(f"; {n} left out: {reason}" for reason, n in sorted(skipped.items()))
    about = made.protocol()
    print(
        f"{about['images']} images of {made.image_size} through {made.network} in {out}{left_out}", flush=True
    )
    return out


@hydra.main(config_path=str(CONFIG_DIR), config_name="reference", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    with explain_errors("reference", ValueError, OSError):
        reference(cfg)


def main() -> None:
    """The entry of `python -m rfdit.eval.reference`."""
    register()
    with explain_errors("reference"):
        _main()


if __name__ == "__main__":
    main()
