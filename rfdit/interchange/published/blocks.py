"""The blocks of LightningDiT and REPA that differ from DiT's, as settings of our `DiT` and DiT's names.

Sources, read for names and conventions only: hustvl/LightningDiT (MIT; arXiv 2501.01423) and sihyun-yu/REPA
(MIT; 2410.06940). Their blocks may have

    SwiGLU              mlp.w12, two matrices in one, and mlp.w3, of hidden width int(2/3 int(4 d))
    RMSNorm             norm1, norm2 and norm_final with weights w, which adaLN's scale takes in:
                        w norm(x) (1 + scale) = norm(x) (1 + scale'), scale' = w scale + w - 1
    rotary positions    of rows, then columns, in neighbouring pairs at 10000^(-2i/m), m half a head,
                        beside the frozen table that is added
    norms of heads      attn.q_norm and attn.k_norm; LayerNorm if they have biases, RMSNorm if not
    no shifts           adaLN with the vectors scale, gate, scale, gate
"""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from rfdit.interchange.naming import Stack, State
from rfdit.model.layers.rope import RotaryPositions, even_axes

SWIGLU = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
ROPE = "feat_rope."  # buffers, the same for every block


def as_plain(theirs: Mapping[str, Tensor], num_heads: int | None) -> tuple[State, dict[str, Any]]:
    """The network with DiT's names and norms without weights, and the settings of `DiT` in which it differs.

    num_heads: needed to check rotary positions.
    Raises ValueError for positions or a hidden width that our `DiT` does not have.
    """
    state = {name: x for name, x in theirs.items() if not name.startswith(ROPE)}
    width = len(theirs["x_embedder.proj.weight"])
    settings: dict[str, Any] = {}
    if rotary := {name: x for name, x in theirs.items() if name.startswith(ROPE)}:
        _check_rotary(rotary, width, num_heads)
        settings["positions"] = "sincos+rope"
    if "blocks.0.mlp.w12.weight" in state:
        settings |= {"mlp": "swiglu", "mlp_ratio": _ratio(width, theirs["blocks.0.mlp.w3.weight"].shape[1])}
        for part, plain in SWIGLU.items():
            state = {name.replace(part, plain): x for name, x in state.items()}
    if len(theirs["blocks.0.adaLN_modulation.1.weight"]) == 4 * width:
        settings["shifts"] = False
    if "blocks.0.attn.q_norm.weight" in state:
        settings["qk_norm"] = "layer" if "blocks.0.attn.q_norm.bias" in state else "rms"
    if "final_layer.norm_final.weight" in state:
        settings["norm"] = "rms"
        state = _without_norms(state, width)
    return state, settings


def head_norm_stacks(depth: int, norm: str) -> list[Stack]:
    """The norms of queries and keys of all blocks."""
    return [
        Stack(f"backbone.blocks.{i}.x.{part}_norm.{kind}", (f"blocks.{i}.attn.{part}_norm.{kind}",))
        for i in range(depth)
        for part in "qk"
        for kind in (("weight", "bias") if norm == "layer" else ("weight",))
    ]


def _ratio(width: int, hidden: int) -> float:
    """The `mlp_ratio` with which our SwiGLU has this hidden width."""
    for ratio in (4.0, 1.5 * hidden / width, (1.5 * hidden + 0.5) / width, (1.5 * hidden + 1.0) / width):
        if int(2 / 3 * int(ratio * width)) == hidden:
            return ratio
    raise ValueError(f"file has SwiGLU of hidden width {hidden}, which no model.mlp_ratio gives at {width}")


def _check_rotary(theirs: Mapping[str, Tensor], width: int, num_heads: int | None) -> None:
    """Raises ValueError unless the buffers are those of our rotary positions."""
    cos, sin = (theirs.get(f"{ROPE}freqs_{part}") for part in ("cos", "sin"))
    if cos is None or sin is None or cos.ndim != 2 or cos.shape != sin.shape:
        raise ValueError(f"file has rotary positions of another kind (as {next(iter(theirs))})")
    n, head = cos.shape
    side = int(n**0.5)
    if side**2 != n or head * (num_heads or width // head) != width:
        raise ValueError(
            f"file has rotary positions of {n} tokens and {head} numbers, not of a square of heads"
        )
    axes = even_axes(head, 2, setting="a file with rotary positions")
    made = RotaryPositions(axes=axes)(side, side, device=cos.device)
    for given, expected in ((cos, made.cos), (sin, made.sin)):
        if not torch.allclose(given, expected.repeat_interleave(2, dim=1), atol=1e-4):
            raise ValueError("file has rotary positions that are not rows, then columns, at 10000^(-2i/m)")


def _without_norms(state: State, width: int) -> State:
    """The state dict with the weights of its norms of tokens taken in by adaLN's scales."""
    plain = dict(state)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.endswith(".norm1.weight"))
    for i in range(depth):
        table = f"blocks.{i}.adaLN_modulation.1"
        vectors = len(state[f"{table}.bias"]) // width  # shift, scale, gate of each half, or no shift
        for norm, scale in (("norm1", vectors // 2 - 2), ("norm2", vectors - 2)):
            _take_in(plain, table, scale, plain.pop(f"blocks.{i}.{norm}.weight"))
    _take_in(plain, "final_layer.adaLN_modulation.1", 1, plain.pop("final_layer.norm_final.weight"))
    return plain


def _take_in(state: State, table: str, scale: int, weight: Tensor) -> None:
    """Changes rows `scale` of a table of vectors: W <- w W, b <- w b + w - 1."""
    width, w = len(weight), weight.double()
    rows, bias = (
        rearrange(state[f"{table}.{part}"].double(), "(k d) ... -> k d ...", d=width).clone()
        for part in ("weight", "bias")
    )
    rows[scale] *= w[:, None]
    bias[scale] = w * bias[scale] + w - 1
    state[f"{table}.weight"], state[f"{table}.bias"] = rows.flatten(0, 1).float(), bias.flatten().float()
