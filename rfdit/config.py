"""From YAML to objects: the root schemas, `validate`, and `build`."""

import typing
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import rfdit
from rfdit.network import Network
from rfdit.resolvers import folder_name, latent_size
from rfdit.sample_schema import SampleConfig
from rfdit.signatures import near, problems

PACKAGE = Path(rfdit.__file__).parent
# conf/ is inside the package in a wheel and beside it in a checkout.
CONFIG_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


@dataclass
class TrainConfig:
    """`train.yaml`. The groups' own settings are checked against the signatures of their targets."""

    seed: int
    run_dir: str
    ckpt: str | None
    compile: bool
    objective_metric: str
    fp8: bool
    model: Any
    objective: Any
    time: Any
    coupling: Any
    autoencoder: Any
    text_encoder: Any
    conditioner: Any
    data: Any
    sampler: Any
    guidance: Any
    eval: Any
    optimizer: Any
    schedule: Any
    callbacks: Any
    trainer: Any
    strategy: Any
    logger: Any


@dataclass
class PlanConfig(TrainConfig):
    """`plan.yaml`: a training configuration, and how to plan for it."""

    devices: int
    json: bool
    peak_tflops: float | None
    mfu: float


@dataclass
class PosthocConfig:
    """`posthoc.yaml`."""

    ckpt: str | None
    std: float
    step: int | None
    out: str | None


@dataclass
class EncodeConfig:
    """`encode.yaml`. Without a text_encoder, text features are not cached."""

    out: str
    dtype: str
    batch_size: int
    num_workers: int
    run_dir: str
    parts: int
    part: int
    accelerator: str
    data: Any
    autoencoder: Any
    text_encoder: Any = None


@dataclass
class PackConfig:
    """`pack.yaml`. Of `data`, shards, reader and filters are used."""

    out: str
    samples_per_shard: int
    verify: bool
    seed: int
    run_dir: str
    data: Any


@dataclass
class IndexConfig:
    """`index.yaml`. Of `data`, shards, reader and filters are used."""

    out: str | None
    image_sizes: bool
    seed: int
    run_dir: str
    data: Any


@dataclass
class ReferenceConfig:
    """`reference.yaml`. Of `data`, shards, reader, filters, decoder and resolution are used."""

    images: str | None
    resolution: Any
    out: str
    features: int
    count: int | None
    batch_size: int
    num_workers: int
    accelerator: str
    seed: int
    run_dir: str
    network: Any
    data: Any


def register() -> None:
    """Makes schemas and resolvers known to Hydra; safe to call twice."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="plan_schema", node=PlanConfig)
    store.store(name="sample_schema", node=SampleConfig)
    store.store(name="posthoc_schema", node=PosthocConfig)
    store.store(name="encode_schema", node=EncodeConfig)
    store.store(name="pack_schema", node=PackConfig)
    store.store(name="index_schema", node=IndexConfig)
    store.store(name="reference_schema", node=ReferenceConfig)
    OmegaConf.register_new_resolver("latent_size", latent_size, replace=True)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def build(node: Any, **supplied: Any) -> Any:
    """The object that a config node describes; the only place where Hydra instantiates.

    supplied: arguments that are no configuration, passed to the node's target.
    Raises the ValueError that a constructor raised, without Hydra's words around it.
    """
    try:
        return instantiate(node, **supplied, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        raise


def build_network(config: dict[str, Any], *, empty_backbone: bool = False) -> Network:
    """The trained part of a configuration; the backbone first, since its errors come at once.

    empty_backbone: put it on the meta device, to be filled later.
    """
    with torch.device("meta") if empty_backbone else nullcontext():
        backbone = build(config["model"])
    return Network(backbone=backbone, conditioner=build(config["conditioner"]))


def composed(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The validated configuration of `train`, `sample` and so on, as these overrides make it."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return validate(compose(name, overrides=list(overrides)))


def default_settings(name: str) -> list[str]:
    """The paths of all settings of `train`, `sample` and so on with their default groups, for error messages."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = OmegaConf.to_container(compose(name), resolve=False)
    return sorted(_paths(config))


def _paths(node: Any, path: str = "") -> Iterator[str]:
    for name, child in node.items() if isinstance(node, dict) else ():
        here = f"{path}.{name}".lstrip(".")
        yield here
        yield from _paths(child, here)


def validate(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain data.

    Raises ValueError that lists every problem by its path: missing values, broken interpolations,
    targets that do not exist, settings that a target does not have, and values that are not what it takes.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError("; ".join(f"{path} is not set; give {path}=..." for path in missing))
    try:
        config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        cause = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise ValueError(str(cause).splitlines()[0]) from None
    unresolved = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(config, dict)
    assert isinstance(unresolved, dict)
    schema = OmegaConf.get_type(cfg)
    known = {f.name for f in fields(schema)} if is_dataclass(schema) else set(config)
    settings = typing.cast(dict[str, Any], config)
    wrong = [f"{name} is no setting; {near(name, known)}" for name in map(str, config) if name not in known]
    wrong += problems(settings, typing.cast(dict[str, Any], unresolved))
    if wrong:
        raise ValueError("; ".join(dict.fromkeys(wrong)))
    return settings
