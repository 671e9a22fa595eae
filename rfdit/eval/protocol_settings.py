"""The settings of an evaluation as plain data, taken from the objects that were used."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rfdit.batch import Condition, Latent
from rfdit.eval.evaluation import Evaluation
from rfdit.eval.inputs import ChosenInputs
from rfdit.eval.protocol import EvalProtocol
from rfdit.pretrained.frozen import weights_digest
from rfdit.protocols import Route
from rfdit.randomness import SampleGenerator
from rfdit.sampler import AdaptiveSolver, Guidance, HasGuide, Pipeline, ReadsNetwork, Sampler
from rfdit.sampler.guidance import IsNetworkInput, innermost, with_innermost

# Attributes that change speed alone, and the path of a guide, whose weights are identified by their sha256.
NO_SETTINGS = {"batched", "ckpt"}


def protocol_of(
    evaluation: Evaluation,
    pipeline: Pipeline,
    chosen: ChosenInputs,
    *,
    weights: dict[str, Any],
    seed: int,
    negative: str | None = None,
) -> EvalProtocol:
    """The protocol of an evaluation, which must be prepared.

    weights: from `weights_settings`. negative: prompt that guidance moves away from.
    """
    sampler = pipeline.sampler
    negative_setting = {} if negative is None else {"negative": negative}
    return EvalProtocol(
        **evaluation.settings(),
        samples=evaluation.samples,
        image_size=list(pipeline.image_size),
        inputs=chosen.settings,
        sampler={
            "solver": settings_of(sampler.solver),
            "grid": settings_of(sampler.grid),
            "shift": float(sampler.shift),
        },
        steps=sampler.steps,
        evaluations=evaluations_per_image(sampler, pipeline.latent_shape),
        guidance=settings_of(sampler.guidance) | negative_setting,
        precision="bf16" if pipeline.bf16 else "fp32",
        weights=weights,
        seed=seed,
    )


def settings_of(value: Any) -> Any:
    """An object as plain data: its class's name and its public attributes; a network by its weights' sha256."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): settings_of(each) for name, each in value.items()}
    if isinstance(value, Iterable):
        return [settings_of(each) for each in value]
    name = {"name": type(value).__name__}
    if isinstance(value, nn.Module):
        return name | {"sha256": weights_digest(value)}
    public = {k: v for k, v in vars(value).items() if not k.startswith("_") and k not in NO_SETTINGS}
    return name | {key: settings_of(each) for key, each in public.items()}


def weights_settings(config: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """The meaning of `weights` (raw, ema, or a profile's name) in a run with this training configuration.

    A checkpoint from anybody has only settings, from which no callback is built.
    `ema` stands for the first profile, which is recorded by its own name. Adapters that were added to the weights
    are named by factor and digest.
    """
    added = {"adapters": config["adapters"]} if config.get("adapters") else {}
    return _profile_settings(config, weights) | added


def _profile_settings(config: Mapping[str, Any], weights: str) -> dict[str, Any]:
    if weights == "raw":
        return {"name": "raw"}
    ema = (config.get("callbacks") or {}).get("ema") or {}
    profiles = {k: v for k, v in (ema.get("profiles") or {}).items() if v is not None}
    name = next(iter(profiles), weights) if weights == "ema" else weights
    if name not in profiles:
        return {"name": name}
    settings = {k: v for k, v in profiles[name].items() if k != "_target_"}
    every = ema.get("every_n_steps", 1)
    return {
        "name": name,
        "profile": str(profiles[name]["_target_"]).rpartition(".")[2],
        **settings,
        **({} if every == 1 else {"every_n_steps": every}),
    }


def evaluations_per_image(sampler: Sampler, latent_shape: tuple[int, int, int]) -> float | None:
    """Evaluations of the network per image; None for an adaptive solver.

    Counted by sampling with a network that returns zeros, so that it holds for any solver and guidance.
    """
    if isinstance(sampler.solver, AdaptiveSolver):
        return None
    count = _Counted(guidance=1.0 if isinstance(innermost(sampler.guidance), IsNetworkInput) else None)

    def with_guide(guidance: Guidance) -> Guidance:
        if isinstance(guidance, HasGuide):
            guidance.guide = count
        return guidance

    sampler = copy.copy(sampler)
    if isinstance(sampler.solver, ReadsNetwork):
        sampler.solver = sampler.solver.alone()
    sampler.guidance = with_innermost(sampler.guidance, with_guide)
    one = Condition(pooled=torch.zeros(1, 1))
    noise = torch.ones(1, *latent_shape)
    keys = torch.zeros(1, dtype=torch.int64)
    sampler(count, noise, one, one, generator=SampleGenerator(seed=0, keys=keys))
    return float(count.evaluations)


class _Counted:
    """A network of zeros that counts its evaluations, whole ones or without some of its blocks.

    guidance: as of `TakesGuidance`.
    """

    path = (1, 1)

    def __init__(self, *, guidance: float | None) -> None:
        self.guidance, self.evaluations = guidance, 0
        self.route: Route | None = None

    def __call__(self, z_t: Latent, t: Tensor, cond: Condition) -> Latent:
        self.evaluations += len(z_t)
        return torch.zeros_like(z_t)
