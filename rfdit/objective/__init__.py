"""Training objectives, their time densities, couplings and weightings."""

from rfdit.objective.contrastive import ContrastiveFlowMatching
from rfdit.objective.coupling import IndependentCoupling, OptimalTransportCoupling, RecordedCoupling
from rfdit.objective.ddpm import NoiseAndVarianceMatching
from rfdit.objective.dpo import DiffusionDPO
from rfdit.objective.guidance_distillation import GuidanceDistillation
from rfdit.objective.learned_weighting import UncertaintyWeighting
from rfdit.objective.meanflow import MeanFlow
from rfdit.objective.repa import REPA, ConvolutionProjector, MLPProjector
from rfdit.objective.sprint import SPRINT
from rfdit.objective.times import (
    CosMapTime,
    LogitNormalTime,
    ModeTime,
    NoiseSchedule,
    StepTime,
    TimeSampler,
    TimestepTime,
    UniformTime,
)
from rfdit.objective.tread import TREAD
from rfdit.objective.velocity import VelocityMatching
from rfdit.objective.weighting import (
    DataWeighting,
    EDMWeighting,
    MinSNRWeighting,
    NoiseWeighting,
    UniformWeighting,
    Weighting,
)

__all__ = [
    "REPA",
    "SPRINT",
    "TREAD",
    "ContrastiveFlowMatching",
    "ConvolutionProjector",
    "CosMapTime",
    "DataWeighting",
    "DiffusionDPO",
    "EDMWeighting",
    "GuidanceDistillation",
    "IndependentCoupling",
    "LogitNormalTime",
    "MLPProjector",
    "MeanFlow",
    "MinSNRWeighting",
    "ModeTime",
    "NoiseAndVarianceMatching",
    "NoiseSchedule",
    "NoiseWeighting",
    "OptimalTransportCoupling",
    "RecordedCoupling",
    "StepTime",
    "TimeSampler",
    "TimestepTime",
    "UncertaintyWeighting",
    "UniformTime",
    "UniformWeighting",
    "VelocityMatching",
    "Weighting",
]
