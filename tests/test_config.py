"""Every option composes and validates; every preset runs."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from rfdit.config import CONFIG_DIR, build_network, register, validate
from rfdit.model.cost import count_parameters
from tests.command_line import CommandLine

GROUPS = sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONFIG_DIR / group).glob("*.yaml"))]
PRESETS = [option for group, option in OPTIONS if group == "experiment"]
# What an option cannot do without.
NEEDS = {
    "data=laion": ["data.shards=x.tar"],
    "data=laion_urls": ["data.shards=x.parquet"],
    "data=latents": ["data.shards=x.tar"],
    "data=imagenet": ["data.shards=x"],
    "data=imagenet_wds": ["data.shards=x.tar"],
    "use=image_to_image": ["use.image=x.png"],
    "use=inpaint": ["use.image=x.png", "use.mask=x.png"],
    "conditioner=labels": ["model=dit"],
    "network=dinov2": ["network.weights=x"],
    "guidance=autoguidance": ["guidance.guide.ckpt=x.ckpt"],
}


def composed(name: str, *overrides: str) -> dict[str, object]:
    register()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(name, overrides=["run_dir=x", *overrides] if name == "train" else list(overrides))
    return validate(cfg)


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] != "experiment"])
def test_every_option_composes_and_validates(group: str, option: str) -> None:
    choice = f"{group}={option}"
    # Resolutions that every autoencoder divides.
    sizes = ["data.resolution=256"] if group == "autoencoder" else []
    script = (
        "sample" if group in ("eval", "use", "output") else "reference" if group == "network" else "train"
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
    }.get(group, group)
    assert (config[node] is None) == (choice == "eval=none")


@pytest.mark.parametrize("option", PRESETS)
def test_every_preset_composes(option: str) -> None:
    composed("train", f"experiment={option}", "data.shards=x.tar")


# A preset's own pieces stay; only what costs time or needs a download is made small.
SMALL = [
    "model.width=24",
    "model.num_heads=2",
    "model.depth=2",
    "trainer.max_steps=1",
    "data.batch_size=2",
    "data.num_workers=0",
    "callbacks.grid=null",
    "compile=false",
]


@pytest.mark.parametrize("option", PRESETS)
def test_every_preset_runs_a_step(cli: CommandLine, option: str, assets: Path) -> None:
    shards, label = assets / "data/emoji/emoji-0007.tar", []
    places = [f"data.shards={shards}", "data.resolution=64"]
    if composed("train", f"experiment={option}", "data.shards=x.tar")["autoencoder"]["name"] == "sd":
        # Its weights are not at hand; the latents of TAESD have the same shape.
        places.append("autoencoder=taesd")
        label = ["data=imagenet_wds", "data.decoder.label_key=json.label", "conditioner.num_classes=9"]
    else:
        places.append(f"text_encoder.source={assets / 'text_encoder/minilm'}")
    places.append(f"autoencoder.source={assets / 'autoencoder/taesd'}")
    cli.train(f"experiment={option}", "run_dir=run", *SMALL, *places, *label)
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
    assert count_parameters(build_network(config)) == parameters


def test_every_target_is_a_keyword_only_callable() -> None:
    """So that YAML keys are names, never places."""
    import inspect

    for path in CONFIG_DIR.glob("*/*.yaml"):
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        target = node.get("_target_") if isinstance(node, dict) else None
        if isinstance(target, str) and target.startswith("rfdit."):
            kinds = {p.kind for p in inspect.signature(get_object(target)).parameters.values()}
            assert kinds <= {inspect.Parameter.KEYWORD_ONLY}, target


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
