"""LightningDiT: our network computes the same as a forward pass written from their code's definitions."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor

from rfdit.batch import Condition
from rfdit.interchange.published.layout import LAYOUTS, from_published
from rfdit.model import DiT
from tests.support.commands.command_line import CommandLine
from tests.support.models.parity import check_parity

WIDTH, DEPTH, HEADS, CHANNELS, SIDE, CLASSES = 48, 2, 4, 32, 4, 7  # patch 1, as published
HEAD, HIDDEN = WIDTH // HEADS, int(2 / 3 * 4 * WIDTH)
State = dict[str, Tensor]
KINDS: dict[str, dict[str, object]] = {
    "as published": {},
    "qk norm": {"qk": "rms"},
    "without shifts": {"vectors": 4},
    "layer norm of heads": {"qk": "layer", "rms": False},
}


def rope_tables() -> tuple[Tensor, Tensor]:
    """Their buffers: angles of the row, then of the column, each twice in a row."""
    frequencies = 1.0 / 10000 ** (torch.arange(0, HEAD // 2, 2).float() / (HEAD // 2))
    angles = (torch.arange(SIDE).float()[:, None] * frequencies).repeat_interleave(2, dim=1)
    rows, columns = angles[:, None].expand(-1, SIDE, -1), angles[None].expand(SIDE, -1, -1)
    both = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return both.cos(), both.sin()


def published(*, vectors: int = 6, qk: str | None = None, rms: bool = True) -> State:
    """A state dict with their names and random values."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.8 * (math.prod(shape[1:]) or 16) ** -0.5 * torch.randn(*shape, generator=generator)

    shapes = {
        "x_embedder.proj": (WIDTH, CHANNELS, 1, 1), "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH), "final_layer.linear": (CHANNELS, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }  # fmt: skip
    for i in range(DEPTH):
        shapes |= {
            f"blocks.{i}.attn.qkv": (3 * WIDTH, WIDTH), f"blocks.{i}.attn.proj": (WIDTH, WIDTH),
            f"blocks.{i}.mlp.w12": (2 * HIDDEN, WIDTH), f"blocks.{i}.mlp.w3": (WIDTH, HIDDEN),
            f"blocks.{i}.adaLN_modulation.1": (vectors * WIDTH, WIDTH),
        }  # fmt: skip
    state = {f"{name}.weight": draw(*shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": draw(shape[0]) for name, shape in shapes.items()}
    if rms:
        norms = [f"blocks.{i}.norm{k}" for i in range(DEPTH) for k in (1, 2)] + ["final_layer.norm_final"]
        state |= {f"{name}.weight": 1 + draw(WIDTH) for name in norms}
    for i in range(DEPTH if qk else 0):
        for part in "qk":
            state[f"blocks.{i}.attn.{part}_norm.weight"] = 1 + draw(HEAD)
            if qk == "layer":
                state[f"blocks.{i}.attn.{part}_norm.bias"] = draw(HEAD)
    state["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, WIDTH, generator=generator)
    state["pos_embed"] = get_2d_sincos_pos_embed(WIDTH, SIDE, base_size=SIDE).float()[None]
    state["feat_rope.freqs_cos"], state["feat_rope.freqs_sin"] = rope_tables()
    return state


def reference(w: Mapping[str, Tensor], x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Their network at their times, from its definitions."""
    cos, sin = w["feat_rope.freqs_cos"], w["feat_rope.freqs_sin"]

    def linear(name: str, z: Tensor) -> Tensor:
        return z @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def rms(z: Tensor, weight: Tensor) -> Tensor:
        return z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    def norm(name: str, z: Tensor) -> Tensor:
        if f"{name}.weight" in w:
            return rms(z, w[f"{name}.weight"])
        return F.layer_norm(z, z.shape[-1:], eps=1e-6)

    def of_heads(name: str, z: Tensor) -> Tensor:
        if f"{name}.bias" in w:
            return F.layer_norm(z, z.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
        return rms(z, w[f"{name}.weight"]) if f"{name}.weight" in w else z

    def turned(z: Tensor) -> Tensor:
        other = torch.stack([-z[..., 1::2], z[..., ::2]], dim=-1).flatten(-2)
        return z * cos + other * sin

    def modulate(z: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
        scaled = z * (1 + scale[:, None])
        return scaled if shift is None else scaled + shift[:, None]

    angles = t[:, None] * 10000 ** (-torch.arange(128) / 128)
    c = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    c = linear("t_embedder.mlp.2", F.silu(c)) + w["y_embedder.embedding_table.weight"][y]
    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"])
    h = h.flatten(2).transpose(1, 2) + w["pos_embed"]
    b, n, d = h.shape
    for i in range(DEPTH):
        block = f"blocks.{i}"
        mod: list[Tensor | None] = [*linear(f"{block}.adaLN_modulation.1", F.silu(c)).split(d, dim=1)]
        if len(mod) == 4:
            mod = [None, *mod[:2], None, *mod[2:]]
        shift1, scale1, gate1, shift2, scale2, gate2 = mod
        qkv = linear(f"{block}.attn.qkv", modulate(norm(f"{block}.norm1", h), shift1, scale1))
        q, k, v = qkv.reshape(b, n, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        q, k = turned(of_heads(f"{block}.attn.q_norm", q)), turned(of_heads(f"{block}.attn.k_norm", k))
        attended = (q @ k.transpose(-2, -1) / HEAD**0.5).softmax(-1) @ v
        h = h + gate1[:, None] * linear(f"{block}.attn.proj", attended.transpose(1, 2).reshape(b, n, d))
        u1, u2 = linear(f"{block}.mlp.w12", modulate(norm(f"{block}.norm2", h), shift2, scale2)).chunk(
            2, dim=-1
        )
        h = h + gate2[:, None] * linear(f"{block}.mlp.w3", F.silu(u1) * u2)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, dim=1)
    out = linear("final_layer.linear", modulate(norm("final_layer.norm_final", h), shift, scale))
    return out.transpose(1, 2).reshape(b, CHANNELS, SIDE, SIDE)


X = torch.randn(3, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.0, 0.37, 1.0])
Y = torch.tensor([0, 5, CLASSES])  # the last is the null class


@pytest.mark.parametrize("kind", KINDS)
def test_the_velocity_is_theirs(kind: str) -> None:
    theirs = published(**KINDS[kind])
    state, settings = from_published(theirs, LAYOUTS["lightningdit"], HEADS)
    assert (settings["mlp"], settings["mlp_ratio"], settings["positions"]) == ("swiglu", 4.0, "sincos+rope")
    network = DiT(**settings)
    prefix = "backbone."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    cond = Condition(pooled=state["conditioner.table.weight"][Y])
    check_parity(
        f"LightningDiT, {kind}",
        lambda z, t: network(z, t, cond),
        lambda z, t: -reference(theirs, z, 1 - t, Y),
        X,
        T,
    )


def test_other_rotary_positions_are_refused() -> None:
    theirs = published()
    theirs["feat_rope.freqs_cos"] = theirs["feat_rope.freqs_cos"].flip(1)
    with pytest.raises(ValueError, match="rotary positions that are not rows, then columns"):
        from_published(theirs, LAYOUTS["lightningdit"], HEADS)
    learned = published() | {"pos_embed": torch.randn(1, SIDE**2, WIDTH)}
    with pytest.raises(ValueError, match="rotary positions beside a learned table"):
        from_published(learned, LAYOUTS["lightningdit"], HEADS)


def test_latents_with_a_mean_and_std_for_each_channel(cli: CommandLine) -> None:
    torch.save({"ema": published()}, "their.pt")
    mean, std = torch.linspace(-1, 1, 32), torch.linspace(0.5, 2, 32)
    torch.save({"mean": mean.view(1, 32, 1, 1), "std": std.view(1, 32, 1, 1)}, "latents_stats.pt")
    request = ["source=lightningdit", "file=their.pt", "out=out", "autoencoder=vavae", f"num_heads={HEADS}"]
    cli.convert(*request, "latents_stats=latents_stats.pt")
    described = (Path("out") / "config.json").read_text()
    assert '"statistics": "settings"' in described
    torch.save({"mean": mean}, "latents_stats.pt")
    assert cli.error(
        "convert", *request[:2], "out=other", *request[3:], "latents_stats=latents_stats.pt"
    ) == (
        "latents_stats=latents_stats.pt does not have a mean and a std of 32 channels each, which "
        "autoencoder=vavae has"
    )
