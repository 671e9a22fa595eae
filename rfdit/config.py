"""From YAML to objects: the root schemas, `validate`, and `build`."""

import difflib
import inspect
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from beartype.door import is_bearable
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import rfdit
from rfdit.network import Network
from rfdit.resolvers import folder_name, latent_size
from rfdit.sample_schema import SampleConfig

PACKAGE = Path(rfdit.__file__).parent
# conf/ is inside the package in a wheel and beside it in a checkout.
CONFIG_DIR = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

# Arguments that `build`'s callers give, so that no YAML does.
SUPPLIED = {"trainer": {"callbacks", "loggers"}}


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
    targets that do not exist, settings that a target does not have, and values of another type.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError("; ".join(f"{path} is not set; give {path}=..." for path in missing))
    try:
        config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        cause = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise ValueError(str(cause).splitlines()[0]) from None
    assert isinstance(config, dict)
    schema = OmegaConf.get_type(cfg)
    known = {f.name for f in fields(schema)} if is_dataclass(schema) else set(config)
    problems = [
        f"{name} is no setting; {_near(name, known)}" for name in map(str, config) if name not in known
    ]
    problems += [problem for path, node in _targets(config) for problem in _check(path, node)]
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    return typing.cast(dict[str, Any], config)


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict with a `_target_`, with its path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for name, child in node.items():
            yield from _targets(child, f"{path}.{name}".lstrip("."))


def _near(name: str, known: Iterable[str]) -> str:
    """What may have been meant."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _check(path: str, node: dict[str, Any]) -> Iterator[str]:
    """The problems of one node with its target's signature."""
    try:
        target = get_object(node["_target_"])
    except Exception:
        yield f"{path}._target_={node['_target_']} cannot be imported"
        return
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {name: value for name, value in node.items() if not (name.startswith("_") and name.endswith("_"))}
    for name in given:
        if name not in parameters and not open_ended:
            yield f"{path}.{name} is no setting of {target.__qualname__}; {_near(name, parameters)}"
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
        if needed and name not in given and name not in SUPPLIED.get(path, ()):
            yield f"{path}.{name} is not set; {target.__qualname__} needs it"
    yield from _check_types(path, target, given)


def _check_types(path: str, target: Any, given: dict[str, Any]) -> Iterator[str]:
    """Values that are no instance of what the signature says; nested targets are checked as nodes."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # a library's annotations may need names that exist only for its type checker
        return
    for name, value in given.items():
        if name not in hints or any(_targets(value)):
            continue
        forms = [value, tuple(value)] if isinstance(value, list) else [value]
        if isinstance(value, int) and not isinstance(value, bool):
            forms.append(float(value))
        if not any(is_bearable(form, hints[name]) for form in forms):
            wanted = getattr(hints[name], "__name__", None) or str(hints[name])
            wanted = wanted if hints[name] in (int, float, str, bool) else str(hints[name])
            yield f"{path}.{name}={value!r} is a {type(value).__name__}, and it takes {wanted}"
