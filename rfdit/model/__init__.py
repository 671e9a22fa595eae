"""Velocity networks, plain modules v(z_t, t, cond), what else a network may predict, and their attention."""

from rfdit.model.dit import DiT
from rfdit.model.flux import Flux
from rfdit.model.layers.attention import FusedAttention, KernelAttention, ManualAttention
from rfdit.model.mmdit import MMDiT
from rfdit.model.prediction import (
    CosineVelocityPrediction,
    DataPrediction,
    EDMPrediction,
    NoisePrediction,
    Prediction,
    VelocityPrediction,
)
from rfdit.model.token_dit import TokenDiT
from rfdit.model.vp_schedule import VPSchedule
from rfdit.protocols import Backbone

__all__ = [
    "Backbone",
    "CosineVelocityPrediction",
    "DataPrediction",
    "DiT",
    "EDMPrediction",
    "Flux",
    "FusedAttention",
    "KernelAttention",
    "MMDiT",
    "ManualAttention",
    "NoisePrediction",
    "Prediction",
    "TokenDiT",
    "VPSchedule",
    "VelocityPrediction",
]
