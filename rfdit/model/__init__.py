"""Velocity networks: plain nn.Modules v(z_t, t, cond)."""

from rfdit.model.attention import FusedAttention, KernelAttention, ManualAttention
from rfdit.model.dit import DiT
from rfdit.model.mmdit import MMDiT
from rfdit.protocols import Backbone

__all__ = ["Backbone", "DiT", "FusedAttention", "KernelAttention", "MMDiT", "ManualAttention"]
