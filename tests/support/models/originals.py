"""The networks of published repositories, written from their papers over state dicts with their names.

DiT (arXiv 2212.09748, sec. 3.2), SiT (2401.08740) and REPA (2410.06940) share one network.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, DEPTH, HEADS, PATCH, CHANNELS, SIDE, CLASSES = 48, 2, 4, 2, 4, 4, 7
State = dict[str, Tensor]


def published(source: str, *, sigma: bool = False, seed: int = 0, width: int = WIDTH) -> State:
    """A state dict in the layout of a repository, of random values."""
    generator = torch.Generator().manual_seed(seed)
    out = PATCH**2 * CHANNELS * (2 if sigma else 1)
    shapes = {"x_embedder.proj": (width, CHANNELS, PATCH, PATCH), "t_embedder.mlp.0": (width, 256)}
    shapes |= {"t_embedder.mlp.2": (width, width), "final_layer.linear": (out, width)}
    shapes |= {"final_layer.adaLN_modulation.1": (2 * width, width)}
    for i in range(DEPTH):
        block = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        block |= {"adaLN_modulation.1": (6, 1)}
        shapes |= {f"blocks.{i}.{name}": (a * width, b * width) for name, (a, b) in block.items()}
    if source == "repa":
        shapes |= {"projectors.0.0": (10, width), "projectors.0.2": (6, 10)}

    def draw(*shape: int) -> Tensor:
        fan_in = math.prod(shape[1:]) or 16
        return 0.8 * fan_in**-0.5 * torch.randn(*shape, generator=generator)

    state = {f"{name}.weight": draw(*shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": draw(shape[0]) for name, shape in shapes.items()}
    state["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, width, generator=generator)
    state["pos_embed"] = torch.randn(1, SIDE**2, width, generator=generator)
    return state


def head_norm(w: State, name: str, z: Tensor) -> Tensor:
    """RMSNorm of heads with a weight, eps 1e-6 (timm's); with a bias as well it is LayerNorm, eps 1e-5 (torch's)."""
    if f"{name}.bias" in w:
        z = z - z.mean(-1, keepdim=True)
        return z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
    return z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]


def reference(w: State, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The network of the papers, in the time and with all the outputs of its own repository."""

    def linear(name: str, z: Tensor) -> Tensor:
        return z @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    def modulate(z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return norm(z) * (1 + scale[:, None]) + shift[:, None]

    angles = t[:, None] * 10000 ** (-torch.arange(128) / 128)
    emb = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    c = linear("t_embedder.mlp.2", emb * emb.sigmoid()) + w["y_embedder.embedding_table.weight"][y]
    c = c * c.sigmoid()
    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=PATCH)
    h = h.flatten(2).transpose(1, 2) + w["pos_embed"]
    b, n, d = h.shape
    for i in range(DEPTH):
        block = f"blocks.{i}"
        mod = linear(f"{block}.adaLN_modulation.1", c).split(d, dim=1)
        if len(mod) == 4:  # without shifts
            none = torch.zeros_like(mod[0])
            mod = (none, mod[0], mod[1], none, mod[2], mod[3])
        qkv = linear(f"{block}.attn.qkv", modulate(h, mod[0], mod[1])).reshape(b, n, 3, HEADS, d // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if f"{block}.attn.q_norm.weight" in w:
            q, k = (head_norm(w, f"{block}.attn.{name}", z) for name, z in (("q_norm", q), ("k_norm", k)))
        attended = (q @ k.transpose(-2, -1) / (d // HEADS) ** 0.5).softmax(-1) @ v
        h = h + mod[2][:, None] * linear(f"{block}.attn.proj", attended.transpose(1, 2).reshape(b, n, d))
        u = linear(f"{block}.mlp.fc1", modulate(h, mod[3], mod[4]))
        u = 0.5 * u * (1 + torch.tanh((2 / math.pi) ** 0.5 * (u + 0.044715 * u**3)))
        h = h + mod[5][:, None] * linear(f"{block}.mlp.fc2", u)
    h = linear(
        "final_layer.linear", modulate(h, *linear("final_layer.adaLN_modulation.1", c).split(d, dim=1))
    )
    pixels = h.reshape(b, SIDE, SIDE, PATCH, PATCH, -1)
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, SIDE * PATCH, SIDE * PATCH)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()
