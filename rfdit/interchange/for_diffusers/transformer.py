"""Transformers of diffusers as ours: SD3Transformer2DModel as MMDiT, FluxTransformer2DModel as Flux.

Their weights come from a folder of diffusers, or from one file with diffusers' names or the original ones.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rfdit.interchange.for_diffusers.flux_names import flux_stacks, our_outputs, their_outputs
from rfdit.interchange.for_diffusers.names import mmdit_stacks, pooled_mlp_stacks, positions_stack
from rfdit.interchange.naming import Stack, State, shapes_of, to_ours, to_theirs
from rfdit.interchange.published.layout import read_published
from rfdit.model import MMDiT
from rfdit.model.flux import Flux
from rfdit.storage.untrusted import read_json

Settings = dict[str, Any]
SD3_HEAD = 64  # width of a head in all published SD3 models
SD3_SIDE = 128  # latent pixels along a side for which they are configured, those of 1024 pixels
FLUX_PATCH = 2  # diffusers' class takes patches that are made outside of it
MOST_BLOCKS = 1000
TEXT = "time_text_embed.text_embedder"


def read_transformer(path: Path) -> tuple[State, Settings]:
    """The weights and the configuration of a transformer of diffusers; the latter is empty for a single file.

    path: a pipeline's folder, its `transformer` folder, or a file.
    Raises ValueError if it is damaged or has no transformer, and OSError if it may not be read.
    """
    if not path.is_dir():
        return read_published(path)[0], {}
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise ValueError(f"file={path} has no transformer: a config.json and .safetensors files")
    state: State = {}
    for file in files:
        try:
            state |= {name: tensor.float() for name, tensor in load_file(file).items()}
        except Exception as error:  # of a reader, which has many
            raise ValueError(f"file={file} cannot be read as weights ({type(error).__name__})") from None
    config = read_json(folder / "config.json")
    return state, config if isinstance(config, dict) else {}


def from_sd3(
    theirs: Mapping[str, Tensor], config: Mapping[str, Any], num_heads: int | None = None
) -> tuple[State, Settings]:
    """The state dict of a `Network` and the settings of its `MMDiT`.

    num_heads: that of a file without configuration whose heads are not 64 wide.
    Raises ValueError for weights of another network, and for SD3.5 medium's second attention.
    """
    if any(name.startswith("joint_blocks.") or "diffusion_model" in name for name in theirs):
        from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

        theirs = convert_sd3_transformer_checkpoint_to_diffusers(dict(theirs))
    if any(".attn2." in name for name in theirs):
        raise ValueError(
            "file has a second attention in its blocks (SD3.5 medium), which MMDiT does not have"
        )
    width, channels, patch, _ = _shape(theirs, "pos_embed.proj.weight", 4)
    side = math.isqrt(_shape(theirs, "pos_embed.pos_embed", 3)[1])
    norm = theirs.get("transformer_blocks.0.attn.norm_q.weight")
    head = int(config.get("attention_head_dim") or (SD3_HEAD if norm is None else len(norm)))
    depth = _blocks(theirs, "transformer_blocks")
    settings: Settings = {
        "width": width,
        "depth": depth,
        "num_heads": num_heads or _divided(width, head),
        "patch_size": patch,
        "in_channels": channels,
        "input_size": int(config.get("sample_size") or min(SD3_SIDE, side * patch)),
        "pooled_width": _shape(theirs, f"{TEXT}.linear_1.weight", 2)[1],
        "token_width": _shape(theirs, "context_embedder.weight", 2)[1],
        "qk_norm": "rms" if norm is not None else False,
        "positions": "cropped",
        "positions_side": side,
        "pooled_mlp": True,
    }
    return _taken(theirs, sd3_stacks(depth, qk_norm=norm is not None), MMDiT, settings), settings


def sd3_stacks(depth: int, *, qk_norm: bool) -> list[Stack]:
    """All of SD3Transformer2DModel: that of `mmdit_stacks`, its MLP of the pooled caption, and its positions."""
    return [
        *mmdit_stacks(depth, qk_norm=qk_norm),
        *pooled_mlp_stacks(),
        positions_stack(),
    ]


def from_flux(
    theirs: Mapping[str, Tensor], config: Mapping[str, Any], num_heads: int | None = None
) -> tuple[State, Settings]:
    """The state dict of a `Network` and the settings of its `Flux`; raises ValueError as `from_sd3` does.

    A network that was distilled from guidance is evaluated at 3.5, the published default.
    """
    if any(name.startswith(("double_blocks.", "model.diffusion_model.")) for name in theirs):
        from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

        theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(theirs))
    width, numbers = _shape(theirs, "x_embedder.weight", 2)
    (head,) = _shape(theirs, "transformer_blocks.0.attn.norm_q.weight", 1)
    if numbers % FLUX_PATCH**2 or _shape(theirs, "proj_out.weight", 2)[0] != numbers:
        raise ValueError(f"file takes tokens of {numbers} numbers, and not as many come out")
    guided = "time_text_embed.guidance_embedder.linear_1.weight" in theirs
    double, single = (_blocks(theirs, name) for name in ("transformer_blocks", "single_transformer_blocks"))
    settings: Settings = {
        "width": width,
        "depth": double,
        "single_depth": single,
        "num_heads": num_heads or _divided(width, head),
        "patch_size": FLUX_PATCH,
        "in_channels": numbers // FLUX_PATCH**2,
        "input_size": SD3_SIDE,
        "pooled_width": _shape(theirs, f"{TEXT}.linear_1.weight", 2)[1],
        "token_width": _shape(theirs, "context_embedder.weight", 2)[1],
        "axes": [int(numbers) for numbers in config["axes_dims_rope"]]
        if "axes_dims_rope" in config
        else None,
        "guidance": 3.5 if guided else None,
    }
    theirs = our_outputs(theirs, FLUX_PATCH)
    return _taken(theirs, flux_stacks(double, single, guided=guided), Flux, settings), settings


def flux_as_diffusers(backbone: Flux, state: State) -> Any:
    """The FluxTransformer2DModel that computes the same; raises ValueError for settings that it does not have."""
    from diffusers import FluxTransformer2DModel

    first: Any = backbone.blocks[0]
    stream, hidden, axes = first.x, 4 * backbone.width, backbone.rotary.axes
    if len(axes) != 3 or backbone.rotary.theta != 10000.0 or stream.mlp_in.out_features != hidden:
        raise ValueError(
            "format=diffusers needs three model.axes, model.rope_theta=10000 and model.mlp_ratio=4, which "
            "FluxTransformer2DModel has; use format=safetensors"
        )
    patch, guided = backbone.patch_size, backbone.guidance is not None
    single = len(backbone.blocks) - backbone.depth
    with torch.device("meta"):
        transformer: Any = FluxTransformer2DModel(
            in_channels=backbone.patches.proj.in_features,
            num_layers=backbone.depth,
            num_single_layers=single,
            attention_head_dim=backbone.width // stream.num_heads,
            num_attention_heads=stream.num_heads,
            joint_attention_dim=backbone.captions.in_features,
            pooled_projection_dim=backbone.pooled.hidden.in_features,
            guidance_embeds=guided,
            axes_dims_rope=axes,
        )
    stacks = flux_stacks(backbone.depth, single, guided=guided)
    theirs = their_outputs(to_theirs(stacks, state, shapes_of(transformer.state_dict())), patch)
    transformer.load_state_dict(theirs, assign=True)
    return transformer.eval().requires_grad_(False)


def _taken(
    theirs: Mapping[str, Tensor], stacks: list[Stack], kind: type[MMDiT | Flux], settings: Settings
) -> State:
    """Our state dict; raises ValueError if there is more in theirs."""
    if unknown := sorted(theirs.keys() - {name for stack in stacks for name in stack.theirs}):
        raise ValueError(f"file needs more than {kind.__name__} has (as {unknown[0]})")
    with torch.device("meta"):
        backbone = kind(**settings)
    shapes = {f"backbone.{name}": shape for name, shape in shapes_of(backbone.state_dict()).items()}
    return to_ours(stacks, theirs, shapes)


def _shape(theirs: Mapping[str, Tensor], name: str, axes: int) -> torch.Size:
    if name not in theirs or theirs[name].ndim != axes:
        raise ValueError(f"file lacks {name} of {axes} axes, which every network of this source has")
    return theirs[name].shape


def _blocks(theirs: Mapping[str, Tensor], prefix: str) -> int:
    """The number of blocks under a prefix."""
    found = [int(m[1]) for name in theirs if (m := re.match(rf"{prefix}\.(\d{{1,4}})\.", name))]
    if not found or max(found) >= min(MOST_BLOCKS, len(theirs)):
        raise ValueError(f"file has no blocks {prefix}.0 to {prefix}.{MOST_BLOCKS - 1}")
    return 1 + max(found)


def _divided(width: int, head: int) -> int:
    if head < 1 or width % head:
        raise ValueError(f"file has heads of {head} numbers, which do not divide the width {width}")
    return width // head


TRANSFORMERS = {"sd3": from_sd3, "flux": from_flux}
KINDS = {"sd3": "MMDiT", "flux": "Flux"}
