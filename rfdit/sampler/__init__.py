"""How noise becomes latents: solvers, time grids, guidance, and the loop that they serve."""

from rfdit.sampler.corrections import AdaptiveProjected, CFGRescale, CFGZeroStar
from rfdit.sampler.dopri5 import Dopri5
from rfdit.sampler.grids import (
    CosineGrid,
    CustomGrid,
    LastStepGrid,
    ResolutionGrid,
    TimeGrid,
    UniformGrid,
)
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
from rfdit.sampler.sde import (
    ConstantDiffusion,
    DecreasingDiffusion,
    Diffusion,
    EulerMaruyama,
    SigmaDiffusion,
    SineDiffusion,
)
from rfdit.sampler.solvers import RK4, Euler, Heun, Midpoint, Solver, StochasticSolver, VelocityField

__all__ = [
    "RK4",
    "AdaptiveProjected",
    "Autoguidance",
    "CFGRescale",
    "CFGZeroStar",
    "ClassifierFree",
    "ConstantDiffusion",
    "CosineGrid",
    "CustomGrid",
    "DecreasingDiffusion",
    "Diffusion",
    "Dopri5",
    "Euler",
    "EulerMaruyama",
    "Guidance",
    "GuidanceInterval",
    "Heun",
    "LastStepGrid",
    "Midpoint",
    "NoGuidance",
    "Pipeline",
    "ResolutionGrid",
    "Sampler",
    "SigmaDiffusion",
    "SineDiffusion",
    "Solver",
    "StochasticSolver",
    "ThreeChannel",
    "TimeGrid",
    "UniformGrid",
    "VelocityField",
]
