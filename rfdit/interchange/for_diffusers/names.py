"""The weights of DiT and MMDiT in diffusers' DiTTransformer2DModel and SD3Transformer2DModel.

Our names are those of a `Network`'s state dict. For differences other than names see
`rfdit.interchange.for_diffusers.folder`.
"""

from rfdit.interchange.naming import Stack, State, linear

# Theirs embeds time and label in every block, with the same weights in those that come from us.
EMBEDDING = "transformer_blocks.0.norm1.emb"


def dit_stacks(depth: int) -> list[Stack]:
    """DiT and its label table as DiTTransformer2DModel with one embedding for all blocks.

    Its positions are computed; `positions_stack` is for those that are saved.
    """
    stacks = [
        *linear("backbone.patches.proj", "pos_embed.proj"),
        *linear("backbone.time.hidden", f"{EMBEDDING}.timestep_embedder.linear_1"),
        *linear("backbone.time.out", f"{EMBEDDING}.timestep_embedder.linear_2"),
        Stack("conditioner.table.weight", (f"{EMBEDDING}.class_embedder.embedding_table.weight",)),
        *linear(
            "backbone.modulation.linear",
            *[f"transformer_blocks.{i}.norm1.linear" for i in range(depth)],
            "proj_out_1",
        ),
        *linear("backbone.final.linear", "proj_out_2"),
    ]
    for i in range(depth):
        ours, theirs = f"backbone.blocks.{i}.x", f"transformer_blocks.{i}"
        attention = f"{theirs}.attn1"
        stacks += linear(f"{ours}.qkv", f"{attention}.to_q", f"{attention}.to_k", f"{attention}.to_v")
        stacks += linear(f"{ours}.proj", f"{attention}.to_out.0")
        stacks += linear(f"{ours}.mlp_in", f"{theirs}.ff.net.0.proj")
        stacks += linear(f"{ours}.mlp_out", f"{theirs}.ff.net.2")
    return stacks


def repeat_embedding(state: State, depth: int) -> State:
    """Their state dict with the first block's embedding in every block."""
    first = {name: tensor for name, tensor in state.items() if name.startswith(EMBEDDING)}
    return state | {
        name.replace("blocks.0.", f"blocks.{i}."): tensor.clone()
        for i in range(1, depth)
        for name, tensor in first.items()
    }


def positions_stack() -> Stack:
    """The table of positions, if theirs is saved and as large as ours."""
    return Stack("backbone.positions.table", ("pos_embed.pos_embed",))


def dit_norm_stacks(depth: int) -> list[Stack]:
    """The norms of queries and keys, if DiT has them; DiTTransformer2DModel has none."""
    return [
        stack
        for i in range(depth)
        for stack in head_norms(f"backbone.blocks.{i}.x", f"transformer_blocks.{i}.attn1", "")
    ]


def mmdit_stacks(depth: int, *, qk_norm: bool) -> list[Stack]:
    """MMDiT as SD3Transformer2DModel, without the pooled caption and the positions.

    Theirs has (scale, shift) where ours has (shift, scale): in its last norm, and in the last one of the
    captions.
    """
    blocks = [f"transformer_blocks.{i}" for i in range(depth)]
    ends = [f"{blocks[-1]}.norm1_context.linear", "norm_out.linear"]
    stacks = [
        *linear("backbone.patches.proj", "pos_embed.proj"),
        *linear("backbone.captions", "context_embedder"),
        *linear("backbone.time.hidden", "time_text_embed.timestep_embedder.linear_1"),
        *linear("backbone.time.out", "time_text_embed.timestep_embedder.linear_2"),
        *linear(
            "backbone.modulation.linear",
            *[f"{block}.norm1.linear" for block in blocks],
            *[f"{block}.norm1_context.linear" for block in blocks],
            "norm_out.linear",
            swapped=ends,
        ),
        *linear("backbone.final.linear", "proj_out"),
    ]
    for i, theirs in enumerate(blocks):
        x, c, attention = f"backbone.blocks.{i}.x", f"backbone.blocks.{i}.c", f"{theirs}.attn"
        stacks += linear(f"{x}.qkv", f"{attention}.to_q", f"{attention}.to_k", f"{attention}.to_v")
        stacks += linear(f"{x}.proj", f"{attention}.to_out.0")
        stacks += linear(f"{x}.mlp_in", f"{theirs}.ff.net.0.proj")
        stacks += linear(f"{x}.mlp_out", f"{theirs}.ff.net.2")
        added = [f"{attention}.add_{part}_proj" for part in "qkv"]
        stacks += linear(f"{c}.qkv", *added)
        if qk_norm:
            stacks += head_norms(x, attention, "") + head_norms(c, attention, "added_")
        if i < depth - 1:
            stacks += linear(f"{c}.proj", f"{attention}.to_add_out")
            stacks += linear(f"{c}.mlp_in", f"{theirs}.ff_context.net.0.proj")
            stacks += linear(f"{c}.mlp_out", f"{theirs}.ff_context.net.2")
    return stacks


def pooled_stacks() -> list[Stack]:
    """The pooled caption's linear layer, in an SD3Transformer2DModel with one in place of its MLP."""
    return linear("backbone.pooled", "time_text_embed.text_embedder")


def pooled_mlp_stacks() -> list[Stack]:
    """The pooled caption's two layers, where ours has them too."""
    text = "time_text_embed.text_embedder"
    return [
        *linear("backbone.pooled.hidden", f"{text}.linear_1"),
        *linear("backbone.pooled.out", f"{text}.linear_2"),
    ]


def head_norms(ours: str, attention: str, added: str) -> list[Stack]:
    """The norms of queries and keys of a stream."""
    return [
        Stack(f"{ours}.{part}_norm.weight", (f"{attention}.norm_{added}{part}.weight",))
        for part in ("q", "k")
    ]
