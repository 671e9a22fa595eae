"""The published checkpoints of DiT, SiT, REPA and LightningDiT, which share one set of names.

Sources, read for names and conventions only: facebookresearch/DiT (arXiv 2212.09748), willisma/SiT
(2401.08740), sihyun-yu/REPA (2410.06940), hustvl/LightningDiT (2501.01423).
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rfdit.interchange.naming import Stack, State, linear, shapes_of, to_ours, to_theirs
from rfdit.model import DiT
from rfdit.model.embeddings import sincos_positions

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # width -> heads, of the DiT paper's sizes


@dataclass(frozen=True)
class Layout:
    """How a repository's network differs from ours beside its names.

    time_scale: its sinusoid is that of time_scale times our t, or 1 - t if reversed.
    reversed: it has noise at t = 0 and data at t = 1, so its velocity is data - noise.
    prediction: what it was trained to predict.
    training_only: prefixes of weights that sampling does not use.
    """

    time_scale: float
    reversed: bool
    prediction: str = "velocity"
    training_only: tuple[str, ...] = ()


LAYOUTS = {
    # Timesteps 0 to 999 of DDPM, and noise instead of velocity.
    "dit": Layout(time_scale=1000.0, reversed=False, prediction="noise"),
    "sit": Layout(time_scale=1.0, reversed=True),
    "repa": Layout(time_scale=1.0, reversed=False, training_only=("projectors.",)),
    "lightningdit": Layout(time_scale=1.0, reversed=True),
}

# Parts of a name -> what rfdit's DiT would need for it.
UNSUPPORTED = {
    ".mlp.w": "SwiGLU",
    ".norm1.": "RMSNorm",
    ".norm2.": "RMSNorm",
    "norm_final.": "RMSNorm",
    "rope": "rotary positions",
    ".q_norm.": "their norm of queries",
    ".k_norm.": "their norm of keys",
}


def read_published(file: Path) -> State:
    """The averaged weights of a .safetensors file or a checkpoint of torch, without running its code.

    Raises ValueError if there is none, or it is damaged, or holds more than tensors and plain data.
    """
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            # Their training scripts save their arguments, which are plain data, beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"file={file} does not exist") from None
    except (SafetensorError, Exception) as error:
        raise ValueError(
            f"file={file} cannot be read as weights ({type(error).__name__}): it is damaged, or holds more than "
            "tensors and plain data, which is never loaded"
        ) from None
    for name in ("ema", "model"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"file={file} holds no state dict, alone or under ema or model")
    return {name.removeprefix("module."): tensor.float() for name, tensor in found.items()}


def published_stacks(depth: int) -> list[Stack]:
    """Which of our tensors are which of theirs."""
    blocks = range(depth)
    stacks = [
        *linear("backbone.patches.proj", "x_embedder.proj"),
        Stack("backbone.positions.table", ("pos_embed",)),
        *linear("backbone.time.hidden", "t_embedder.mlp.0"),
        *linear("backbone.time.out", "t_embedder.mlp.2"),
        Stack("conditioner.table.weight", ("y_embedder.embedding_table.weight",)),
        *linear(
            "backbone.modulation.linear",
            *[f"blocks.{i}.adaLN_modulation.1" for i in blocks],
            "final_layer.adaLN_modulation.1",
        ),
        *linear("backbone.final.linear", "final_layer.linear"),
    ]
    for i in blocks:
        for ours, theirs in {
            "qkv": "attn.qkv",
            "proj": "attn.proj",
            "mlp_in": "mlp.fc1",
            "mlp_out": "mlp.fc2",
        }.items():
            stacks += linear(f"backbone.blocks.{i}.x.{ours}", f"blocks.{i}.{theirs}")
    return stacks


def from_published(
    theirs: Mapping[str, Tensor], layout: Layout, num_heads: int | None
) -> tuple[State, dict[str, Any]]:
    """The state dict of our `Network` with class labels, and the settings of its `DiT`.

    The direction of time and the sign of the velocity are in the weights afterwards: the network takes
    our t and gives noise - data.
    num_heads: where the width is none of the DiT paper's.
    Raises ValueError that says what rfdit's DiT lacks, if it lacks something.
    """
    state = {name: x for name, x in theirs.items() if not name.startswith(layout.training_only)}
    settings = _geometry(state, layout, num_heads)
    stacks = published_stacks(settings["depth"])
    known = {name for stack in stacks for name in stack.theirs}
    if unknown := sorted(state.keys() - known):
        raise ValueError(_unsupported(unknown))
    _without_sigma(state, settings["in_channels"], settings["patch_size"])
    ours = to_ours(stacks, state, _our_shapes(settings, state))
    return (_turned(ours) if layout.reversed else ours), settings


def to_published(ours: State, layout: Layout, settings: Mapping[str, Any]) -> State:
    """What `from_published` reads, without the learned variance and what only training used.

    settings: of the `DiT`, as `from_published` gives them.
    """
    width, patch, channels = (settings[name] for name in ("width", "patch_size", "in_channels"))
    stacks = published_stacks(settings["depth"])
    shapes = {name: ours[stack.ours].shape for stack in stacks for name in stack.theirs}
    for name in shapes:
        if "adaLN_modulation" in name:
            rows = (6 if name.startswith("blocks.") else 2) * width
            shapes[name] = torch.Size([rows, width] if name.endswith("weight") else [rows])
    shapes["x_embedder.proj.weight"] = torch.Size([width, channels, patch, patch])
    shapes["pos_embed"] = torch.Size([1, *shapes["pos_embed"]])
    return to_theirs(stacks, _turned(ours) if layout.reversed else ours, shapes)


def _geometry(state: Mapping[str, Tensor], layout: Layout, num_heads: int | None) -> dict[str, Any]:
    """The settings of a `DiT` of their size."""
    names = ("x_embedder.proj.weight", "pos_embed", "blocks.0.adaLN_modulation.1.weight")
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"file lacks {missing[0]}, which every DiT of this family has")
    if (
        state[names[0]].ndim != 4
        or math.isqrt(state["pos_embed"].shape[-2]) ** 2 != state["pos_embed"].shape[-2]
    ):
        found = ", ".join(f"{name} of {list(state[name].shape)}" for name in names[:2])
        raise ValueError(f"file has {found}, and not a convolution's kernel and the positions of a square")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    if len(state[names[2]]) != 6 * width:
        raise ValueError("file has adaLN without shifts, which rfdit's DiT does not support")
    side = math.isqrt(state["pos_embed"].shape[1])
    if num_heads is None and width not in HEADS:
        raise ValueError(f"file has width {width}, none of the DiT paper's; give num_heads=...")
    frozen = torch.allclose(state["pos_embed"][0], sincos_positions(side, side, width), atol=1e-4)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    hidden = state.get("blocks.0.mlp.fc1.weight")
    return {
        "width": width,
        "depth": depth,
        "num_heads": num_heads or HEADS[width],
        "patch_size": patch,
        "in_channels": channels,
        "input_size": side * patch,
        "mlp_ratio": 4.0 if hidden is None else len(hidden) / width,
        "positions": "sincos" if frozen else "learned",
        "time_scale": layout.time_scale,
    }


def _our_shapes(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        backbone = DiT(**settings)
    shapes = {f"backbone.{name}": shape for name, shape in shapes_of(backbone.state_dict()).items()}
    table = state.get("y_embedder.embedding_table.weight")
    return shapes | ({} if table is None else {"conditioner.table.weight": table.shape})


def _without_sigma(state: State, channels: int, patch: int) -> None:
    """Leaves the learned variance out, the second half of every output pixel's channels."""
    for part in ("weight", "bias"):
        name = f"final_layer.linear.{part}"
        if name in state and len(state[name]) == 2 * channels * patch**2:
            pixels = rearrange(state[name], "(p q c) ... -> p q c ...", p=patch, q=patch)
            state[name] = rearrange(pixels[:, :, :channels], "p q c ... -> (p q c) ...")


def _turned(state: State) -> State:
    """The network as a function of 1 - t, with its output negated; this undoes itself.

    With s = 1 - t and a sinusoid of scale 1, cos(s w) = cos w cos(t w) + sin w sin(t w) and
    sin(s w) = sin w cos(t w) - cos w sin(t w): the first layer of the time MLP takes the rotation in.
    """
    hidden = state["backbone.time.hidden.weight"].double()
    half = hidden.shape[1] // 2
    w = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float64))
    a, b = hidden.split(half, dim=1)
    rotated = torch.cat([a * w.cos() + b * w.sin(), a * w.sin() - b * w.cos()], dim=1)
    turned = {"backbone.time.hidden.weight": rotated.float()}
    turned |= {name: -state[name] for name in ("backbone.final.linear.weight", "backbone.final.linear.bias")}
    return state | turned


def _unsupported(names: list[str]) -> str:
    found = {what for part, what in UNSUPPORTED.items() if any(part in f".{name}" for name in names)}
    needs = ", ".join(sorted(found)) or "more"
    return f"file needs {needs}, which rfdit's DiT does not support (as {names[0]})"
