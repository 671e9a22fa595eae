"""A folder from which diffusers alone generates the same images."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from rfdit.autoencoder.pretrained import load_pretrained
from rfdit.checkpoint.registry import check_saved
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import build
from rfdit.cost.plan import bounded
from rfdit.interchange.card import model_card
from rfdit.interchange.clip_tokenizer import write_clip_tokenizer
from rfdit.interchange.folder import CARD, check_free
from rfdit.interchange.for_diffusers.names import (
    dit_norm_stacks,
    dit_stacks,
    mmdit_stacks,
    pooled_mlp_stacks,
    pooled_stacks,
    positions_stack,
    repeat_embedding,
)
from rfdit.interchange.for_diffusers.transformer import flux_as_diffusers
from rfdit.interchange.naming import State, check_weights, shapes_of, to_theirs
from rfdit.model import DiT, Flux, MMDiT, VelocityPrediction
from rfdit.model.layers.embeddings import CroppedPositions, PooledMLP, PositionEmbedding
from rfdit.storage.atomic import write_folder_atomically
from rfdit.storage.untrusted import explained

IDENTITY = "rfdit.autoencoder.identity.IdentityAutoencoder"
DIFFUSERS = "rfdit.autoencoder.diffusers.DiffusersAutoencoder"
BPE = "rfdit.text_encoder.bpe.BPEEncoder"
ENCODER = "conditioner.encoder."  # prefix of a trained text encoder's weights
# Settings of a model that diffusers' classes have, with the default first.
EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "mlp": ("gelu",),
    "norm": ("layer",),
    "qk_norm": (False, True, "rms"),
    "positions": ("sincos", "learned", "cropped"),
    "adaln": ("zero",),
    "shifts": (True,),
    "patch_bottleneck": (None,),
    "durations": (False,),
    "guidance": (None,),
    "outer_blocks": (None,),
}


def write_diffusers_folder(out: Path, saved: SavedRun, weights: str) -> None:
    """A pipeline folder for DiffusionPipeline.from_pretrained(out, trust_remote_code=True).

    Raises ValueError for a network without a counterpart in diffusers or with parts of other packages, and
    OSError if the autoencoder, which is copied into the folder, cannot be found.
    """
    check_free(out)
    with explained(f"{saved.path} cannot be exported"):  # the run may come from anyone
        _write(out, saved, weights)


def _write(out: Path, saved: SavedRun, weights: str) -> None:
    from rfdit.interchange.shipped.pipeline import RectifiedFlowPipeline

    state = saved.weights(weights)
    if saved.config["conditioner"].get("micro") is not None:
        raise ValueError("format=diffusers does not support conditioner.micro; use format=safetensors")
    check_saved(saved, ("model", "prediction", "autoencoder"))
    if type(build(saved.config["prediction"])) is not VelocityPrediction:
        raise ValueError(
            "format=diffusers supports prediction=velocity, which its schedulers integrate, not "
            f"prediction._target_={saved.config['prediction']['_target_']}; use format=safetensors"
        )
    with torch.device("meta"), bounded(len(state)):
        backbone = build(saved.config["model"])
    if isinstance(backbone, Flux):
        check_expressible({n: value for n, value in saved.config["model"].items() if n != "guidance"})
        check_weights(saved.path, backbone, state, "backbone.")
        _write_flux(out, backbone, saved, weights)
        return
    if type(backbone) not in TRANSFORMERS:
        raise ValueError(
            f"format=diffusers supports model=dit, mmdit and flux, not {type(backbone).__name__}; use safetensors"
        )
    check_expressible(saved.config["model"])
    check_weights(saved.path, backbone, state, "backbone.")
    text_encoder, tokenizer = _text_encoder(saved, state)
    height, width = (side * backbone.patch_size for side in _table(backbone).grid)
    pipeline: Any = RectifiedFlowPipeline(
        transformer=as_diffusers(backbone, state),
        scheduler=_scheduler(saved),
        vae=_autoencoder(saved.config["autoencoder"], saved.latents),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        latent_height=height,
        latent_width=width,
        downsampling=saved.latents["downsampling"],
    )
    argument = "207" if saved.knows_labels else '"a red circle"'
    usage = (
        "from diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)\n'
        f'pipeline({argument}, num_inference_steps=25).images[0].save("image.png")'
    )
    card = model_card(saved, weights, library="diffusers", usage=usage)

    def write(folder: Path) -> None:
        pipeline.save_pretrained(folder)
        if tokenizer is not None:  # again, in the form that older versions of transformers read too
            write_clip_tokenizer(folder / "tokenizer", length=text_encoder.config.length)
        (folder / CARD).write_text(card)

    write_folder_atomically(out, write, durable=True)


def _write_flux(out: Path, backbone: Flux, saved: SavedRun, weights: str) -> None:
    """The folders `transformer` and `scheduler` of a FluxPipeline, whose other parts are not a run's."""
    transformer, scheduler = flux_as_diffusers(backbone, saved.weights(weights)), _scheduler(saved)
    usage = (
        "from diffusers import FluxPipeline, FluxTransformer2DModel\n\n"
        'transformer = FluxTransformer2DModel.from_pretrained("FOLDER", subfolder="transformer")\n'
        'pipeline = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", transformer=transformer)'
    )
    card = model_card(saved, weights, library="diffusers", usage=usage)

    def write(folder: Path) -> None:
        transformer.save_pretrained(folder / "transformer")
        scheduler.save_pretrained(folder / "scheduler")
        (folder / CARD).write_text(card)

    write_folder_atomically(out, write, durable=True)


def check_expressible(model: dict[str, Any]) -> None:
    """Raises ValueError for a setting of a model that diffusers' classes do not have."""
    for name, values in EXPRESSIBLE.items():
        if (value := model.get(name, values[0])) not in values:
            raise ValueError(f"format=diffusers cannot express model.{name}={value}; use format=safetensors")


def _table(backbone: DiT | MMDiT) -> PositionEmbedding | CroppedPositions:
    """The positions of a backbone with a table of them, as all have that diffusers can express."""
    assert backbone.positions is not None
    return backbone.positions


def as_diffusers(backbone: DiT | MMDiT, state: State) -> Any:
    """The transformer of diffusers that computes the same as the backbone of a `Network`'s state dict.

    DiT becomes the shipped RectifiedFlowDiT. MMDiT becomes SD3Transformer2DModel itself if that can
    express the linear layer of the pooled caption, and the shipped RectifiedFlowMMDiT otherwise.
    Raises ValueError, naming the setting, for a backbone that none of them can express.
    """
    stream: Any = backbone.blocks[0].x
    if stream.mlp_in.out_features != 4 * backbone.width:
        raise ValueError(
            "format=diffusers needs model.mlp_ratio=4, which diffusers' blocks have; use safetensors"
        )
    transformer, theirs = TRANSFORMERS[type(backbone)](backbone, state)
    transformer.load_state_dict(theirs, assign=True)
    return transformer.eval().requires_grad_(False)


def _dit(backbone: DiT, state: State) -> tuple[Any, State]:
    from rfdit.interchange.shipped.rectified_flow_dit import RectifiedFlowDiT

    if "conditioner.table.weight" not in state:
        raise ValueError(
            "format=diffusers supports model=dit with class labels, not with captions; use format=safetensors"
        )
    rows, columns = _table(backbone).grid
    if rows != columns:
        raise ValueError(
            f"format=diffusers with model=dit needs square images, not {rows}x{columns} patches; use safetensors"
        )
    depth = len(backbone.blocks)
    stream: Any = backbone.blocks[0].x
    with torch.device("meta"):
        transformer = RectifiedFlowDiT(
            num_attention_heads=stream.num_heads,
            attention_head_dim=backbone.width // stream.num_heads,
            in_channels=_channels(backbone),
            num_layers=depth,
            sample_size=rows * backbone.patch_size,
            patch_size=backbone.patch_size,
            num_embeds_ada_norm=len(state["conditioner.table.weight"]) - 1,
            qk_norm=stream.qk_norm is not None,
            time_scale=backbone.time.scale,
        )
    stacks = [*dit_stacks(depth), positions_stack(), *(dit_norm_stacks(depth) if stream.qk_norm else [])]
    return transformer, repeat_embedding(to_theirs(stacks, state, shapes_of(transformer.state_dict())), depth)


def _mmdit(backbone: MMDiT, state: State) -> tuple[Any, State]:
    from diffusers import SD3Transformer2DModel

    from rfdit.interchange.shipped.rectified_flow_mmdit import RectifiedFlowMMDiT

    depth = len(backbone.blocks)
    stream: Any = backbone.blocks[0].x
    pooled: Any = backbone.pooled
    is_mlp = isinstance(pooled, PooledMLP)  # as theirs is
    pooled_width = (pooled.hidden if is_mlp else pooled).in_features
    fits = is_mlp or 2 * pooled_width <= backbone.width
    kind: Any = SD3Transformer2DModel if fits else RectifiedFlowMMDiT
    table: Any = _table(backbone)
    is_cropped = isinstance(table, CroppedPositions)
    with torch.device("meta"):
        transformer = kind(
            sample_size=max(table.grid) * backbone.patch_size,
            patch_size=backbone.patch_size,
            in_channels=_channels(backbone),
            num_layers=depth,
            attention_head_dim=backbone.width // stream.num_heads,
            num_attention_heads=stream.num_heads,
            joint_attention_dim=backbone.captions.in_features,
            caption_projection_dim=backbone.width,
            pooled_projection_dim=pooled_width,
            out_channels=_channels(backbone),
            pos_embed_max_size=table.side if is_cropped else max(table.grid),
            qk_norm="rms_norm" if stream.qk_norm else None,
        )
    stacks = mmdit_stacks(depth, qk_norm=stream.qk_norm is not None) + ([] if fits else pooled_stacks())
    stacks += pooled_mlp_stacks() if is_mlp else []
    stacks += [positions_stack()] if is_cropped else []
    theirs = to_theirs(stacks, state, shapes_of(transformer.state_dict()))
    if not is_cropped:
        theirs["pos_embed.pos_embed"] = square_table(state["backbone.positions.table"], table)
    if fits and not is_mlp:
        theirs |= linear_as_mlp(state["backbone.pooled.weight"], state["backbone.pooled.bias"])
    return transformer, theirs


TRANSFORMERS: dict[type, Callable[[Any, State], tuple[Any, State]]] = {DiT: _dit, MMDiT: _mmdit}


def linear_as_mlp(weight: Float[Tensor, "d p"], bias: Float[Tensor, "d"]) -> State:
    """SD3's MLP of the pooled caption with the weights that make it linear.

    silu(x) - silu(-x) = x (sigmoid(x) + sigmoid(-x)) = x, so 2p of its d hidden units suffice.
    """
    d, p = weight.shape
    both_signs, difference = torch.zeros(d, p), torch.zeros(d, d)
    both_signs[:p], both_signs[p : 2 * p] = torch.eye(p), -torch.eye(p)
    difference[:, :p], difference[:, p : 2 * p] = weight, -weight
    name = "time_text_embed.text_embedder.linear_"
    return {
        f"{name}1.weight": both_signs,
        f"{name}1.bias": torch.zeros(d),
        f"{name}2.weight": difference,
        f"{name}2.bias": bias.clone(),
    }


def square_table(table: Float[Tensor, "n d"], positions: PositionEmbedding) -> Float[Tensor, "1 m d"]:
    """The positions in the middle of a square, from which SD3 crops them."""
    rows, columns = positions.grid
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    square = torch.zeros(side, side, table.shape[1])
    square[top : top + rows, left : left + columns] = rearrange(table, "(h w) d -> h w d", h=rows)
    return rearrange(square, "h w d -> 1 (h w) d")


def _channels(backbone: DiT | MMDiT) -> int:
    return int(backbone.final.linear.out_features // backbone.patch_size**2)


def _scheduler(saved: SavedRun) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=saved.config["sampler"].get("shift", 1.0))


def _autoencoder(node: dict[str, Any], latents: dict[str, Any]) -> Any:
    """The autoencoder of diffusers that a config node names; None where latents are pixels.

    Raises ValueError for one that the pipeline in the folder could not use.
    """
    if node["_target_"] == IDENTITY:
        return None
    if not all(isinstance(latents[name], int | float) for name in ("scale", "shift")):
        raise ValueError(
            f"format=diffusers supports latents of one scale and shift, and autoencoder={latents['name']} has "
            "statistics for each channel; use format=safetensors"
        )
    if node["_target_"] != DIFFUSERS:
        raise ValueError(
            f"format=diffusers: autoencoder._target_={node['_target_']} is not an autoencoder of diffusers"
        )
    return load_pretrained(node["source"], subfolder=node.get("subfolder"))


def _text_encoder(saved: SavedRun, state: State) -> tuple[Any, Any]:
    """A trained text encoder and its tokenizer; None twice for labels, and for a pretrained encoder."""
    from transformers import CLIPTokenizer

    from rfdit.interchange.shipped.caption_embedding import CaptionEmbedding

    if saved.knows_labels or saved.config["text_encoder"]["_target_"] != BPE:
        return None, None
    weights = {name.removeprefix(ENCODER): x for name, x in state.items() if name.startswith(ENCODER)}
    (vocabulary, width), length = weights["token_embedding.weight"].shape, len(weights["position_embedding"])
    with torch.device("meta"):
        encoder = CaptionEmbedding(vocabulary=vocabulary, width=width, length=length)
    encoder.load_state_dict({name: x.contiguous() for name, x in weights.items()}, assign=True)
    with TemporaryDirectory() as folder:
        write_clip_tokenizer(Path(folder), length=length)
        return encoder, CLIPTokenizer.from_pretrained(folder)
