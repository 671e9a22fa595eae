"""What is regressed, at which times, on which pairs."""

from rfdit.objective.coupling import IndependentCoupling, OptimalTransportCoupling
from rfdit.objective.times import CosMapTime, LogitNormalTime, ModeTime, TimeSampler, UniformTime
from rfdit.objective.velocity import FlowLoss, VelocityMatching

__all__ = [
    "CosMapTime",
    "FlowLoss",
    "IndependentCoupling",
    "LogitNormalTime",
    "ModeTime",
    "OptimalTransportCoupling",
    "TimeSampler",
    "UniformTime",
    "VelocityMatching",
]
