"""From a checkpoint to what samples from it."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rfdit.config import build, build_network
from rfdit.interchange.naming import check_weights
from rfdit.interchange.source import open_model
from rfdit.model.backbone import compile_blocks, round_weights
from rfdit.network import Network
from rfdit.sampler import Pipeline
from rfdit.sampler.guidance import with_scale
from rfdit.sampling.guide import find_guide
from rfdit.sampling.place import Place
from rfdit.training.checkpoint import SavedRun, newest_run
from rfdit.training.device import pick_device, pick_precision
from rfdit.trusted import check_targets

BUILT = ("model", "conditioner", "text_encoder", "autoencoder")  # of a checkpoint's configuration


def open_checkpoint(ckpt: str | None) -> SavedRun:
    """The model that `ckpt` names; raises ValueError with what to write if it is not given."""
    if ckpt is None:
        newest = newest_run(Path("outputs"))
        hint = f"; the newest run here is ckpt={newest}" if newest else ""
        raise ValueError(f"ckpt is not set; give ckpt=RUN_FOLDER or a .ckpt file{hint}")
    return open_model(ckpt)


def load_network(saved: SavedRun, config: dict[str, Any], weights: str) -> Network:
    """The saved network with its raw weights, or those of the average of a name.

    Raises ValueError for weights of another network than the configuration's.
    """
    state = saved.weights(weights)
    network = build_network(config)
    check_weights(saved.path, network, state)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def load_pipeline(saved: SavedRun, config: dict[str, Any], place: Place | None = None) -> Pipeline:
    """The pipeline that `sample.yaml` asks for, around the saved network.

    Raises ValueError if a checkpoint's configuration names anything but classes of `packages`, and for
    a guide that does not fit.
    """
    trained = _trained(saved, config)
    device = (place or Place(0, 1)).device(pick_device(config["accelerator"], "accelerator"))
    height, width = latent_size(trained, config.get("resolution"))
    sampler, autoencoder = build(config["sampler"]), build(trained["autoencoder"])
    bf16 = pick_precision(config["precision"], device, "precision") == "bf16-mixed"

    def ready(network: Network) -> Network:
        network.to(device)
        assert isinstance(network.backbone, nn.Module)
        if bf16:
            round_weights(network.backbone, torch.bfloat16)
        if config.get("compile"):
            compile_blocks(network.backbone)
        return network

    guide = find_guide(sampler.guidance)
    if guide is not None:
        theirs = open_checkpoint(guide.ckpt)
        guide.check(theirs, saved)
        their_config = _trained(theirs, config)
        down = trained["autoencoder"]["downsampling"]
        latent_size(their_config, [height * down, width * down])
        guide.network = ready(load_network(theirs, their_config, guide.weights))
    return Pipeline(
        network=ready(load_network(saved, trained, config["weights"])),
        autoencoder=autoencoder,
        sampler=sampler,
        latent_shape=(trained["model"]["in_channels"], height, width),
        device=device,
        bf16=bf16,
        batch_size=config["batch_size"],
        decode_batch=config.get("decode_batch"),
        guide=None if guide is None else guide.conditioner,
    )


def _trained(saved: SavedRun, config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration, with its encoders where they are now; nothing but classes of `packages`."""
    trained: dict[str, Any] = json.loads(json.dumps(saved.config))  # a copy
    for encoder in ("autoencoder", "text_encoder"):
        if config[encoder]["source"] is not None:
            trained[encoder]["source"] = config[encoder]["source"]
    if "encoder" in trained["conditioner"]:
        trained["conditioner"]["encoder"] = trained["text_encoder"]
    check_targets({part: trained.get(part) for part in BUILT}, config.get("packages", ["rfdit"]))
    return trained


def with_scales(pipeline: Pipeline, scales: Sequence[float] | None) -> dict[float | None, Pipeline]:
    """The pipeline itself under None, and one for each guidance scale; raises ValueError as `with_scale` does."""
    pipelines: dict[float | None, Pipeline] = {None: pipeline}
    for scale in scales or ():
        sampler = copy.copy(pipeline.sampler)
        sampler.guidance = with_scale(sampler.guidance, scale)
        pipelines[scale] = pipeline.with_sampler(sampler)
    return pipelines


def latent_size(trained: dict[str, Any], resolution: Any) -> tuple[int, int]:
    """(height, width) of the latents of pictures of a resolution, a side or [height, width]; null is the model's own.

    Raises ValueError for one that the autoencoder or the patches do not divide, or whose positions the
    model has not learned.
    """
    model = trained["model"]
    own = model["input_size"]
    own = (own, own) if isinstance(own, int) else (own[0], own[1])
    if resolution is None:
        return own
    sides = [resolution, resolution] if isinstance(resolution, int) else resolution
    if not (isinstance(sides, list) and len(sides) == 2 and all(isinstance(s, int) and s > 0 for s in sides)):
        raise ValueError(f"resolution={resolution} is no size; give a side, or [height,width], in pixels")
    down, patch = trained["autoencoder"]["downsampling"], model["patch_size"]
    if any(side % (down * patch) for side in sides):
        near = [max(1, round(side / (down * patch))) * down * patch for side in sides]
        raise ValueError(
            f"resolution={sides} is no multiple of {down * patch} (autoencoder.downsampling={down} times "
            f"model.patch_size={patch}); the nearest that is one is {near}"
        )
    size = (sides[0] // down, sides[1] // down)
    if model.get("positions") == "learned" and size != own:
        raise ValueError(
            f"resolution={sides}: the model was trained with model.positions=learned, which know "
            f"{[side * down for side in own]} alone"
        )
    return size
