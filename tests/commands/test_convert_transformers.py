"""Transformers of diffusers through the commands: converted, loaded, and exported again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import nn

import rfdit
from tests.support.commands.command_line import CommandLine

Randomise = Callable[[nn.Module], nn.Module]
WIDTH = 384  # of MiniLM's tokens and pooled captions
SD3 = {
    "sample_size": 4, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": WIDTH, "caption_projection_dim": 32,
    "pooled_projection_dim": WIDTH, "pos_embed_max_size": 6, "qk_norm": "rms_norm",
}  # fmt: skip
FLUX = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


def encoders(assets: Path) -> list[str]:
    return [
        "autoencoder=taesd", f"autoencoder.source={assets / 'autoencoder/taesd'}",
        "text_encoder=minilm", f"text_encoder.source={assets / 'text_encoder/minilm'}",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "kind", "settings", "guidance"),
    [("sd3", SD3Transformer2DModel, SD3, "cfg"), ("flux", FluxTransformer2DModel, FLUX, "embedded")],
)
def test_there_and_back(
    cli: CommandLine,
    assets: Path,
    randomise: Randomise,
    source: str,
    kind: type,
    settings: dict[str, object],
    guidance: str,
) -> None:
    theirs = randomise(kind(**settings))
    theirs.save_pretrained("theirs/transformer")
    cli.convert(f"source={source}", "file=theirs", "out=ours", *encoders(assets))
    paths = {name: str(assets / part) for name, part in (
        ("autoencoder", "autoencoder/taesd"), ("text_encoder", "text_encoder/minilm"))}  # fmt: skip
    cli.sample(
        "ckpt=ours", "out=images", "prompts=[a red circle]", "resolution=32", "sampler.steps=1", "accelerator=cpu",
        f"guidance={guidance}", *[f"{name}.source={path}" for name, path in paths.items()],
    )  # fmt: skip
    assert Path("images/00000.png").exists()
    cli.export("ckpt=ours", "out=back", "format=diffusers", f"autoencoder.source={paths['autoencoder']}")
    back = kind.from_pretrained("back", subfolder="transformer")
    expected = theirs.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in back.state_dict().items())


def test_a_text_encoder_of_other_sizes_is_refused(cli: CommandLine, randomise: Randomise) -> None:
    randomise(FluxTransformer2DModel(**FLUX)).save_pretrained("theirs")
    request = ["source=flux", "file=theirs", "out=ours"]
    needs = "source=flux needs text_encoder=..., a frozen one with {'width': 384, 'pooled_width': 384}"
    assert needs in cli.error("convert", *request)
    assert cli.error("convert", *request, "text_encoder=clip_l").endswith(
        "given: {'width': 768, 'pooled_width': 768}"
    )
    assert "BPEEncoder, which is trained" in cli.error(
        "convert", *request, "text_encoder=bpe", "text_encoder.width=384"
    )
    assert not Path("ours").exists()


@pytest.mark.parametrize(
    ("source", "kind", "settings", "options"),
    [
        ("sd3", SD3Transformer2DModel, SD3 | {"joint_attention_dim": 4096, "pooled_projection_dim": 2048,
            "in_channels": 16, "out_channels": 16}, ["autoencoder=sd3", "text_encoder=concat"]),
        ("flux", FluxTransformer2DModel, FLUX | {"joint_attention_dim": 4096, "pooled_projection_dim": 768,
            "in_channels": 64}, ["autoencoder=flux", "text_encoder=flux"]),
    ],
)  # fmt: skip
def test_the_encoders_of_the_published_models_fit(
    cli: CommandLine, source: str, kind: type, settings: dict[str, object], options: list[str]
) -> None:
    kind(**settings).save_pretrained("theirs/transformer")
    cli.convert(f"source={source}", "file=theirs", "out=ours", *options)
    assert Path("ours/model.safetensors").exists()


@pytest.mark.slow
def test_flux_trains(cli: CommandLine) -> None:
    for changes in ([], ["model.guidance=3.5", "guidance=embedded", "optimizer=adamw_mup"]):
        run = f"run{len(changes)}"
        cli.train(f"run_dir={run}", "model=flux", "model.num_heads=1", "model.single_depth=2", *changes)
        (image,) = rfdit.load(run, accelerator="cpu")("a red circle", steps=2)
        assert image.size == (32, 32)
