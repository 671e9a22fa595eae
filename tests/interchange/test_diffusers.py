"""rfdit export format=diffusers: diffusers alone loads the folder and computes what we do."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel
from torch import Tensor

import rfdit
from rfdit.batch import Condition
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import build
from rfdit.generate.load import load_network
from rfdit.interchange.for_diffusers.folder import as_diffusers, write_diffusers_folder
from rfdit.model import MMDiT
from rfdit.randomness import SampleGenerator
from rfdit.text_encoder.bpe import tokenize
from tests.support.commands.command_line import CommandLine
from tests.support.training.checkpoints import LABELS, MakeCheckpoint

CPU = torch.device("cpu")
T = torch.tensor([0.003, 0.4, 0.97])
PROMPTS = ["a small red circle", "It's  a LARGE blue star!", ""]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # Where diffusers puts a folder's code before it imports it.
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def exported(cli: CommandLine, saved: SavedRun, *overrides: str) -> DiffusionPipeline:
    cli.export(f"ckpt={saved.path}", "format=diffusers", "out=out", *overrides)
    pipeline = DiffusionPipeline.from_pretrained("out", trust_remote_code=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def noise(n: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(n, *shape, generator=generator)


@pytest.mark.parametrize(
    "setting", ["model.qk_norm=false", "model.qk_norm=true", "model.positions=learned", "+model.time_scale=1"]
)
@torch.no_grad()
def test_dit_is_the_same_function(
    cli: CommandLine, checkpoint: MakeCheckpoint, generator: torch.Generator, setting: str
) -> None:
    saved = checkpoint(*LABELS, setting)
    pipeline = exported(cli, saved)
    ours = load_network(saved, "ema")
    z, labels = noise(3, (3, 32, 32), generator), [0, 4, 2]
    expected = ours.backbone(z, T, ours.conditioner(labels, device=CPU))
    theirs = pipeline.transformer(z, timestep=1000 * T, class_labels=torch.tensor(labels)).sample
    assert difference(theirs, expected) <= 1e-5
    null = pipeline.transformer(z, timestep=1000 * T, class_labels=torch.full((3,), 5)).sample
    assert difference(null, ours.backbone(z, T, ours.conditioner.null(device=CPU).expand(3))) <= 1e-5


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], "SD3Transformer2DModel"),
        (["model.qk_norm=false"], "SD3Transformer2DModel"),
        (["text_encoder.width=13"], "RectifiedFlowMMDiT"),  # twice that does not fit into a width of 24
        (["model.positions=learned"], "SD3Transformer2DModel"),
        (["model.input_size=[16,32]"], "SD3Transformer2DModel"),
        (["model.input_size=[32,20]"], "SD3Transformer2DModel"),
    ],
)
@torch.no_grad()
def test_mmdit_is_the_same_function(
    checkpoint: MakeCheckpoint, generator: torch.Generator, overrides: list[str], kind: str
) -> None:
    saved = checkpoint(*overrides)
    ours = load_network(saved, "ema")
    assert isinstance(ours.backbone, MMDiT)
    theirs = as_diffusers(ours.backbone, saved.weights("ema"))
    assert type(theirs).__name__ == kind
    size = saved.config["model"]["input_size"]
    z = noise(3, (3, size, size) if isinstance(size, int) else (3, *size), generator)
    width = saved.config["text_encoder"]["width"]
    cond = Condition(pooled=noise(3, (width,), generator), tokens=noise(3, (5, width), generator))
    sample = theirs(
        z, encoder_hidden_states=cond.tokens, pooled_projections=cond.pooled, timestep=1000 * T
    ).sample
    assert difference(sample, ours.backbone(z, T, cond)) <= 1e-5


def test_sd3s_class_loads_without_our_code(cli: CommandLine, checkpoint: MakeCheckpoint) -> None:
    exported(cli, checkpoint())
    assert sorted(path.name for path in Path("out/transformer").iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    SD3Transformer2DModel.from_pretrained("out/transformer", low_cpu_mem_usage=False)


@pytest.mark.slow
def test_it_runs_without_rfdit(cli: CommandLine, checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """The card's own lines run in a fresh interpreter that cannot import rfdit."""
    cli.export(f"ckpt={checkpoint(*LABELS).path}", "format=diffusers", "out=FOLDER")
    (lines,) = re.findall(r"```python\n(.*?)```", Path("FOLDER/README.md").read_text(), re.DOTALL)
    program = 'import sys\nsys.modules["rfdit"] = None\n' + lines.replace("207", "2")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("image.png").exists()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_labels_give_the_same_images(
    cli: CommandLine, checkpoint: MakeCheckpoint, generator: torch.Generator, shift: float, scale: float
) -> None:
    saved = checkpoint(*LABELS, f"sampler.shift={shift}")
    pipeline = exported(cli, saved)
    start = noise(2, (3, 32, 32), generator)
    theirs = pipeline(
        [3, 1], num_inference_steps=4, guidance_scale=scale, latents=start, output_type="latent"
    ).images
    assert difference(theirs, ours_from(saved, [3, 1], start, scale)) <= 1e-5
    (image,) = pipeline(3, num_inference_steps=1, generator=torch.manual_seed(0)).images
    assert image.size == (32, 32)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_captions_give_the_same_images(
    cli: CommandLine, checkpoint: MakeCheckpoint, generator: torch.Generator, scale: float
) -> None:
    """Our model masks the padding; theirs never sees it."""
    saved = checkpoint("model.input_size=[16,32]", "sampler.shift=2")
    pipeline = exported(cli, saved)
    start = noise(3, (3, 16, 32), generator)
    theirs = pipeline(
        PROMPTS, num_inference_steps=4, guidance_scale=scale, latents=start, output_type="latent"
    ).images
    assert difference(theirs, ours_from(saved, PROMPTS, start, scale)) <= 1e-5
    images = pipeline(PROMPTS[0], num_inference_steps=1, num_images_per_prompt=2).images
    assert [image.size for image in images] == [(32, 16)] * 2


def ours_from(saved: SavedRun, inputs: list[str] | list[int], start: Tensor, scale: float) -> Tensor:
    """Our sampler's latents from the given noise, in 4 steps."""
    network = load_network(saved, "ema")
    guidance = {"_target_": "rfdit.sampler.ClassifierFree", "scale": scale}
    sampler = build(saved.config["sampler"] | {"guidance": guidance, "steps": 4})
    with torch.no_grad():
        cond = network.conditioner(inputs, device=CPU)
        null = network.conditioner.null(device=CPU).expand(len(inputs))
        return sampler(network.backbone, start, cond, null)


def test_the_tokenizer_is_the_same(cli: CommandLine, checkpoint: MakeCheckpoint) -> None:
    pipeline = exported(cli, checkpoint())
    captions = [*PROMPTS, "naïve café, 東京 & 3.14 \U0001f600", "word " * 40]
    length = pipeline.text_encoder.config.length
    ids, mask = tokenize(captions, length)
    for caption, row, real in zip(captions, ids, mask):
        theirs = pipeline.tokenizer(caption, truncation=True, max_length=length).input_ids
        assert theirs == row[real].tolist()


def test_a_pretrained_tower_stays_out(
    cli: CommandLine, checkpoint: MakeCheckpoint, generator: torch.Generator
) -> None:
    """Features of a caption's real tokens are given in its place."""
    saved = checkpoint()
    pipeline = exported(cli, saved)
    settings = {
        "num_inference_steps": 2,
        "latents": noise(2, (3, 32, 32), generator),
        "output_type": "latent",
    }
    expected = pipeline(PROMPTS[:2], **settings).images
    features = {}
    for side, captions in (("", PROMPTS[:2]), ("negative_", ["", ""])):
        tokens, pooled, mask = pipeline.encode_prompt(captions)
        features |= {f"{side}prompt_embeds": tokens, f"{side}pooled_prompt_embeds": pooled}
        features |= {f"{side}prompt_attention_mask": mask}
    pipeline.text_encoder = None
    assert torch.equal(pipeline(**features, **settings).images, expected)
    with pytest.raises(ValueError, match="this folder has no text encoder: give prompt_embeds"):
        pipeline(PROMPTS[0])


def test_a_vae_comes_along(cli: CommandLine, checkpoint: MakeCheckpoint, assets: Path) -> None:
    source = f"autoencoder.source={assets / 'autoencoder/taesd'}"
    contract = {"name": "taesd", "channels": 4, "downsampling": 8, "scale": 1.0, "shift": 0.0}
    saved = checkpoint(*LABELS, "autoencoder=taesd", "data.resolution=64", "patch=p2", latents=contract)
    assert "autoencoder.source=" in cli.error("export", f"ckpt={saved.path}", "format=diffusers", "out=o")
    pipeline = exported(cli, saved, source)
    model = rfdit.load(
        str(saved.path), autoencoder=source.partition("=")[2], accelerator="cpu", precision="fp32"
    )
    start = SampleGenerator(seed=3, keys=torch.arange(2)).fork("image").normal(4, 8, 8)
    theirs = pipeline([1, 4], num_inference_steps=3, guidance_scale=2.0, latents=start).images
    ours = model([1, 4], steps=3, guidance_scale=2.0, seed=3)
    for a, b in zip(theirs, ours):
        # bf16 in our autoencoder, where the machine has it.
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() < 2


def test_the_index_names_what_is_there(cli: CommandLine, checkpoint: MakeCheckpoint) -> None:
    exported(cli, checkpoint(*LABELS, "sampler.shift=3"))
    index = json.loads(Path("out/model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "RectifiedFlowPipeline"]
    assert index["vae"] == [None, None]
    assert json.loads(Path("out/scheduler/scheduler_config.json").read_text())["shift"] == 3
    assert "DiffusionPipeline.from_pretrained" in Path("out/README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*LABELS, "+model.mlp_ratio=2"], "format=diffusers needs model.mlp_ratio=4"),
        (
            [*LABELS, "model.input_size=[16,32]"],
            "format=diffusers with model=dit needs square images, not 4x8",
        ),
        (["model=dit"], "supports model=dit with class labels, not with captions"),
    ],
)
def test_what_diffusers_cannot_be(
    cli: CommandLine, checkpoint: MakeCheckpoint, overrides: list[str], said: str
) -> None:
    saved = checkpoint(*overrides)
    assert said in cli.error("export", f"ckpt={saved.path}", "format=diffusers", "out=out")
    assert not Path("out").exists()


def test_another_backbone_is_refused(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    saved = checkpoint()
    other = {"_target_": "rfdit.autoencoder.identity.IdentityAutoencoder"}
    with pytest.raises(
        ValueError, match=r"model\._target_=\S+IdentityAutoencoder is not a part of a model there"
    ):
        write_diffusers_folder(
            tmp_path / "out", replace(saved, config=saved.config | {"model": other}), "ema"
        )


def test_a_run_that_anybody_made_runs_nothing(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    saved = checkpoint()
    for bad in (
        {"_target_": "os.mkdir", "path": str(tmp_path / "made")},
        saved.config["model"] | {"attention": {"_target_": "os.mkdir", "path": str(tmp_path / "made")}},
    ):
        with pytest.raises(ValueError, match=r"_target_=os\.mkdir is not a part of a model"):
            write_diffusers_folder(
                tmp_path / "out", replace(saved, config=saved.config | {"model": bad}), "ema"
            )
    assert not (tmp_path / "made").exists()
