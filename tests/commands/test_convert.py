"""rfdit convert: our network computes the same as the published checkpoints.

The reference is a forward pass of its own, `tests.support.models.originals`, over random values.
"""

import argparse
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from safetensors.torch import save_file
from torch import Tensor

import rfdit
from rfdit.batch import Condition
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.generate.load import load_network
from rfdit.interchange.folder import read_folder
from rfdit.interchange.published.layout import LAYOUTS, from_published, to_published
from rfdit.model import DiT
from tests.support.commands.command_line import CommandLine, images
from tests.support.models.originals import (
    CHANNELS,
    CLASSES,
    DEPTH,
    HEADS,
    PATCH,
    SIDE,
    WIDTH,
    State,
    difference,
    published,
    reference,
)

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
    """The output of the repository's own network at our times, as noise - data, or all of DiT's: noise and variance."""
    if source == "dit":
        return reference(state, X, 1000 * T, Y)
    if source == "repa":
        return reference(state, X, T, Y)
    return -reference(state, X, 1 - T, Y)[:, :CHANNELS]


@pytest.mark.parametrize(
    ("source", "sigma"),
    [("dit", True), ("dit", False), ("sit", True), ("sit", False), ("repa", False), ("lightningdit", False)],
)
def test_the_function_is_the_same(source: str, sigma: bool) -> None:
    state = published(source, sigma=sigma)
    made, settings = from_published(state, LAYOUTS[source], HEADS)
    found = difference(ours(made, settings), expected(source, state))
    print(f"{source}: largest relative difference of a forward pass {found:.1e}")
    assert found <= 1e-5


@pytest.mark.parametrize("source", ["dit", "sit", "repa", "lightningdit"])
def test_there_and_back(source: str) -> None:
    state = published(source)
    made, settings = from_published(state, LAYOUTS[source], HEADS)
    back = to_published(made, LAYOUTS[source], settings)
    assert back.keys() == {name for name in state if not name.startswith("projectors.")}
    for name, tensor in back.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-6)


def test_the_papers_sizes_and_positions_are_recognised() -> None:
    state = published("sit", width=384)
    _, settings = from_published(state, LAYOUTS["sit"], None)
    assert (settings["num_heads"], settings["mlp_ratio"], settings["input_size"]) == (6, 4.0, SIDE * PATCH)
    assert settings["positions"] == "learned"
    state["pos_embed"] = get_2d_sincos_pos_embed(384, SIDE, base_size=SIDE, output_type="pt").float()[None]
    assert from_published(state, LAYOUTS["sit"], None)[1]["positions"] == "sincos"


@pytest.mark.parametrize("source", ["sit", "lightningdit"])
def test_direction_and_sign_matter(source: str) -> None:
    """Taking their t or their velocity for ours changes the result."""
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
    assert printed == f"sit of {CLASSES} classes is in out\n"
    saved = read_folder(Path("out"))
    assert difference(outputs(saved), expected("sit", state)) <= 1e-5
    assert saved.latents == {"name": "sd", "channels": 4, "downsampling": 8, "scale": 0.18215, "shift": 0.0}
    assert "published weights of sit" in Path("out/README.md").read_text()


def test_it_samples(cli: CommandLine, assets: Path) -> None:
    torch.save(published("repa"), "their.pt")
    cli.convert("source=repa", "file=their.pt", "out=out", f"num_heads={HEADS}", "autoencoder=taesd")
    model = rfdit.load("out", autoencoder=str(assets / "autoencoder/taesd"), accelerator="cpu")
    (image,) = model(CLASSES - 1, steps=2)
    assert image.size == (64, 64)


@pytest.mark.slow
def test_a_converted_dit_samples_in_every_way(cli: CommandLine, assets: Path) -> None:
    """By solvers of the ODE and as DiT's own script, from the command line; a model of velocity does not."""
    source = f"autoencoder.source={assets / 'autoencoder/taesd'}"
    for name in ("dit", "sit"):
        torch.save(published(name, sigma=True), "their.pt")
        cli.convert(
            f"source={name}", "file=their.pt", f"out={name}", f"num_heads={HEADS}", "autoencoder=taesd"
        )
    ways = [["sampler=heun"], ["sampler=dopri5", "sampler.steps=1"], ["sampler=sde"], ["recipe=dit_xl2"]]
    found = []
    for i, way in enumerate(ways):
        cli.sample("ckpt=dit", f"labels=[{CLASSES - 1}]", source, f"out={i}", *way)
        found.append(images(Path(str(i))))
    assert all((a != b).any() for a, b in combinations(found, 2))
    message = cli.error("sample", "ckpt=sit", "labels=[0]", source, "recipe=dit_xl2")
    assert message.startswith("sampler.solver.variance=learned needs a model of prediction=noise")


def test_noise_is_sampled_as_velocity(cli: CommandLine) -> None:
    """v = (epsilon - z) / (1 - t) at the times of DDPM's timesteps, with x = sqrt(abar) z0 + sqrt(1 - abar) z1."""
    state = published("dit", sigma=True)
    torch.save(state, "their.pt")
    cli.convert("source=dit", "file=their.pt", "out=out", f"num_heads={HEADS}")
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    k = torch.tensor([10, 500, 900])
    a, b = abar[k].sqrt(), (1 - abar[k]).sqrt()
    t, factor = (b / (a + b)).float(), (1 / (a + b)).float().view(3, 1, 1, 1)
    epsilon = reference(state, X, k.float(), Y)[:, :CHANNELS]
    v = (epsilon - X * factor) / (1 - t.view(3, 1, 1, 1))
    network = load_network(read_folder(Path("out")), "ema")
    with torch.no_grad():
        found = network.backbone(X * factor, t, Condition(pooled=network.conditioner.table.weight[Y]))
    assert difference(found, v) <= 1e-5


def outputs(saved: SavedRun) -> Tensor:
    """The output of the network in a converted folder at our times."""
    network = load_network(saved, "ema")
    with torch.no_grad():
        return network.backbone(X, T, Condition(pooled=network.conditioner.table.weight[Y]))


def test_what_is_not_supported_is_said(cli: CommandLine) -> None:
    torch.save(published("lightningdit") | {"blocks.0.cross.weight": torch.zeros(3)}, "their.pt")
    message = cli.error("convert", "source=lightningdit", "file=their.pt", "out=out", f"num_heads={HEADS}")
    assert message == "file=their.pt needs more than rfdit's DiT has (as blocks.0.cross.weight)"


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_of_queries_and_keys_of_repa(kind: str) -> None:
    """timm's attention, which REPA has, norms heads by LayerNorm unless it is told otherwise."""
    state, generator = published("repa"), torch.Generator().manual_seed(2)
    for i, norm in product(range(DEPTH), ("q_norm", "k_norm")):
        for part in ("weight", "bias") if kind == "layer" else ("weight",):
            state[f"blocks.{i}.attn.{norm}.{part}"] = torch.randn(WIDTH // HEADS, generator=generator)
    made, settings = from_published(state, LAYOUTS["repa"], HEADS)
    assert settings["qk_norm"] == kind
    assert difference(ours(made, settings), expected("repa", state)) <= 1e-5


@pytest.mark.parametrize("source", ["repa", "lightningdit"])
def test_adaln_without_shifts(source: str) -> None:
    state = published(source)
    for i in range(DEPTH):
        for part in ("weight", "bias"):
            name = f"blocks.{i}.adaLN_modulation.1.{part}"
            state[name] = state[name][: 4 * WIDTH]
    made, settings = from_published(state, LAYOUTS[source], HEADS)
    assert difference(ours(made, settings), expected(source, state)) <= 1e-5


def test_adaln_of_other_vectors_is_refused() -> None:
    state = published("lightningdit")
    state["blocks.0.adaLN_modulation.1.weight"] = torch.zeros(5 * WIDTH, WIDTH)
    with pytest.raises(ValueError, match=r"file has adaLN of 240 rows, neither 4 nor 6 vectors of 48"):
        from_published(state, LAYOUTS["lightningdit"], HEADS)


@pytest.mark.parametrize(
    ("name", "shape"), [("pos_embed", (1, 15, WIDTH)), ("x_embedder.proj.weight", (WIDTH, 16))]
)
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"file has .*{name} of \[{', '.join(map(str, shape))}\].*, not a"):
        from_published(published("sit") | {name: torch.zeros(shape)}, LAYOUTS["sit"], HEADS)


def test_bad_input_is_one_sentence(cli: CommandLine) -> None:
    state = published("sit")
    torch.save(state, "their.pt")
    request = ["source=sit", "file=their.pt", "out=out"]
    assert (
        cli.error("convert", *request)
        == "file=their.pt has the width 48, which no size of the DiT paper has; give num_heads=..."
    )
    assert cli.error("convert", "source=pixart", "file=their.pt", "out=out") == (
        "source=pixart is unknown; use dit, sit, repa, lightningdit, sd3, flux"
    )
    assert cli.error("convert", "source=sit", "file=none.pt", "out=out") == "file=none.pt does not exist"
    assert cli.error("convert", *request, "autoencoder=sd3", f"num_heads={HEADS}") == (
        "file=their.pt takes latents of 4 channels, and autoencoder=sd3 has 16; choose the one that it was trained with"
    )
    del state["blocks.1.mlp.fc2.bias"]
    torch.save(state, "their.pt")
    assert "there is no blocks.1.mlp.fc2.bias" in cli.error("convert", *request, f"num_heads={HEADS}")
    torch.save([1, 2], "their.pt")
    assert "file=their.pt has no state dict" in cli.error("convert", *request)
    Path("their.pt").write_bytes(b"damaged")
    assert "it is damaged, or holds more than tensors" in cli.error("convert", *request)
    Path("their.pt").write_bytes(b"")
    assert "it is damaged, or holds more than tensors" in cli.error("convert", *request)
    torch.save({}, "their.pt")
    assert "file=their.pt has no state dict" in cli.error("convert", *request)
    assert not Path("out").exists()


ODD: dict[str, tuple[dict[Any, Any], str]] = {
    "no numbers": ({"blocks.x.attn.qkv.weight": torch.zeros(3)}, "needs more than"),
    "too deep": ({"blocks.999999999.attn.qkv.weight": torch.zeros(3)}, "among them those of block 999999999"),
    "a scalar": (
        {"pos_embed": torch.tensor(1.0)},
        "not a convolution's kernel and the positions of a square",
    ),
    "a flat scalar": (
        {"blocks.0.adaLN_modulation.1.weight": torch.tensor(1.0)},
        "is not a network of source=sit",
    ),
    "a cut adaLN": (
        {"blocks.0.adaLN_modulation.1.weight": torch.zeros(5 * WIDTH, WIDTH)},
        "neither 4 nor 6 vectors of 48",
    ),
    "empty": ({"x_embedder.proj.weight": torch.zeros(0, 4, 2, 2)}, "not a convolution's kernel"),
    "other widths": ({"t_embedder.mlp.0.weight": torch.zeros(WIDTH, 3)}, "do not fill backbone.time.hidden"),
    "a scalar bias": ({"final_layer.linear.bias": torch.tensor(1.0)}, "is not a network of source=sit"),
    "number for a name": ({3: torch.zeros(3)}, "has no state dict"),
    "sparse": ({"pos_embed": torch.zeros(1, 16, WIDTH).to_sparse()}, "has no state dict"),
    "meta": ({"pos_embed": torch.zeros(1, 16, WIDTH, device="meta")}, "has no state dict"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_files_are_one_sentence(cli: CommandLine, odd: str) -> None:
    tensors, said = ODD[odd]
    torch.save(published("sit") | tensors, "their.pt")
    assert said in cli.error("convert", "source=sit", "file=their.pt", "out=out", f"num_heads={HEADS}")


def test_what_may_not_be_read_is_not_called_damaged(cli: CommandLine) -> None:
    Path("folder.pt").mkdir()
    message = cli.error("convert", "source=sit", "file=folder.pt", "out=out")
    assert message == "file=folder.pt cannot be read: Is a directory"


def test_a_flipped_byte_of_published_weights_is_noticed(cli: CommandLine) -> None:
    state = published("sit")
    torch.save(state, "their.pt")
    data = bytearray(Path("their.pt").read_bytes())
    data[data.index(state["pos_embed"].numpy().tobytes()) + 7] ^= 1
    Path("their.pt").write_bytes(data)
    assert "it is damaged" in cli.error(
        "convert", "source=sit", "file=their.pt", "out=out", f"num_heads={HEADS}"
    )


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_not_run(cli: CommandLine, zipped: bool) -> None:
    torch.save(published("sit") | {"x": Evil()}, "their.pt", _use_new_zipfile_serialization=zipped)
    assert "holds more than tensors and plain data" in cli.error(
        "convert", "source=sit", "file=their.pt", "out=out", f"num_heads={HEADS}"
    )
    assert not Path("touched").exists()


def converted(cli: CommandLine, source: str, state: State, **checkpoint: Any) -> SavedRun:
    torch.save({"ema": state} | checkpoint, "their.pt")
    cli.convert(f"source={source}", "file=their.pt", "out=out", f"num_heads={HEADS}")
    return read_folder(Path("out"))


def test_names_of_a_compiled_network_are_read(cli: CommandLine) -> None:
    state = published("sit")
    compiled = {
        f"_orig_mod.{name}".replace("blocks.0.", "blocks.0._orig_mod."): x for name, x in state.items()
    }
    assert difference(outputs(converted(cli, "sit", compiled)), expected("sit", state)) <= 1e-5


WRAPPED: dict[str, Callable[[State, State], dict[str, Any]]] = {
    "under model.": lambda state, other: {f"model.{name}": x for name, x in state.items()},
    "of Lightning": lambda state, other: {
        "state_dict": {f"network.backbone.{name}": x for name, x in state.items()} | {"loss.w": torch.ones(1)}
    },
    "an average beside the weights": lambda state, other: {
        "state_dict": {f"model.{name}": x for name, x in other.items()}
        | {f"ema_model.module.{name}": x for name, x in state.items()}
    },
    "an average by a name of its own": lambda state, other: {"model": other, "ema_state_dict": state},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_network_within_another_module_is_found(cli: CommandLine, kind: str) -> None:
    state = published("sit")
    other = {name: torch.zeros_like(x) for name, x in state.items()}
    torch.save(WRAPPED[kind](state, other), "their.pt")
    cli.convert("source=sit", "file=their.pt", "out=out", f"num_heads={HEADS}")
    assert difference(outputs(read_folder(Path("out"))), expected("sit", state)) <= 1e-5


def test_of_two_networks_none_is_chosen(cli: CommandLine) -> None:
    state = published("sit")
    torch.save({f"{part}.{name}": x for part in "ab" for name, x in state.items()}, "their.pt")
    message = cli.error("convert", "source=sit", "file=their.pt", "out=out", f"num_heads={HEADS}")
    assert message == "file=their.pt has several networks, under a. and b.; give a state dict of one"


def test_safetensors_are_known_by_their_contents(cli: CommandLine) -> None:
    save_file(published("sit"), "their.bin")
    cli.convert("source=sit", "file=their.bin", "out=out", f"num_heads={HEADS}")
    data = Path("their.bin").read_bytes()
    for name in ("cut.bin", "cut.safetensors"):
        Path(name).write_bytes(data[: len(data) // 2])
        message = cli.error("convert", "source=sit", f"file={name}", "out=cut", f"num_heads={HEADS}")
        assert message.startswith(f"file={name} cannot be read as weights (SafetensorError): it is damaged")


@pytest.mark.parametrize(("source", "path"), [("sit", "GVP"), ("repa", "cosine")])
def test_the_cosine_path_of_the_arguments_is_followed(cli: CommandLine, source: str, path: str) -> None:
    """dz/dt along z = x / (alpha + sigma), from dx/ds of their network, by the quotient rule."""
    state = published(source)
    kept = {"path_type": path, "prediction": "velocity" if source == "sit" else "v"}
    saved = converted(cli, source, state, args=argparse.Namespace(**kept))
    s = torch.tensor([0.1, 0.5, 0.9])
    alpha, sigma = (f(torch.pi / 2 * s).view(3, 1, 1, 1) for f in (torch.cos, torch.sin))
    u = reference(state, X, s, Y) if source == "repa" else -reference(state, X, 1 - s, Y)
    length, change = alpha + sigma, torch.pi / 2 * (alpha - sigma)  # and its derivative by s
    t_change = torch.pi / 2 / length**2  # dt/ds for t = sigma / (alpha + sigma)
    v = (u / length - X * change / length**2) / t_change
    network = load_network(saved, "ema")
    cond = Condition(pooled=network.conditioner.table.weight[Y])
    with torch.no_grad():
        found = network.backbone(X / length, (sigma / length).flatten(), cond)
    assert difference(found, v) <= 1e-5


@pytest.mark.parametrize(
    ("source", "args", "said"),
    [
        (
            "sit",
            {"path_type": "VP"},
            "file=their.pt has a network of path_type=VP, by its arguments; rfdit converts",
        ),
        (
            "sit",
            {"path_type": "Linear", "prediction": "noise"},
            "file=their.pt has a network of prediction=noise on",
        ),
        (
            "sit",
            {"prediction": "score", "path_type": "GVP"},
            "has a network of prediction=score on the path GVP",
        ),
        ("repa", {"train_eps": None}, "was written by the script of sit, by its arguments, not of repa"),
        ("sit", {"proj_coeff": 0.5}, "was written by the script of repa, by its arguments, not of sit"),
        (
            "dit",
            {"model": "SiT-XL/2"},
            "was written by the script of SiT or REPA, by its arguments, not of dit",
        ),
        ("sit", {"model": "DiT-XL/2"}, "was written by the script of dit, by its arguments, not of sit"),
    ],
)
def test_what_the_arguments_exclude_is_refused(
    cli: CommandLine, source: str, args: dict[str, Any], said: str
) -> None:
    torch.save({"ema": published("sit"), "args": argparse.Namespace(**args)}, "their.pt")
    assert said in cli.error("convert", f"source={source}", "file=their.pt", "out=out", f"num_heads={HEADS}")


def test_the_networks_of_sit_and_repa_are_told_apart(cli: CommandLine) -> None:
    torch.save(published("sit", sigma=True), "their.pt")
    message = cli.error("convert", "source=repa", "file=their.pt", "out=out", f"num_heads={HEADS}")
    assert message == (
        "file=their.pt has outputs for a variance too, which REPA's network never has; use source=sit or source=dit"
    )
    torch.save(published("repa"), "their.pt")
    message = cli.error("convert", "source=sit", "file=their.pt", "out=out", f"num_heads={HEADS}")
    assert message == "file=their.pt has projectors, which only REPA trains, not sit; use source=repa"


def test_a_table_without_the_null_class_keeps_its_last_class(cli: CommandLine) -> None:
    state = published("sit")
    rows = CLASSES + 1
    with pytest.warns(
        UserWarning, match=f"file has no null class: all {rows} rows of its label table are cl"
    ):
        saved = converted(cli, "sit", state, args=argparse.Namespace(num_classes=rows))
    assert saved.num_classes == rows
    network = load_network(saved, "ema")
    table = state["y_embedder.embedding_table.weight"]
    assert torch.equal(network.conditioner.table.weight, torch.cat([table, torch.zeros_like(table[:1])]))


def test_a_table_that_may_lack_the_null_class_is_warned_of(cli: CommandLine) -> None:
    state = published("sit")
    state["y_embedder.embedding_table.weight"] = torch.randn(10, WIDTH)
    with pytest.warns(
        UserWarning, match="the last of 10 rows of the file's label table is taken for the null"
    ):
        assert converted(cli, "sit", state).num_classes == 9
