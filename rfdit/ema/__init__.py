"""Averages of the weights over training: profiles, snapshots, and any length of them afterwards."""

from rfdit.ema.averages import Averages
from rfdit.ema.profiles import FixedDecay, PowerFunction, Profile
from rfdit.ema.snapshots import Snapshots

__all__ = ["Averages", "FixedDecay", "PowerFunction", "Profile", "Snapshots"]
