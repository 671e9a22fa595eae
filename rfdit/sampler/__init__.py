"""How noise becomes latents: solvers, guidance, and the loop that both serve."""

from rfdit.sampler.guidance import ClassifierFree, Guidance, NoGuidance
from rfdit.sampler.pipeline import Pipeline
from rfdit.sampler.sampler import Sampler
from rfdit.sampler.solvers import Euler, Heun, Solver, VelocityField

__all__ = [
    "ClassifierFree",
    "Euler",
    "Guidance",
    "Heun",
    "NoGuidance",
    "Pipeline",
    "Sampler",
    "Solver",
    "VelocityField",
]
