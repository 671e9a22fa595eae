"""Configurations as the commands compose them, without running a command."""

import copy
import functools
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra

from rfdit.config.build import CONFIG_DIR, register, validate

GROUPS = sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONFIG_DIR / group).glob("*.yaml"))]
# The settings without which an option does not validate.
NEEDS = {
    "data=laion": ["data.shards=x.tar"],
    "data=laion_urls": ["data.shards=x.parquet"],
    "data=preferences": ["data.shards=x.tar"],
    "data=latents": ["data.shards=x.tar"],
    "data=imagenet": ["data.shards=x"],
    "data=folder": ["data.shards=x"],
    "data=imagenet_wds": ["data.shards=x.tar"],
    "size=none": ["+model.width=8", "+model.depth=1", "+model.num_heads=1"],
    "patch=none": ["+model.patch_size=2"],
    "use=image_to_image": ["use.image=x.png"],
    "use=inpaint": ["use.image=x.png", "use.mask=x.png"],
    "conditioner=labels": ["model=dit"],
    "network=dinov2": ["network.weights=x"],
    "sampler=meanflow": ["guidance=none"],
    "guidance=autoguidance": ["guidance.guide.ckpt=x.ckpt"],
    "init=weights": ["init.ckpt=x"],
    "teacher=weights": ["teacher.ckpt=x"],
    "auxiliary=repa": ["auxiliary.teacher.weights=x"],
    "auxiliary=irepa": ["auxiliary.teacher.weights=x"],
}


def compose_once() -> None:
    """Lets a command of this process compose its configuration once.

    Hydra does it twice, first to look for `hydra.mode`, which no file of conf/ sets.
    """
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]


def composed(name: str, *overrides: str) -> dict[str, Any]:
    """The validated configuration of `conf/NAME.yaml` with these overrides, a copy of the caller's own."""
    return copy.deepcopy(_composed(name, *overrides))


@functools.cache
def _composed(name: str, *overrides: str) -> dict[str, Any]:
    register()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(name, overrides=["run_dir=x", *overrides] if name == "train" else list(overrides))
    return validate(cfg)
