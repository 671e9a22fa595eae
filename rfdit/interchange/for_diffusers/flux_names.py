"""The weights of Flux in diffusers' FluxTransformer2DModel.

Our names are those of a `Network`'s state dict. Theirs has (scale, shift) in its last norm, where ours has
(shift, scale), and the numbers of an output token in the order (c, p, q), where ours has (p, q, c).
"""

from collections.abc import Mapping

from einops import rearrange
from torch import Tensor

from rfdit.interchange.for_diffusers.names import head_norms
from rfdit.interchange.naming import Stack, State, linear

OUTPUT = ("proj_out.weight", "proj_out.bias")


def flux_stacks(double: int, single: int, *, guided: bool) -> list[Stack]:
    """Flux with so many double-stream and single-stream blocks; guided: with an embedding of guidance."""
    doubles = [f"transformer_blocks.{i}" for i in range(double)]
    singles = [f"single_transformer_blocks.{i}" for i in range(single)]
    embedders = {"time": "timestep_embedder", "pooled": "text_embedder"}
    embedders |= {"time.guidance": "guidance_embedder"} if guided else {}
    stacks = [
        *linear("backbone.patches.proj", "x_embedder"),
        *linear("backbone.captions", "context_embedder"),
        *linear(
            "backbone.modulation.linear",
            *[f"{block}.norm1.linear" for block in doubles],
            *[f"{block}.norm1_context.linear" for block in doubles],
            *[f"{block}.norm.linear" for block in singles],
            "norm_out.linear",
            swapped=["norm_out.linear"],
        ),
        *linear("backbone.final.linear", "proj_out"),
    ]
    for ours, theirs in embedders.items():
        stacks += linear(f"backbone.{ours}.hidden", f"time_text_embed.{theirs}.linear_1")
        stacks += linear(f"backbone.{ours}.out", f"time_text_embed.{theirs}.linear_2")
    for i, theirs in enumerate(doubles):
        x, c, attention = f"backbone.blocks.{i}.x", f"backbone.blocks.{i}.c", f"{theirs}.attn"
        stacks += linear(f"{x}.qkv", *[f"{attention}.to_{part}" for part in "qkv"])
        stacks += linear(f"{c}.qkv", *[f"{attention}.add_{part}_proj" for part in "qkv"])
        stacks += head_norms(x, attention, "") + head_norms(c, attention, "added_")
        for stream, out, mlp in ((x, "to_out.0", "ff"), (c, "to_add_out", "ff_context")):
            stacks += linear(f"{stream}.proj", f"{attention}.{out}")
            stacks += linear(f"{stream}.mlp_in", f"{theirs}.{mlp}.net.0.proj")
            stacks += linear(f"{stream}.mlp_out", f"{theirs}.{mlp}.net.2")
    for i, theirs in enumerate(singles, start=double):
        ours = f"backbone.blocks.{i}"
        stacks += linear(f"{ours}.x.qkv", *[f"{theirs}.attn.to_{part}" for part in "qkv"])
        stacks += head_norms(f"{ours}.x", f"{theirs}.attn", "")
        stacks += linear(f"{ours}.mlp_in", f"{theirs}.proj_mlp") + linear(
            f"{ours}.proj", f"{theirs}.proj_out"
        )
    return stacks


def our_outputs(theirs: Mapping[str, Tensor], patch: int) -> State:
    """Their state dict with the rows of the output in our order."""
    turned = {
        name: rearrange(theirs[name], "(c p q) ... -> (p q c) ...", p=patch, q=patch) for name in OUTPUT
    }
    return dict(theirs) | turned


def their_outputs(ours: Mapping[str, Tensor], patch: int) -> State:
    """The inverse of `our_outputs`."""
    turned = {
        name: rearrange(ours[name], "(p q c) ... -> (c p q) ...", p=patch, q=patch).contiguous()
        for name in OUTPUT
    }
    return dict(ours) | turned
