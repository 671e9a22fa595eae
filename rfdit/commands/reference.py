"""`rfdit reference`: statistics of real images, with which evaluations compare; see conf/reference.yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from rfdit.config.build import build
from rfdit.config.command import command
from rfdit.config.data_group import build_reader, validate_parts
from rfdit.data.decode import SampleDecoder
from rfdit.data.skips import listed
from rfdit.device import pick_device
from rfdit.eval.reference.build import build_reference
from rfdit.eval.reference.files import save_reference
from rfdit.eval.reference.images import DecodedImages, ImageFiles, NpzImages, RealImages
from rfdit.images import parse_size
from rfdit.storage.folders import make_folder


def open_images(config: dict[str, Any]) -> RealImages:
    """The images of `images=`, or of a data group; raises ValueError, naming the setting."""
    subset = {"count": config["count"], "seed": config["seed"], "workers": config["num_workers"]}
    if config["images"] is None:
        data = config["data"]
        if config["resolution"] is not None:
            raise ValueError("resolution applies to images=... only; for data give data.resolution")
        reader, shards = build_reader(data)
        source = reader(shards, filters=build(data["filters"]))
        size = parse_size(data["resolution"], setting="data.resolution")
        return DecodedImages(source, build(data["decoder"]), size, name=_name(shards), **subset)
    path = Path(config["images"]).expanduser()
    given = config["resolution"]
    resolution = None if given is None else parse_size(given, setting="resolution")
    if path.suffix == ".npz":
        images = NpzImages(path)
        if resolution not in (None, images.size):
            raise ValueError(
                f"resolution={resolution}: the images of {path} have {images.size}, and are not resized"
            )
        if config["count"] is not None:
            raise ValueError(f"count={config['count']}: an npz is read whole; leave it out")
        return images
    if not path.is_dir():
        raise ValueError(f"images={path} is not a folder and not an .npz; for tar shards use data=laion")
    files = ImageFiles(path)
    decoder = SampleDecoder(caption_key=None)
    return DecodedImages(files, decoder, resolution or files.one_size(), name=path.name, **subset)


def _name(shards: Sequence[str]) -> str:
    """The shards in words, without folders, which say nothing on another machine."""
    first, last = (Path(shard).name for shard in (shards[0], shards[-1]))
    return first if len(shards) == 1 else f"{len(shards)} shards, {first} to {last}"


def reference(cfg: DictConfig) -> Path:
    """Runs the command and returns the file that was written; raises ValueError, naming the setting."""
    OmegaConf.set_struct(cfg, False)
    if cfg.images is not None:
        cfg.data = {}
    cfg.data.pop("val_shards", None)
    config = validate_parts(cfg)
    out = Path(config["out"]).expanduser()
    device = pick_device(config["accelerator"], "accelerator")
    images = open_images(config)
    make_folder(out.parent, setting="out")
    kept = np.random.default_rng(config["seed"]).permutation(images.count)[: config["features"]]
    built = build_reference(
        images,
        build(config["network"]),
        data=images.name,
        device=device,
        batch_size=config["batch_size"],
        keep=frozenset(kept.tolist()),
    )
    save_reference(built, out)
    skipped = f"; left out: {listed(images.skipped)}" if images.skipped else ""
    count = built.settings()["images"]
    print(f"{count} images of {built.image_size} through {built.network} in {out}{skipped}", flush=True)
    return out


@command("reference")
def main(cfg: DictConfig) -> None:
    """The program `rfdit reference`."""
    reference(cfg)
