"""From a checkpoint to what samples from it."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from rfdit.config import build, build_network
from rfdit.model.backbone import compile_blocks
from rfdit.network import Network
from rfdit.sampler import Pipeline
from rfdit.sampling.place import Place
from rfdit.training.checkpoint import SavedRun, find_checkpoint, newest_run, read_checkpoint
from rfdit.training.trainer import pick_device, pick_precision
from rfdit.trusted import check_targets

BUILT = ("model", "conditioner", "text_encoder", "autoencoder")  # of a checkpoint's configuration


def open_checkpoint(ckpt: str | None) -> SavedRun:
    """The checkpoint that `ckpt` names; raises ValueError with what to write if it is not given."""
    if ckpt is None:
        newest = newest_run(Path("outputs"))
        hint = f"; the newest run here is ckpt={newest}" if newest else ""
        raise ValueError(f"ckpt is not set; give ckpt=RUN_FOLDER or a .ckpt file{hint}")
    return read_checkpoint(find_checkpoint(ckpt))


def load_network(saved: SavedRun, config: dict[str, Any], weights: str) -> Network:
    """The saved network with its raw weights, or those of the average of a name."""
    state = saved.weights(weights)
    network = build_network(config)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def load_pipeline(saved: SavedRun, config: dict[str, Any], place: Place | None = None) -> Pipeline:
    """The pipeline that `sample.yaml` asks for, around the saved network.

    Raises ValueError if the checkpoint's configuration names anything but classes of `packages`.
    """
    trained = json.loads(json.dumps(saved.config))  # a copy: the encoders' places may change below
    for encoder in ("autoencoder", "text_encoder"):
        if config[encoder]["source"] is not None:
            trained[encoder]["source"] = config[encoder]["source"]
    if "encoder" in trained["conditioner"]:
        trained["conditioner"]["encoder"] = trained["text_encoder"]
    check_targets({part: trained.get(part) for part in BUILT}, config.get("packages", ["rfdit"]))
    device = (place or Place(0, 1)).device(pick_device(config["accelerator"], "accelerator"))
    height, width = latent_size(trained, config.get("resolution"))
    network = load_network(saved, trained, config["weights"]).to(device)
    if config.get("compile"):
        assert isinstance(network.backbone, nn.Module)
        compile_blocks(network.backbone)
    return Pipeline(
        network=network,
        autoencoder=build(trained["autoencoder"]),
        sampler=build(config["sampler"]),
        latent_shape=(trained["model"]["in_channels"], height, width),
        device=device,
        bf16=pick_precision(config["precision"], device, "precision") == "bf16-mixed",
        batch_size=config["batch_size"],
        decode_batch=config.get("decode_batch"),
    )


def with_scales(
    pipeline: Pipeline, sampler: dict[str, Any], scales: list[float] | None
) -> dict[float | None, Pipeline]:
    """The pipeline itself under None, and one for each guidance scale.

    sampler: its settings. Raises ValueError for a guidance that has no scale.
    """
    pipelines: dict[float | None, Pipeline] = {None: pipeline}
    for scale in scales or ():
        guidance = _with_scale(sampler["guidance"], scale)
        if guidance == _with_scale(sampler["guidance"], None):
            name = sampler["guidance"]["_target_"].rpartition(".")[2]
            raise ValueError(
                f"scales={scales} needs a guidance with a scale, and {name} has none; use guidance=cfg"
            )
        pipelines[scale] = pipeline.with_sampler(build(sampler | {"guidance": guidance}))
    return pipelines


def _with_scale(guidance: Any, scale: float | None) -> Any:
    """The settings of a guidance, or of one inside it, with another scale."""
    if not isinstance(guidance, dict):
        return guidance
    if "scale" in guidance:
        return guidance | {"scale": scale}
    return {name: _with_scale(value, scale) for name, value in guidance.items()}


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
