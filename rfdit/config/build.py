"""From YAML to objects: the root schemas, `validate`, and `build`."""

import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from rfdit.config.described import CONFIG_DIR
from rfdit.config.run_name import run_name
from rfdit.config.schemas import SCHEMAS
from rfdit.config.signatures import near, problems, root_problems
from rfdit.config.sweep import folder_name
from rfdit.differences import walk
from rfdit.extras import missing_package
from rfdit.images import parse_size
from rfdit.model.prediction import Prediction
from rfdit.network import Network
from rfdit.protocols import Auxiliary, Backbone, check_backbone


def register() -> None:
    """Register schemas and resolvers with Hydra; may be called more than once."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("doubled", lambda n: 2 * n, replace=True)
    OmegaConf.register_new_resolver("latent_size", latent_size, replace=True)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("home", expand_home, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def build(node: Any, **supplied: Any) -> Any:
    """Build the object that a config node describes; the only place where Hydra instantiates.

    supplied: further arguments of the node's target, which no YAML sets.
    Raises the ValueError or OSError of a constructor, without the sentence that Hydra puts around it, and
    ValueError for a package that is not installed.
    """
    try:
        return instantiate(node, **supplied, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ValueError | OSError):
            raise cause from None
        if (sentence := missing_package(cause)) is not None:
            raise ValueError(sentence) from cause
        raise


def target_of(node: Mapping[str, Any]) -> Any:
    """The class or function that a config node names."""
    return get_object(node["_target_"])


def build_backbone(config: dict[str, Any], *, empty: bool = False) -> Backbone:
    """Build the velocity network of a configuration, from its model and prediction. empty: on the meta device."""
    with torch.device("meta") if empty else nullcontext():
        backbone: Backbone = build(config["model"])
    check_backbone(backbone)
    prediction: Prediction = build(config["prediction"])
    return prediction(backbone)


def build_network(
    config: dict[str, Any],
    *,
    empty_backbone: bool = False,
    auxiliary: Auxiliary | None = None,
    objective: nn.Module | None = None,
) -> Network:
    """Build the trained part of a configuration; the backbone first, since its errors come at once.

    empty_backbone: put it on the meta device, to be filled later. auxiliary, objective: those of training.
    """
    backbone, conditioner = build_backbone(config, empty=empty_backbone), build(config["conditioner"])
    return Network(backbone=backbone, conditioner=conditioner, auxiliary=auxiliary, objective=objective)


def latent_size(resolution: int | Sequence[int], downsampling: int) -> int | list[int]:
    """The side, or [height, width], of the latents of images of a resolution; `${latent_size:...}` in YAML."""
    sides = parse_size(resolution, setting="data.resolution")
    if downsampling < 1:
        raise ValueError(f"autoencoder.downsampling={downsampling} must be at least 1")
    if any(side % downsampling for side in sides):
        raise ValueError(
            f"data.resolution={resolution} is not a multiple of autoencoder.downsampling={downsampling}"
        )
    sizes = [side // downsampling for side in sides]
    return sizes[0] if isinstance(resolution, int) else sizes


def latent_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    """(c, h, w) of the latents of a training configuration's model, from its settings or those of the data.

    Raises ValueError if neither say it.
    """
    model, autoencoder, data = config["model"], config.get("autoencoder") or {}, config.get("data")
    channels = model.get("in_channels", autoencoder.get("latent_channels"))
    if type(channels) is not int:
        raise ValueError("model.in_channels is not a number of channels")
    size = model.get("input_size")
    if "input_size" not in model and isinstance(data, dict):
        downsampling = autoencoder.get("downsampling")
        if type(downsampling) is not int:
            raise ValueError("autoencoder.downsampling is not a number of pixels")
        resolution: Any = data.get("resolution")
        size = latent_size(resolution, downsampling)
    return channels, *parse_size(size, setting="model.input_size")


def composed(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The validated configuration of a command (`train`, `sample`, ...) with these overrides."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return validate(compose(name, overrides=list(overrides)))


@functools.cache
def default_settings(name: str) -> list[str]:
    """The paths of all settings of a command with its default groups, for error messages."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = OmegaConf.to_container(compose(name), resolve=False)
    return sorted(path for path, _ in walk(config) if path)


def validate(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain data.

    Raises ValueError that lists every problem by its path: missing values, broken interpolations,
    targets that do not exist, settings that a target does not have, and values that it does not take.
    """
    # An item ??? of a list is a text.
    missing = sorted(path for path in OmegaConf.missing_keys(cfg) if not path.endswith("]"))
    if missing:
        raise ValueError("; ".join(f"{path} is not set; give {path}=..." for path in missing))
    try:
        config: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ValueError):
            raise ValueError(str(error.__cause__).splitlines()[0]) from None
        raise ValueError(
            f"{str(error).splitlines()[0]}; if ${{ is part of a text, write \\${{ for it"
        ) from None
    unresolved: Any = OmegaConf.to_container(cfg, resolve=False)
    schema = OmegaConf.get_type(cfg)
    known = {f.name for f in fields(schema)} if is_dataclass(schema) else set(config)
    wrong = [f"{name} is not a setting; {near(name, known)}" for name in config if name not in known]
    wrong += root_problems(config, schema) if is_dataclass(schema) else ()
    wrong += problems(config, unresolved)
    if wrong:
        # A setting from which others are interpolated may break limits of several targets.
        by_setting: dict[str, str] = {}
        for sentence in wrong:
            setting = sentence.partition(" must be ")[0]
            if by_setting.get(setting) in (None, f"{sentence}, or null"):
                by_setting[setting] = sentence
        raise ValueError("; ".join(by_setting.values()))
    return {name: expand_home(value) for name, value in config.items()}


def expand_home(value: Any) -> Any:
    """A path, or the paths in a setting, with `~/` at the beginning replaced by the home folder; `${home:...}` in YAML.

    Lists stay as they are: some are of captions, and those that are of paths are expanded by their readers.
    """
    if isinstance(value, dict):
        return {name: expand_home(part) for name, part in value.items()}
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value
