"""From a saved model to the pipeline that samples from it."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rfdit.autoencoder.contract import LatentContract
from rfdit.checkpoint.registry import check_saved, is_registered
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.conditioning import sample_with
from rfdit.config.build import build, build_backbone, build_network
from rfdit.cost.plan import bounded, build_on_meta
from rfdit.device import pick_device, pick_precision
from rfdit.generate.guide import find_guide
from rfdit.images import parse_size
from rfdit.interchange.naming import check_weights
from rfdit.interchange.source import open_model, with_sources
from rfdit.model.acceleration import compile_blocks, round_weights
from rfdit.model.layers.embeddings import HasGrid
from rfdit.network import Network
from rfdit.processes.rank import Process
from rfdit.sampler import Pipeline, Sampler
from rfdit.sampler.guidance import with_scale
from rfdit.storage.untrusted import explained

SLACK = 1000  # tensors that a network may have beyond those of its weights, for a message that names one
BUILT = (
    "model",
    "prediction",
    "conditioner",
    "text_encoder",
    "autoencoder",
)  # groups of a checkpoint's configuration


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Settings with which a saved model samples; `sample.yaml` describes them.

    weights: raw, ema, or another average's name.
    resolution: size of the images, a side or [height, width]; None is the model's own.
    autoencoder, text_encoder: locations of their weights, if not those that training used.
    packages: those of the user's own whose classes the model's configuration may name.
    micro: numbers of micro-conditioning, by name.
    """

    sampler: Sampler
    weights: str = "ema"
    resolution: Any = None
    batch_size: int = 32
    decode_batch: int | None = None
    compile: bool = False
    accelerator: str = "auto"
    precision: str = "auto"
    autoencoder: str | None = None
    text_encoder: str | None = None
    packages: Collection[str] = ()
    micro: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "PipelineSettings":
        """The settings in a validated `sample.yaml`."""
        names = ("weights", "resolution", "batch_size", "decode_batch", "compile", "accelerator", "precision")
        return cls(
            sampler=build(config["sampler"]),
            autoencoder=config["autoencoder"]["source"],
            text_encoder=config["text_encoder"]["source"],
            packages=config["packages"],
            micro=config["micro"],
            **{name: config[name] for name in names},
        )


def load_network(saved: SavedRun, weights: str) -> Network:
    """The saved network with its raw weights, or those of the average of a name.

    Raises ValueError for weights of another network than the configuration's.
    """
    state = saved.weights(weights)
    described = {group: saved.config[group] for group in ("model", "prediction", "conditioner")}
    if all(map(is_registered, described.values())):
        # Without memory, so that settings of another size than the weights' are found before they take any.
        try:
            with bounded(len(state) + SLACK):
                shapes = build_on_meta(described)
        except ValueError as error:
            raise ValueError(f"{saved.path} is damaged: {error}") from None
        check_weights(saved.path, shapes, state)
    network = build_network(saved.config)
    check_weights(saved.path, network, state)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def load_pipeline(saved: SavedRun, settings: PipelineSettings, process: Process | None = None) -> Pipeline:
    """The pipeline around the saved network, on the device of this process.

    Raises ValueError for a saved configuration that names anything but parts of a model, or whose parts
    cannot be built, and for a guide that does not fit.
    """
    with explained(f"{saved.path} cannot be built"):
        return _load_pipeline(_trusted(saved, settings), settings, process or Process())


def _load_pipeline(saved: SavedRun, settings: PipelineSettings, process: Process) -> Pipeline:
    sampler = settings.sampler
    device = process.device(pick_device(settings.accelerator, "accelerator"))
    latent_shape = shape_at(saved, settings.resolution)
    autoencoder = build(saved.config["autoencoder"])
    try:
        autoencoder.contract.check(LatentContract.from_dict(saved.latents))
    except ValueError as error:
        raise ValueError(f"{saved.path} cannot be used: {error}") from None
    bf16 = pick_precision(settings.precision, device, "precision") == "bf16-mixed"

    def ready(saved: SavedRun, weights: str) -> Network:
        network = load_network(saved, weights).to(device)
        sample_with(network.conditioner, settings.micro)
        if bf16:
            round_weights(network.backbone, torch.bfloat16)
        if settings.compile:
            compile_blocks(network.backbone)
        return network

    guide, guide_conditioner = find_guide(sampler.guidance), None
    if guide is not None:
        weak = _trusted(open_model(guide.ckpt), settings)
        guide.check(weak, saved)
        shape_at(weak, [side * autoencoder.downsampling for side in latent_shape[1:]])
        guide.network = ready(weak, guide.weights)
        guide_conditioner = guide.network.conditioner
    return Pipeline(
        network=ready(saved, settings.weights),
        autoencoder=autoencoder,
        sampler=sampler,
        latent_shape=latent_shape,
        device=device,
        bf16=bf16,
        batch_size=settings.batch_size,
        decode_batch=settings.decode_batch,
        guide=guide_conditioner,
    )


def _trusted(saved: SavedRun, settings: PipelineSettings) -> SavedRun:
    """A saved model with its encoders where they are now, once its configuration has been checked."""
    saved = with_sources(saved, autoencoder=settings.autoencoder, text_encoder=settings.text_encoder)
    check_saved(saved, BUILT, settings.packages)
    return saved


def with_scales(pipeline: Pipeline, scales: Sequence[float] | None) -> dict[float | None, Pipeline]:
    """The pipeline itself under None, and one for each guidance scale; raises ValueError as `with_scale` does."""
    pipelines: dict[float | None, Pipeline] = {None: pipeline}
    for scale in scales or ():
        sampler = copy.copy(pipeline.sampler)
        sampler.guidance = with_scale(sampler.guidance, scale)
        pipelines[scale] = pipeline.with_sampler(sampler)
    return pipelines


def shape_at(saved: SavedRun, resolution: Any) -> tuple[int, int, int]:
    """(c, h, w) of the latents of images of a resolution, a side or [height, width]; None is the model's own.

    Raises ValueError for one that the autoencoder or the patches do not divide, or whose positions the
    model has not learned.
    """
    channels, *own = saved.latent_shape
    if resolution is None:
        return saved.latent_shape
    backbone, down = build_backbone(saved.config, empty=True), saved.config["autoencoder"]["downsampling"]
    sides = list(parse_size(resolution, setting="resolution"))
    patch = backbone.patch_size
    if any(side % (down * patch) for side in sides):
        near = [max(1, round(side / (down * patch))) * down * patch for side in sides]
        raise ValueError(
            f"resolution={sides} is not a multiple of {down * patch} (autoencoder.downsampling={down} times "
            f"model.patch_size={patch}); the nearest multiple is {near}"
        )
    height, width = (side // down for side in sides)
    fixed = any(isinstance(module, HasGrid) and module.fixed_grid for module in backbone.modules())
    if fixed and [height, width] != own:
        raise ValueError(
            f"resolution={sides}: the model was trained with model.positions=learned, which exist for "
            f"{[side * down for side in own]} only"
        )
    return channels, height, width
