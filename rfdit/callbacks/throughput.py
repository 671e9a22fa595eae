"""Measures the speed of training, and how close it is to what the hardware can do."""

import math
import resource
import sys
import time
from typing import Any

import lightning as L
import torch

from rfdit.batch import Batch, Condition
from rfdit.callbacks.capabilities import flow_module, logged_step
from rfdit.cost.count import count_macs, matmul_peak, weightless
from rfdit.device import multiplies_bf16_fast
from rfdit.limits import Count
from rfdit.model.layers.embeddings import token_grid
from rfdit.model.routing import draw_route
from rfdit.protocols import Backbone
from rfdit.randomness import SampleGenerator


def peak_memory(device: torch.device) -> int:
    """Peak bytes of a GPU's allocator since the last call; elsewhere the largest resident set of the process."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest  # Linux counts in KiB


class Throughput(L.Callback):
    """Logs images and tokens per second, MFU, the share of time spent waiting for data, and peak memory.

    MFU counts six floating-point operations per multiply-add of the backbone's forward pass and
    divides by the matrix-product rate measured on this device, in this precision, at the start. Encoders
    that run beside the backbone, and passes of a frozen reference, count as lost time. Tokens are the image's,
    without captions. Memory is this process's peak in GB (10^9 bytes): on a GPU since the last log, as PyTorch's
    allocator counts it, or resident on a CPU since the process began.
    """

    def __init__(self, *, every_n_steps: Count) -> None:
        self.every_n_steps = every_n_steps
        self.images_per_second = 0.0
        self._peak = 0.0
        self._backbone: Backbone | None = None  # without weights
        self._null: Condition | None = None
        self._macs: dict[tuple[int, int, int], int] = {}  # for one image, by the latent's shape

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Before a strategy shards the network.
        module = flow_module(pl_module)
        if stage == "fit":
            self._backbone = weightless(module.network.backbone)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = pl_module.device
        module = flow_module(pl_module)
        with torch.no_grad():  # on all ranks together: each may hold only a part of it
            self._null = module.network.conditioner.null(device=device)
        bf16 = trainer.precision == "bf16-mixed" and multiplies_bf16_fast(device)
        self._peak = matmul_peak(device, torch.bfloat16 if bf16 else torch.float32)
        self._start_window()
        self._left = time.perf_counter()

    def _start_window(self) -> None:
        self._window = time.perf_counter()
        self._images, self._tokens, self._flops, self._waited = 0, 0, 0.0, 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._waited += time.perf_counter() - self._left
        module = flow_module(pl_module)
        shape = module.latent_shape(batch)
        if shape not in self._macs:
            assert self._backbone is not None
            assert self._null is not None
            one = SampleGenerator(seed=0, keys=torch.zeros(1, dtype=torch.int64))
            route = draw_route(module.routing, module.network.backbone, shape[1:], generator=one)
            self._macs[shape] = count_macs(self._backbone, shape, self._null, route=route)
        self._flops += 6 * self._macs[shape] * batch.num_images
        patch_size = module.network.backbone.patch_size
        self._tokens += math.prod(token_grid(shape[1:], patch_size)) * batch.num_images * trainer.world_size

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._images += batch.num_images * trainer.world_size
        if pl_module.stepped and logged_step(trainer, self.every_n_steps):
            self._log(trainer, pl_module)
        self._left = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_window()  # validation is not training time
        self._left = self._window

    def leave_out(self, seconds: float) -> None:
        """Leave out the last seconds, in which something other than training went on."""
        self._window += seconds

    def _log(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        seconds = time.perf_counter() - self._window
        self.images_per_second = self._images / seconds
        metrics = {
            "speed/images_per_second": self.images_per_second,
            "speed/tokens_per_second": self._tokens / seconds,
            "speed/mfu": self._flops / seconds / self._peak,
            "speed/data_wait": self._waited / seconds,
            "speed/peak_memory_gb": peak_memory(module.device) / 1e9,
        }
        module.log_dict(metrics)
        self._start_window()
