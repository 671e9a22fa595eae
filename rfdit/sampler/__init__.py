"""From noise to data: solvers, time grids, guidance, and the loop that integrates a velocity field."""

from rfdit.sampler.corrections import AdaptiveProjected, CFGRescale, CFGZeroStar
from rfdit.sampler.ddpm import DDPM
from rfdit.sampler.dopri5 import Dopri5
from rfdit.sampler.flow_map import FlowMap
from rfdit.sampler.guidance import (
    Autoguidance,
    ClassifierFree,
    EmbeddedGuidance,
    Guidance,
    GuidanceInterval,
    HasGuide,
    HasScale,
    NoGuidance,
    PathDrop,
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
from rfdit.sampler.solvers import (
    RK4,
    AdaptiveSolver,
    Euler,
    Heun,
    Midpoint,
    ReadsNetwork,
    Solver,
    StochasticSolver,
    VelocityField,
)
from rfdit.sampler.time_grids import (
    CosineGrid,
    CustomGrid,
    LastStepGrid,
    ResolutionGrid,
    RespacedGrid,
    TimeGrid,
    UniformGrid,
)

__all__ = [
    "DDPM",
    "RK4",
    "AdaptiveProjected",
    "AdaptiveSolver",
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
    "EmbeddedGuidance",
    "Euler",
    "EulerMaruyama",
    "FlowMap",
    "Guidance",
    "GuidanceInterval",
    "HasGuide",
    "HasScale",
    "Heun",
    "LastStepGrid",
    "Midpoint",
    "NoGuidance",
    "PathDrop",
    "Pipeline",
    "ReadsNetwork",
    "ResolutionGrid",
    "RespacedGrid",
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
