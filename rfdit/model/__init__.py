"""Velocity networks: plain nn.Modules v(z_t, t, cond)."""

from rfdit.model.attention import FusedAttention, ManualAttention
from rfdit.model.backbone import Backbone
from rfdit.model.dit import DiT
from rfdit.model.mmdit import MMDiT

__all__ = ["Backbone", "DiT", "FusedAttention", "MMDiT", "ManualAttention"]
