"""How noise becomes latents: solvers, guidance, and the loop that both serve."""

from rfdit.sampler.corrections import AdaptiveProjected, CFGRescale, CFGZeroStar
from rfdit.sampler.guidance import (
    Autoguidance,
    ClassifierFree,
    Guidance,
    GuidanceInterval,
    NoGuidance,
    ThreeChannel,
)
from rfdit.sampler.pipeline import Pipeline
from rfdit.sampler.sampler import Sampler
from rfdit.sampler.solvers import Euler, Heun, Solver, VelocityField

__all__ = [
    "AdaptiveProjected",
    "Autoguidance",
    "CFGRescale",
    "CFGZeroStar",
    "ClassifierFree",
    "Euler",
    "Guidance",
    "GuidanceInterval",
    "Heun",
    "NoGuidance",
    "Pipeline",
    "Sampler",
    "Solver",
    "ThreeChannel",
    "VelocityField",
]
