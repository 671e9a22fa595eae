"""The registry of parts that a saved configuration may name, and the check before anything in it is built.

A checkpoint or an exported folder may come from anyone. Its configuration names classes and their settings,
so what it may name is listed here, class by class: parts of a model that compute from the settings of their
constructors alone, and frozen encoders, which read safetensors by the name of a model. Nothing that opens
other files, commands, addresses or configurations belongs here. Autoguidance and objectives with a teacher are left
out, since their networks come from another checkpoint.

Paths in it are treated likewise. None is opened, be it of data, class names (a checkpoint carries these), prompts,
references or other checkpoints, whatever is generated, shown or exported: files are named by the user alone, in
settings of the command. The exceptions: where a frozen encoder's weights are (`source`, `pretrained`): a name
of the hub, or a folder or file, from which only JSON, tokenizers' vocabularies and tensors without code are read,
and which is never shown. `autoencoder.source` and `text_encoder.source` of the command replace it. Likewise the base
of adapters is looked for where they say, and used if its weights have the digest that they state; `base` replaces it.
"""

import importlib
import inspect
import sys
import typing
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any

from rfdit import model, objective, sampler
from rfdit.autoencoder.contract import Autoencoder
from rfdit.autoencoder.diffusers import DiffusersAutoencoder
from rfdit.autoencoder.identity import IdentityAutoencoder
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.conditioning import Conditioner, LabelConditioner, TextConditioner
from rfdit.config.signatures import problems
from rfdit.model.adapters import Adapter, LoHa, LoKr, LoRA
from rfdit.model.layers.attention import Attention
from rfdit.objective.coupling import Coupling
from rfdit.protocols import Backbone, Objective, TextEncoder
from rfdit.storage.untrusted import check_plain
from rfdit.text_encoder.bpe import BPEEncoder
from rfdit.text_encoder.concat import ConcatEncoder
from rfdit.text_encoder.openclip import OpenCLIPEncoder
from rfdit.text_encoder.openclip_hf import OpenCLIPHFEncoder
from rfdit.text_encoder.transformers import TransformersEncoder

# The annotation of a constructor's argument -> the classes that a saved configuration may name for it.
PARTS: dict[Any, tuple[type, ...]] = {
    Backbone: (model.DiT, model.Flux, model.MMDiT, model.TokenDiT),
    model.Prediction: (
        model.CosineVelocityPrediction, model.DataPrediction, model.EDMPrediction, model.NoisePrediction,
        model.VelocityPrediction,
    ),
    model.VPSchedule: (model.VPSchedule,),
    Adapter: (LoHa, LoKr, LoRA),
    Attention: (model.FusedAttention, model.KernelAttention, model.ManualAttention),
    Conditioner: (LabelConditioner, TextConditioner),
    TextEncoder: (
        BPEEncoder, ConcatEncoder, OpenCLIPEncoder, OpenCLIPHFEncoder, TransformersEncoder,
    ),
    Autoencoder: (DiffusersAutoencoder, IdentityAutoencoder),
    Objective: (
        objective.ContrastiveFlowMatching, objective.DiffusionDPO, objective.MeanFlow,
        objective.NoiseAndVarianceMatching, objective.VelocityMatching,
    ),
    objective.TimeSampler: (
        objective.CosMapTime, objective.LogitNormalTime, objective.ModeTime, objective.StepTime,
        objective.TimestepTime, objective.UniformTime,
    ),
    objective.NoiseSchedule: (model.VPSchedule,),
    Coupling: (objective.IndependentCoupling, objective.OptimalTransportCoupling, objective.RecordedCoupling),
    objective.Weighting: (
        objective.DataWeighting, objective.EDMWeighting, objective.MinSNRWeighting, objective.NoiseWeighting,
        objective.UncertaintyWeighting, objective.UniformWeighting,
    ),
    sampler.Sampler: (sampler.Sampler,),
    sampler.Solver: (
        sampler.Dopri5, sampler.Euler, sampler.FlowMap, sampler.Heun, sampler.Midpoint, sampler.RK4,
    ),
    sampler.StochasticSolver: (sampler.DDPM, sampler.EulerMaruyama),
    sampler.Diffusion: (
        sampler.ConstantDiffusion, sampler.DecreasingDiffusion, sampler.SigmaDiffusion, sampler.SineDiffusion,
    ),
    sampler.TimeGrid: (
        sampler.CosineGrid, sampler.CustomGrid, sampler.LastStepGrid, sampler.ResolutionGrid, sampler.RespacedGrid,
        sampler.UniformGrid,
    ),
    sampler.Guidance: (
        sampler.AdaptiveProjected, sampler.CFGRescale, sampler.CFGZeroStar, sampler.ClassifierFree,
        sampler.EmbeddedGuidance, sampler.GuidanceInterval, sampler.NoGuidance, sampler.PathDrop,
        sampler.ThreeChannel,
    ),
}  # fmt: skip
# The groups of a saved configuration that describe a model, with what each of them is.
GROUPS: dict[str, Any] = {
    "model": Backbone,
    "prediction": model.Prediction,
    "conditioner": Conditioner,
    "text_encoder": TextEncoder,
    "autoencoder": Autoencoder,
    "objective": Objective,
    "sampler": sampler.Sampler,
    "guidance": sampler.Guidance,
}
# With that of a checkpoint of adapters, which become part of the model.
CHECKED = GROUPS | {"adapter": Adapter}
MOST = 10_000_000  # the largest integer among the settings: no size, count or number of steps is larger
# Arguments that decide how long building or sampling takes: more would look like a program that hangs.
MOST_OF = {
    (sampler.Sampler, "steps"): 10_000,
    (sampler.Dopri5, "max_evaluations"): 10_000,
    (model.VPSchedule, "timesteps"): 100_000,
}
ANYTHING = tuple(part for parts in PARTS.values() for part in parts)


def _names(part: type) -> list[str]:
    """The names under which a class can be written: by its own module, and by the packages that export it."""
    folders = part.__module__.split(".")
    modules = (".".join(folders[:length]) for length in range(1, len(folders) + 1))
    return [
        f"{module}.{part.__name__}"
        for module in modules
        if getattr(sys.modules[module], part.__name__, None) is part
    ]


REGISTRY = {name: part for part in ANYTHING for name in _names(part)}


def check_saved(saved: SavedRun, groups: Collection[str], packages: Collection[str] = ()) -> None:
    """`check_parts` of some groups of a saved model's configuration; the message begins with its path."""
    try:
        check_parts({group: saved.config.get(group) for group in groups}, packages)
    except ValueError as error:
        raise ValueError(f"{saved.path}: {error}") from None


def check_parts(groups: Mapping[str, Any], packages: Collection[str] = ()) -> None:
    """Check some groups of a saved configuration, before anything in them is built; None stands for a missing group.

    packages: packages of the user's own, all of whose classes may be named too.
    Raises ValueError, naming the setting, for a class that is not registered or not for that place, for
    settings that its constructor does not take, and for interpolations.
    """
    present = {group: node for group, node in groups.items() if node is not None}
    for group, node in present.items():
        check_plain(node, group)
        if type(node) is not dict or "_target_" not in node:
            raise ValueError(f"{group} has no _target_, the class that it describes")
        _check_value(group, node, PARTS[CHECKED[group]], packages)
    if wrong := list(dict.fromkeys(problems(present, present))):
        raise ValueError("; ".join(wrong))


def is_registered(node: Mapping[str, Any]) -> bool:
    """True for a part of rfdit, False for a class of the user's own."""
    return node["_target_"] in REGISTRY


def _check_value(path: str, value: Any, parts: Collection[type], packages: Collection[str]) -> None:
    """parts: the classes of which an object may be at this place."""
    if isinstance(value, str) and ("${" in value or value == "???"):
        raise ValueError(
            f"{path}={value[:100]} is an interpolation, which is not resolved in a model's config"
        )
    if isinstance(value, int) and abs(value) > MOST:
        raise ValueError(f"{path} is an integer beyond {MOST:,}, and no setting of a model is")
    if isinstance(value, dict) and "_target_" in value:
        _check_node(path, value, parts, packages)
    elif isinstance(value, dict | list):
        inside = parts if parts is ANYTHING else ()
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_value(f"{path}.{name}", item, inside, packages)


def _check_node(path: str, node: dict[str, Any], parts: Collection[type], packages: Collection[str]) -> None:
    target = str(node["_target_"])[:200]
    part, own = REGISTRY.get(target), _is_class_of(target, packages)
    if part not in parts and not own:
        known = "there" if part else "that rfdit knows"
        raise ValueError(
            f"{path}._target_={target} is not a part of a model {known}, and nothing else is built from a "
            "model's config; packages=[YOUR_PACKAGE] allows the classes of a package of your own"
        )
    hints = {} if part is None or own else typing.get_type_hints(part.__init__)  # type: ignore[misc]
    for name, value in node.items():
        if not own and name != "_target_" and name.startswith("_") and name.endswith("_"):
            raise ValueError(f"{path}.{name} is not a setting of {target}")
        most = MOST_OF.get((part, name)) if part is not None else None
        if most is not None and isinstance(value, int) and value > most:
            raise ValueError(
                f"{path}.{name}={value} is more than {most:,}, the most that a model's config may ask for"
            )
        if name == "_target_":
            continue
        hint = hints.get(name)
        if typing.get_origin(hint) is Mapping and isinstance(value, dict) and "_target_" not in value:
            for key, item in value.items():  # several parts by name
                inside = ANYTHING if own else _parts_of(typing.get_args(hint)[1])
                _check_value(f"{path}.{name}.{key}", item, inside, packages)
        else:
            _check_value(f"{path}.{name}", value, ANYTHING if own else _parts_of(hint), packages)


def _parts_of(hint: Any) -> tuple[type, ...]:
    """The registered classes that an annotation takes."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else [hint]
    return tuple(part for choice in choices for part in PARTS.get(choice, ()))


def _is_class_of(target: str, packages: Collection[str]) -> bool:
    """True for a class of the user's own packages; rfdit's are registered one by one."""
    module, _, name = target.rpartition(".")
    own = set(packages) - {"rfdit"}
    if module.partition(".")[0] not in own:
        return False
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    # A module's own imports are its attributes as well.
    return inspect.isclass(found) and found.__module__.partition(".")[0] in own
