"""How fast a run is, and how close to what the hardware can do."""

import math
import resource
import sys
import time
from typing import Any

import lightning as L
import torch

from rfdit.batch import Batch, Condition
from rfdit.callbacks.steps import OptimizerSteps
from rfdit.limits import Count
from rfdit.model.backbone import token_grid
from rfdit.model.cost import count_macs, weightless
from rfdit.precision import multiplies_bf16_fast
from rfdit.protocols import Backbone
from rfdit.training.module import FlowModule
from rfdit.training.peak import matmul_peak


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's most since the last call on a GPU, the process's largest resident set elsewhere."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest  # Linux counts in KiB


class Throughput(L.Callback):
    """Logs images and tokens per second, MFU, the share of time spent waiting for data, and peak memory.

    MFU counts six floating-point operations per multiply-add of the backbone's forward pass and
    divides by the matrix-product rate measured on this device, in this precision, at the start;
    encoders that run beside the backbone count as lost time. Tokens are the image's, without captions
    (latent pixels, for a backbone without `patch_size`).
    Memory is the most that this process has taken, in GB (10^9 bytes): of the GPU since the last log,
    as PyTorch's allocator counts it, or resident on a CPU since the process began.
    """

    def __init__(self, *, every_n_steps: Count) -> None:
        self.every_n_steps = every_n_steps
        self.images_per_second = 0.0
        self._steps = OptimizerSteps()
        self._peak = 0.0
        self._backbone: Backbone | None = None  # without weights
        self._null: Condition | None = None
        self._macs: dict[tuple[int, int, int], int] = {}  # of one image, by the latent's shape

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Before a strategy takes the network apart.
        assert isinstance(pl_module, FlowModule)
        if stage == "fit":
            self._backbone = weightless(pl_module.network.backbone)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = pl_module.device
        assert isinstance(pl_module, FlowModule)
        with torch.no_grad():  # on all ranks together: each may hold but a part of it
            self._null = pl_module.network.conditioner.null(device=device)
        bf16 = trainer.precision == "bf16-mixed" and multiplies_bf16_fast(device)
        self._peak = matmul_peak(device, torch.bfloat16 if bf16 else torch.float32)
        self._steps.start(trainer)
        self._start_window()
        self._left = time.perf_counter()

    def _start_window(self) -> None:
        self._window = time.perf_counter()
        self._images, self._tokens, self._flops, self._waited = 0, 0, 0.0, 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._waited += time.perf_counter() - self._left
        assert isinstance(pl_module, FlowModule)
        shape = pl_module.latent_shape(batch)
        if shape not in self._macs:
            assert self._backbone is not None
            assert self._null is not None
            self._macs[shape] = count_macs(self._backbone, shape, self._null)
        self._flops += 6 * self._macs[shape] * len(batch)
        patch_size = getattr(pl_module.network.backbone, "patch_size", 1)
        self._tokens += math.prod(token_grid(shape[1:], patch_size)) * len(batch) * trainer.world_size

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._images += len(batch) * trainer.world_size
        if self._steps(trainer) and trainer.global_step % self.every_n_steps == 0:
            self._log(trainer, pl_module)
        self._left = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_window()  # validation is no training time
        self._left = self._window

    def leave_out(self, seconds: float) -> None:
        """Does not count these last seconds, in which something else than training went on."""
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
