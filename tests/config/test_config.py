"""Every option composes and validates; every preset runs."""

from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from rfdit.config.build import CONFIG_DIR, build_network
from rfdit.cost.count import count_parameters
from tests.support.commands.command_line import CommandLine
from tests.support.commands.composing import NEEDS, OPTIONS, composed

PRESETS = [option for group, option in OPTIONS if group == "experiment"]


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] != "experiment"])
def test_every_option_composes_and_validates(group: str, option: str) -> None:
    choice = f"{group}={option}"
    # Resolutions that every autoencoder divides.
    sizes = ["data.resolution=256"] if group == "autoencoder" else []
    script = (
        "sample"
        if group in ("eval", "use", "output", "recipe")
        else "reference"
        if group == "network"
        else "train"
    )
    out = ["out=x"] if script == "reference" else []
    config = composed(script, choice, *NEEDS.get(choice, []), *sizes, *out)
    # Some groups are settings of another.
    node = {
        "size": "model",
        "patch": "model",
        "filters": "data",
        "buckets": "data",
        "ema": "callbacks",
        "spikes": "callbacks",
        "profiler": "callbacks",
        "debug": "trainer",
        "recipe": "sampler",
        "micro": "conditioner",
    }.get(group, group)
    assert (config[node] is None) == (choice == "eval=none")


# Presets on the default data.
OF_SHAPES = {"demo", "ddpm_baseline", "edm_baseline", "guidance_distillation", "meanflow"}
# Presets that go on from another run; tests/commands/test_reflow.py, test_preferences.py and
# test_guidance_distillation.py run them.
GOING_ON = {
    "reflow": "init.ckpt=x",
    "one_step": "init.ckpt=x",
    "dpo": "init.ckpt=x",
    "guidance_distillation": "teacher.ckpt=x",
}


def preset(option: str, shards: Path) -> list[str]:
    """The settings of a preset, with shards of the user's, or few of the demo's own."""
    own = "data.shards.samples=64" if option in OF_SHAPES else f"data.shards={shards}"
    start = [GOING_ON[option]] if option in GOING_ON else []
    return [f"experiment={option}", own, *start]


@pytest.mark.parametrize("option", PRESETS)
def test_every_preset_composes(option: str) -> None:
    composed("train", *preset(option, Path("x.tar")))


# A preset's own pieces stay; only what costs time or needs a download is made small.
SMALL = [
    "model.width=24",
    "model.num_heads=2",
    "model.depth=2",
    "trainer.max_steps=1",
    "trainer.budget=null",
    "data.batch_size=2",
    "data.num_workers=0",
    "callbacks.grid=null",
    "compile=false",
]


@pytest.mark.slow
@pytest.mark.parametrize("option", [option for option in PRESETS if option not in GOING_ON])
def test_every_preset_runs_a_step(cli: CommandLine, option: str, assets: Path) -> None:
    settings = preset(option, assets / "data/emoji/emoji-0007.tar")
    autoencoder = composed("train", *settings)["autoencoder"].get("name")  # None: pixels
    if autoencoder == "sd":
        # Its weights are not at hand; the latents of TAESD have the same shape.
        settings += ["autoencoder=taesd", "data=imagenet_wds", "data.decoder.label_key=json.label"]
        settings += ["conditioner.num_classes=9"]
    elif autoencoder == "taesd":
        settings.append(f"text_encoder.source={assets / 'text_encoder/minilm'}")
    elif option == "jit":  # its classes come in shards here
        settings += ["data=imagenet_wds", "data.decoder.label_key=json.label", "conditioner.num_classes=9"]
    if autoencoder is not None:
        settings += [f"autoencoder.source={assets / 'autoencoder/taesd'}", "data.resolution=64"]
    cli.train("run_dir=run", *settings, *SMALL)
    assert Path("run/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_presets_say_how_to_run_them_and_what_was_measured(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert lines[0] == "# @package _global_"
    assert f"python train.py experiment={path.stem}" in header
    assert "Measured" in header or "not yet run" in header.lower()


@pytest.mark.parametrize("name", ["train", "sample"])
def test_defaults_validate(name: str) -> None:
    assert composed(name)["seed"] == 0


@pytest.mark.parametrize(
    ("size", "patch", "parameters"),
    [("s", "p2", 32_957_200), ("b", "p2", 130_500_112), ("b", "p8", 130_684_672)],
)
def test_sizes_and_patches_are_the_papers(size: str, patch: str, parameters: int) -> None:
    config = composed(
        "train", f"size={size}", f"patch={patch}", "model=dit", "conditioner=labels", "autoencoder=sd",
        "data.resolution=256",
    )  # fmt: skip
    with torch.device("meta"):
        network = build_network(config)
    assert count_parameters(network) == parameters


def test_every_target_is_a_keyword_only_callable() -> None:
    """YAML keys are therefore names, never positions."""
    import inspect

    for path in CONFIG_DIR.glob("*/*.yaml"):
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        target = node.get("_target_") if isinstance(node, dict) else None
        if isinstance(target, str) and target.startswith("rfdit."):
            kinds = {p.kind for p in inspect.signature(get_object(target)).parameters.values()}
            assert kinds <= {inspect.Parameter.KEYWORD_ONLY}, target


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["time=uniform", "coupling=optimal_transport"],
        ["time=mode", "schedule=cosine", "objective.shift=3"],
        ["time=cosmap", "schedule=constant", "model.recompute=selective"],
        ["model=dit", "model.positions=learned"],
        ["model.attention._target_=rfdit.model.ManualAttention", "data.resolution=[32,64]", "data=laion"],
        ["callbacks.ema=null", "callbacks.checkpoints.monitor=null"],
    ],
    ids=lambda overrides: ",".join(overrides),
)
def test_combinations_run(cli: CommandLine, request: pytest.FixtureRequest, overrides: list[str]) -> None:
    if "data=laion" in overrides:
        overrides = [*overrides, f"data.shards={request.getfixturevalue('emoji_shard')}"]
    cli.train("run_dir=run", *overrides)
    assert Path("run/checkpoints/last.ckpt").exists()
