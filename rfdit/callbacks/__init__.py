"""The callbacks of training; one per file."""

from rfdit.callbacks.checkpoints import Checkpoints
from rfdit.callbacks.ema import EMA
from rfdit.callbacks.evaluate import Evaluate
from rfdit.callbacks.finite import FiniteGuard, NonFiniteLoss
from rfdit.callbacks.graceful_stop import GracefulStop
from rfdit.callbacks.progress import ProgressLine
from rfdit.callbacks.sample_grid import SampleGrid
from rfdit.callbacks.skipped import SkippedSamples
from rfdit.callbacks.spikes import LastingSpike, SpikeGuard
from rfdit.callbacks.start.cut_captions import CutCaptions
from rfdit.callbacks.start.log_config import LogConfig
from rfdit.callbacks.start.summary import StartSummary
from rfdit.callbacks.straightness import Straightness
from rfdit.callbacks.throughput import Throughput
from rfdit.callbacks.time_bins import TimeBinLoss
from rfdit.callbacks.trace import Trace

__all__ = [
    "EMA",
    "Checkpoints",
    "CutCaptions",
    "Evaluate",
    "FiniteGuard",
    "GracefulStop",
    "LastingSpike",
    "LogConfig",
    "NonFiniteLoss",
    "ProgressLine",
    "SampleGrid",
    "SkippedSamples",
    "SpikeGuard",
    "StartSummary",
    "Straightness",
    "Throughput",
    "TimeBinLoss",
    "Trace",
]
