"""python -m rfdit.convert: what others' checkpoints compute, our network computes.

The reference is a forward pass of its own, from the papers: DiT (arXiv 2212.09748, sec. 3.2), SiT
(2401.08740) and REPA (2410.06940), over a state dict with their names and random values.
"""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from safetensors.torch import save_file
from torch import Tensor

import rfdit
from rfdit.batch import Condition
from rfdit.interchange.folder import read_folder
from rfdit.interchange.published import LAYOUTS, from_published, to_published
from rfdit.model import DiT
from rfdit.sampling.load import load_network
from rfdit.training.checkpoint import SavedRun
from tests.command_line import CommandLine

WIDTH, DEPTH, HEADS, PATCH, CHANNELS, SIDE, CLASSES = 48, 2, 4, 2, 4, 4, 7
State = dict[str, Tensor]


def published(source: str, *, sigma: bool = False, seed: int = 0) -> State:
    """A state dict in the layout of a repository, of random values."""
    generator = torch.Generator().manual_seed(seed)
    out = PATCH**2 * CHANNELS * (2 if sigma else 1)
    shapes = {"x_embedder.proj": (WIDTH, CHANNELS, PATCH, PATCH), "t_embedder.mlp.0": (WIDTH, 256)}
    shapes |= {"t_embedder.mlp.2": (WIDTH, WIDTH), "final_layer.linear": (out, WIDTH)}
    shapes |= {"final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH)}
    for i in range(DEPTH):
        block = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        block |= {"adaLN_modulation.1": (6, 1)}
        shapes |= {f"blocks.{i}.{name}": (a * WIDTH, b * WIDTH) for name, (a, b) in block.items()}
    if source == "repa":
        shapes |= {"projectors.0.0": (10, WIDTH), "projectors.0.2": (6, 10)}

    def draw(*shape: int) -> Tensor:
        fan_in = math.prod(shape[1:]) or 16
        return 0.8 * fan_in**-0.5 * torch.randn(*shape, generator=generator)

    state = {f"{name}.weight": draw(*shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": draw(shape[0]) for name, shape in shapes.items()}
    state["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, WIDTH, generator=generator)
    state["pos_embed"] = torch.randn(1, SIDE**2, WIDTH, generator=generator)
    return state


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
        qkv = linear(f"{block}.attn.qkv", modulate(h, mod[0], mod[1])).reshape(b, n, 3, HEADS, d // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
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


X = torch.randn(3, CHANNELS, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.0, 0.37, 1.0])
Y = torch.tensor([0, 5, CLASSES])  # the last is the null class


def ours(state: State, settings: dict[str, object]) -> Tensor:
    """Our network's output at our times."""
    network = DiT(**settings)
    prefix = "backbone."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    with torch.no_grad():
        return network(X, T, Condition(pooled=state["conditioner.table.weight"][Y]))


def expected(source: str, state: State) -> Tensor:
    """What the repository's own network says at our times, as noise - data (or as noise, for DiT)."""
    if source == "dit":
        return reference(state, X, 1000 * T, Y)[:, :CHANNELS]
    if source == "repa":
        return reference(state, X, T, Y)
    return -reference(state, X, 1 - T, Y)[:, :CHANNELS]


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(
    ("source", "sigma"),
    [("dit", True), ("dit", False), ("sit", True), ("sit", False), ("repa", False), ("lightningdit", False)],
)
def test_the_function_is_the_same(source: str, sigma: bool) -> None:
    state = published(source, sigma=sigma)
    made, settings = from_published(state, LAYOUTS[source], HEADS)
    assert difference(ours(made, settings), expected(source, state)) <= 1e-5


@pytest.mark.parametrize("source", ["dit", "sit", "repa", "lightningdit"])
def test_there_and_back(source: str) -> None:
    state = published(source)
    made, settings = from_published(state, LAYOUTS[source], HEADS)
    back = to_published(made, LAYOUTS[source], settings)
    assert back.keys() == {name for name in state if not name.startswith("projectors.")}
    for name, tensor in back.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-6)


def test_the_papers_sizes_and_positions_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.WIDTH", 384)
    state = published("sit")
    _, settings = from_published(state, LAYOUTS["sit"], None)
    assert (settings["num_heads"], settings["mlp_ratio"], settings["input_size"]) == (6, 4.0, SIDE * PATCH)
    assert settings["positions"] == "learned"
    state["pos_embed"] = get_2d_sincos_pos_embed(384, SIDE, base_size=SIDE, output_type="pt").float()[None]
    assert from_published(state, LAYOUTS["sit"], None)[1]["positions"] == "sincos"


@pytest.mark.parametrize("source", ["sit", "lightningdit"])
def test_direction_and_sign_matter(source: str) -> None:
    """Read as if their t were ours, or their velocity, the result is another one."""
    state = published(source)
    right = expected(source, state)
    for wrong in (reference(state, X, T, Y), -reference(state, X, T, Y), reference(state, X, 1 - T, Y)):
        assert difference(wrong, right) > 1e-2


@pytest.mark.parametrize("kind", ["bare", "ema", "module", "safetensors"])
def test_the_command_reads_their_files(cli: CommandLine, kind: str) -> None:
    state = published("sit", sigma=True)
    file = "their.safetensors" if kind == "safetensors" else "their.pt"
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "bare":
        torch.save(state, file)
    elif kind == "ema":
        others = published("sit", sigma=True, seed=1)
        torch.save(
            {"model": others, "ema": state, "opt": {"step": 3}, "args": argparse.Namespace(lr=1)}, file
        )
    else:
        torch.save({"ema": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    printed = cli.convert("source=sit", f"file={file}", "out=out", f"num_heads={HEADS}")
    assert printed == f"sit of {CLASSES} classes, which predicts velocity, is in out\n"
    saved = read_folder(Path("out"))
    assert difference(outputs(saved), expected("sit", state)) <= 1e-5
    assert saved.latents == {"name": "sd", "channels": 4, "downsampling": 8, "scale": 0.18215, "shift": 0.0}
    assert "published weights of sit" in Path("out/README.md").read_text()


def test_it_samples(cli: CommandLine, assets: Path) -> None:
    torch.save(published("repa"), "their.pt")
    cli.convert("source=repa", "file=their.pt", "out=out", f"num_heads={HEADS}", "autoencoder=taesd")
    model = rfdit.load("out", autoencoder=str(assets / "autoencoder/taesd"), accelerator="cpu")
    (picture,) = model(CLASSES - 1, steps=2)
    assert picture.size == (64, 64)


def test_noise_is_not_sampled_as_velocity(cli: CommandLine) -> None:
    state = published("dit", sigma=True)
    torch.save(state, "their.pt")
    cli.convert("source=dit", "file=their.pt", "out=out", f"num_heads={HEADS}")
    assert json.loads(Path("out/config.json").read_text())["prediction"] == "noise"
    with pytest.raises(ValueError, match="out holds a network that predicts noise, not velocity"):
        rfdit.load("out")
    saved = read_folder(Path("out"), prediction="noise")
    assert difference(outputs(saved), expected("dit", state)) <= 1e-5


def outputs(saved: SavedRun) -> Tensor:
    """What the network in a converted folder says at our times."""
    network = load_network(saved, saved.config, "ema")
    with torch.no_grad():
        return network.backbone(X, T, Condition(pooled=network.conditioner.table.weight[Y]))


@pytest.mark.parametrize(
    ("name", "shape", "needs"),
    [
        ("blocks.0.mlp.w12.weight", (8, WIDTH), "SwiGLU"),
        ("blocks.0.norm1.weight", (WIDTH,), "RMSNorm"),
        ("feat_rope.freqs_cos", (16, 12), "rotary positions"),
        ("blocks.1.attn.q_norm.weight", (12,), "their norm of queries"),
        ("blocks.0.cross.weight", (3,), "more"),
    ],
)
def test_what_is_not_supported_is_said(
    cli: CommandLine, name: str, shape: tuple[int, ...], needs: str
) -> None:
    torch.save(published("lightningdit") | {name: torch.zeros(shape)}, "their.pt")
    message = cli.error("convert", "source=lightningdit", "file=their.pt", "out=out", f"num_heads={HEADS}")
    assert message == f"file needs {needs}, which rfdit's DiT does not support (as {name})"


def test_adaln_without_shifts_is_refused() -> None:
    state = published("lightningdit")
    state["blocks.0.adaLN_modulation.1.weight"] = torch.zeros(4 * WIDTH, WIDTH)
    with pytest.raises(ValueError, match="file has adaLN without shifts"):
        from_published(state, LAYOUTS["lightningdit"], HEADS)


@pytest.mark.parametrize(
    ("name", "shape"), [("pos_embed", (1, 15, WIDTH)), ("x_embedder.proj.weight", (WIDTH, 16))]
)
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"file has .*{name} of \[{', '.join(map(str, shape))}\].*, and not a"
    ):
        from_published(published("sit") | {name: torch.zeros(shape)}, LAYOUTS["sit"], HEADS)


def test_bad_input_is_one_sentence(cli: CommandLine) -> None:
    state = published("sit")
    torch.save(state, "their.pt")
    request = ["source=sit", "file=their.pt", "out=out"]
    assert cli.error("convert", *request) == "file has width 48, none of the DiT paper's; give num_heads=..."
    assert cli.error("convert", "source=pixart", "file=their.pt", "out=out") == (
        "source=pixart is unknown; use dit, sit, repa, lightningdit"
    )
    assert cli.error("convert", "source=sit", "file=none.pt", "out=out") == "file=none.pt does not exist"
    assert cli.error("convert", *request, "autoencoder=sd3", f"num_heads={HEADS}") == (
        "file takes latents of 4 channels, and autoencoder=sd3 has 16; choose the one that it was trained with"
    )
    del state["blocks.1.mlp.fc2.bias"]
    torch.save(state, "their.pt")
    assert "there is no blocks.1.mlp.fc2.bias" in cli.error("convert", *request, f"num_heads={HEADS}")
    torch.save([1, 2], "their.pt")
    assert "file=their.pt holds no state dict" in cli.error("convert", *request)
    Path("their.pt").write_bytes(b"damaged")
    assert "it is damaged, or holds more than tensors" in cli.error("convert", *request)
    assert not Path("out").exists()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


def test_a_pickle_with_code_is_not_run(cli: CommandLine) -> None:
    torch.save(published("sit") | {"x": Evil()}, "their.pt")
    assert "holds more than tensors and plain data" in cli.error(
        "convert", "source=sit", "file=their.pt", "out=out", f"num_heads={HEADS}"
    )
    assert not Path("touched").exists()
