"""Averages of the weights over training: profiles, snapshots, and averages of any length afterwards."""

from rfdit.ema.averages import Averages
from rfdit.ema.profiles import FixedDecay, PowerFunction, PowerLength, Profile
from rfdit.ema.snapshots import Snapshots

__all__ = ["Averages", "FixedDecay", "PowerFunction", "PowerLength", "Profile", "Snapshots"]
