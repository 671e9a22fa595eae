"""The published checkpoints of DiT, SiT, REPA and LightningDiT, which share one set of names.

Sources, read for names and conventions only: facebookresearch/DiT (arXiv 2212.09748), willisma/SiT
(2401.08740), sihyun-yu/REPA (2410.06940), hustvl/LightningDiT (2501.01423).
"""

import argparse
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from rfdit.interchange.naming import Stack, State, linear, shapes_of, to_ours, to_theirs
from rfdit.interchange.published.blocks import as_plain, head_norm_stacks
from rfdit.model import DiT
from rfdit.model.layers.embeddings import sincos_positions
from rfdit.storage.checksum import changed_record
from rfdit.storage.untrusted import unreadable

# Width -> heads, of the DiT paper's sizes and of LightningDiT's larger ones.
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24, 1792: 28}


# Where a state dict may be in a file, averages first.
STATES = ("ema", "ema_model", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")
FIRST = "x_embedder.proj.weight"  # a tensor that every network of the family has


@dataclass(frozen=True)
class Layout:
    """The differences between a repository's network and ours, apart from names.

    time_scale: its sinusoid takes time_scale times our t, or times 1 - t if reversed.
    reversed: it has noise at t = 0 and data at t = 1, so its velocity is data - noise.
    learns_variance: its outputs may be doubled, and the second half is kept for `sampler=ddpm`.
    training_only: prefixes of weights that sampling does not use.
    """

    time_scale: float
    reversed: bool
    learns_variance: bool = False
    training_only: tuple[str, ...] = ()


LAYOUTS = {
    # Timesteps 0 to 999 of DDPM, and noise instead of velocity.
    "dit": Layout(time_scale=1000.0, reversed=False, learns_variance=True),
    "sit": Layout(time_scale=1.0, reversed=True),
    "repa": Layout(time_scale=1.0, reversed=False, training_only=("projectors.",)),
    "lightningdit": Layout(time_scale=1.0, reversed=True),
}


def read_published(file: Path) -> tuple[State, dict[str, Any]]:
    """The averaged weights of a .safetensors file or a torch checkpoint, and the arguments of the script that wrote it.

    None of its code is run, and names are without what wrappers and the compiler put before them.

    Raises ValueError if the file is missing or damaged, or holds more than tensors and plain data, and OSError
    if it may not be read.
    """
    try:
        file.open("rb").close()
    except FileNotFoundError:
        raise ValueError(f"file={file} does not exist") from None
    except OSError as error:
        raise unreadable(f"file={file}", error) from None
    try:
        if zipfile.is_zipfile(file) and (record := changed_record(file)):
            raise ValueError(f"{record} has changed")
        if file.suffix == ".safetensors" or _begins_as_safetensors(file):
            found: Any = load_file(file)
        else:
            # Their training scripts save their arguments, which are plain data, beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a reader, which has many
        raise ValueError(
            f"file={file} cannot be read as weights ({type(error).__name__}): it is damaged, or holds more than "
            "tensors and plain data, which is never loaded; give a state dict alone"
        ) from None
    args = found.get("args") if isinstance(found, dict) else None
    for name in STATES:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict) or not found or not all(map(_is_entry, found.items())):
        raise ValueError(f"file={file} has no state dict, neither at its top nor under {', '.join(STATES)}")
    state = {name.replace("_orig_mod.", "").removeprefix("module."): x.float() for name, x in found.items()}
    return state, vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(
        args, dict
    ) else {}


def _begins_as_safetensors(file: Path) -> bool:
    """True for a file with the length of a header and its first brace, whatever its name."""
    with file.open("rb") as opened:
        begin = opened.read(9)
    return len(begin) == 9 and begin[8:] == b"{" and int.from_bytes(begin[:8], "little") < 1 << 30


def unwrapped(state: State) -> State:
    """The network's tensors by its own names, in the state dict of a module that has it as a part.

    Of several, the one whose name says that it is an average (`ema_model.`) is taken.
    Raises ValueError if that leaves a choice.
    """
    prefixes = [name.removesuffix(FIRST) for name in state if f".{name}".endswith(f".{FIRST}")]
    found = [prefix for prefix in prefixes if "ema" in prefix] or prefixes
    if len(found) > 1:
        listed = " and ".join(prefix or "no name" for prefix in found)
        raise ValueError(f"file has several networks, under {listed}; give a state dict of one")
    if found in ([], [""]):
        return state
    return {name.removeprefix(found[0]): x for name, x in state.items() if name.startswith(found[0])}


def _is_entry(entry: tuple[object, object]) -> bool:
    """True for an entry of a state dict: a name, and a tensor with values."""
    name, x = entry
    dense = isinstance(x, Tensor) and x.layout is torch.strided and not x.is_meta and not x.is_quantized
    return isinstance(name, str) and dense


def published_stacks(depth: int) -> list[Stack]:
    """Our tensors in terms of theirs."""
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
    theirs: Mapping[str, Tensor], layout: Layout, num_heads: int | None, *, null_class: bool = True
) -> tuple[State, dict[str, Any]]:
    """The state dict of our `Network` with class labels, and the settings of its `DiT`.

    The weights absorb the direction of time and the sign of the velocity, so that the network takes our t
    and predicts noise - data.
    null_class: the last row of the label table is the null class; otherwise it gets one of zeros.
    num_heads: needed for a width that no size of the DiT paper has.
    Raises ValueError that names what rfdit's DiT does not support, if their network has it.
    """
    state = {name: x for name, x in theirs.items() if not name.startswith(layout.training_only)}
    settings = _geometry(state, layout, num_heads)
    state, blocks = as_plain(state, settings["num_heads"])
    if blocks.get("positions") and settings["positions"] != "sincos":
        raise ValueError(
            "file has rotary positions beside a learned table, which rfdit's DiT does not support"
        )
    settings |= blocks
    stacks = published_stacks(settings["depth"])
    if "qk_norm" in blocks:
        stacks += head_norm_stacks(settings["depth"], blocks["qk_norm"])
    known = {name for stack in stacks for name in stack.theirs}
    if unknown := sorted(state.keys() - known):
        raise ValueError(f"file needs more than rfdit's DiT has (as {unknown[0]})")
    channels, patch = settings["in_channels"], settings["patch_size"]
    if layout.learns_variance and len(state.get("final_layer.linear.bias", ())) == 2 * channels * patch**2:
        settings["out_channels"] = 2 * channels
    else:
        _without_sigma(state, channels, patch)
    table = "y_embedder.embedding_table.weight"
    if not null_class and table in state:
        state[table] = torch.cat([state[table], torch.zeros_like(state[table][:1])])
    ours = to_ours(stacks, state, _our_shapes(settings, state))
    return (_turned(ours) if layout.reversed else ours), settings


def to_published(ours: State, layout: Layout, settings: Mapping[str, Any]) -> State:
    """The inverse of `from_published`, without the learned variance and weights that only training used.

    settings: settings of the `DiT`, as `from_published` returns them.
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
    names = (FIRST, "pos_embed", "blocks.0.adaLN_modulation.1.weight")
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"file lacks {missing[0]}, which every DiT of this family has")
    kernel, positions = state[names[0]].shape, state["pos_embed"].shape
    square = len(positions) == 3 and math.isqrt(positions[1]) ** 2 == positions[1]
    if len(kernel) != 4 or not square or positions[::2] != (1, kernel[0]) or not math.prod(kernel):
        found = ", ".join(f"{name} of {list(state[name].shape)}" for name in names[:2])
        raise ValueError(f"file has {found}, not a convolution's kernel and the positions of a square")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    if len(state[names[2]]) not in (4 * width, 6 * width):
        raise ValueError(f"file has adaLN of {len(state[names[2]])} rows, neither 4 nor 6 vectors of {width}")
    side = math.isqrt(state["pos_embed"].shape[1])
    if num_heads is None and width not in HEADS:
        raise ValueError(
            f"file has the width {width}, which no size of the DiT paper has; give num_heads=..."
        )
    frozen = torch.allclose(state["pos_embed"][0], sincos_positions(side, side, width), atol=1e-4)
    depth = 1 + max(int(block[1]) for name in state if (block := re.match(r"blocks\.(\d{1,9})\.", name)))
    if depth > len(state):
        raise ValueError(f"file has {len(state)} tensors, and among them those of block {depth - 1}")
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
    """Removes the learned variance, the second half of every output pixel's channels."""
    for part in ("weight", "bias"):
        name = f"final_layer.linear.{part}"
        if name in state and len(state[name]) == 2 * channels * patch**2:
            pixels = rearrange(state[name], "(p q c) ... -> p q c ...", p=patch, q=patch)
            state[name] = rearrange(pixels[:, :, :channels], "p q c ... -> (p q c) ...")


def _turned(state: State) -> State:
    """The network as a function of 1 - t, with its output negated; this undoes itself.

    With s = 1 - t and a sinusoid of scale 1, cos(s w) = cos w cos(t w) + sin w sin(t w) and
    sin(s w) = sin w cos(t w) - cos w sin(t w): the first layer of the time MLP absorbs the rotation.
    """
    hidden = state["backbone.time.hidden.weight"].double()
    half = hidden.shape[1] // 2
    w = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float64))
    a, b = hidden.split(half, dim=1)
    rotated = torch.cat([a * w.cos() + b * w.sin(), a * w.sin() - b * w.cos()], dim=1)
    turned = {"backbone.time.hidden.weight": rotated.float()}
    turned |= {name: -state[name] for name in ("backbone.final.linear.weight", "backbone.final.linear.bias")}
    return state | turned
