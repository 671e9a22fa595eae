"""What happens beside the training step; one callback per file."""

from rfdit.callbacks.checkpoints import Checkpoints
from rfdit.callbacks.ema import EMA
from rfdit.callbacks.evaluate import Evaluate
from rfdit.callbacks.finite import FiniteGuard, NonFiniteLoss
from rfdit.callbacks.graceful_stop import GracefulStop
from rfdit.callbacks.progress import ProgressLine
from rfdit.callbacks.sample_grid import SampleGrid
from rfdit.callbacks.skipped import SkippedSamples
from rfdit.callbacks.spikes import LastingSpike, SpikeGuard
from rfdit.callbacks.throughput import Throughput
from rfdit.callbacks.time_bins import TimeBinLoss
from rfdit.callbacks.trace import Trace

__all__ = [
    "EMA",
    "Checkpoints",
    "Evaluate",
    "FiniteGuard",
    "GracefulStop",
    "LastingSpike",
    "NonFiniteLoss",
    "ProgressLine",
    "SampleGrid",
    "SkippedSamples",
    "SpikeGuard",
    "Throughput",
    "TimeBinLoss",
    "Trace",
]
