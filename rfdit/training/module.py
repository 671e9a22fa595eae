"""The LightningModule: only wiring between the parts that know something."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from rfdit.autoencoder.contract import Autoencoder
from rfdit.batch import Batch
from rfdit.conditioning import drop_condition
from rfdit.images import to_float
from rfdit.model.adaln import warn_without_kernels
from rfdit.model.backbone import compile_blocks
from rfdit.network import Network
from rfdit.objective import FlowLoss, VelocityMatching
from rfdit.randomness import SampleGenerator
from rfdit.training.fp8 import use_fp8
from rfdit.training.fully_sharded import ShardsNetworks
from rfdit.training.optim import OptimizerFactory, refuse_step


class FlowModule(L.LightningModule):
    """Trains a `Network` by an objective on an autoencoder's latents.

    seed: with a sample's position in the stream it determines its noise, time and caption drop.
    last_loss: the training step's before this, for callbacks that look into it.
    fp8: the blocks' matrix products in FP8; not those of the EMA's copies.
    compile_blocks: torch.compile each transformer block; the EMA's copy stays as it is.
    record: what a checkpoint says of itself (the resolved configuration, the latent contract).
    """

    def __init__(
        self,
        *,
        network: Network,
        autoencoder: Autoencoder,
        objective: VelocityMatching,
        optimizer: OptimizerFactory,
        seed: int,
        record: dict[str, Any],
        compile_blocks: bool = False,
        fp8: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.autoencoder, self.objective, self.optimizer = autoencoder, objective, optimizer
        self.seed, self.record, self.compile_blocks, self.fp8 = seed, record, compile_blocks, fp8
        self.last_loss: FlowLoss | None = None
        # Each says of the gradient's norm, before clipping, whether its step must not be taken.
        self.step_guards: list[Callable[[Tensor], Tensor]] = []
        # An EMA's copies, sharded and saved as the network is; a dict, so that they are no submodules.
        self.averages: dict[str, Network] = {}
        self._configured = False
        self.sharded = False  # every rank holds parts of the networks, and all must use them together
        self._losses: list[Tensor] = []  # since the last optimiser step
        self._rng: dict[str, Any] | None = None
        self._evaluated: tuple[Network, ...] = (network,)

    @property
    def evaluated_network(self) -> Network:
        """The weights that validation, grids and metrics use: the EMA's if one is kept."""
        return self._evaluated[0]

    def evaluate_with(self, network: Network) -> None:
        """Sets the weights that are evaluated; a tuple keeps them out of this module's state."""
        self._evaluated = (network,)

    def configure_model(self) -> None:
        if self._configured:  # Lightning asks more than once
            return
        self._configured = True
        if self.fp8:
            assert isinstance(self.network.backbone, nn.Module)
            use_fp8(self.network.backbone)
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardsNetworks):
            for network in (self.network, *self.averages.values()):
                strategy.shard(network)
            self.sharded = True

    def on_fit_start(self) -> None:
        warn_without_kernels(self.device)
        if self.compile_blocks:
            assert isinstance(self.network.backbone, nn.Module)
            compile_blocks(self.network.backbone)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._loss(self.network, batch, "train", drop=self.network.conditioner.drop)
        self.last_loss = FlowLoss(total=loss.total.detach(), per_sample=loss.per_sample, t=loss.t)
        self._losses.append(self.last_loss.total)
        return loss.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # A purpose of its own: training never saw this noise; the same at every validation.
        loss = self._loss(self.evaluated_network, batch, "validation", drop=0.0)
        self.log("val/loss", loss.total, batch_size=len(batch), sync_dist=True)

    def _loss(self, network: Network, batch: Batch, purpose: str, drop: float) -> FlowLoss:
        generator = SampleGenerator(seed=self.seed, keys=batch.positions, purpose=purpose)
        z0 = self.autoencoder.from_moments(self._moments(batch), generator=generator.fork("posterior"))
        conditioner = network.conditioner
        cond = conditioner(conditioner.inputs(batch), device=self.device)
        if drop:
            null = conditioner.null(device=self.device)
            cond = drop_condition(cond, null, probability=drop, generator=generator.fork("drop"))
        return self.objective(network.backbone, z0, cond, generator=generator)

    def _moments(self, batch: Batch) -> Tensor:
        """What the autoencoder says of the batch's images: cached, or computed now."""
        if batch.moments is not None:
            return batch.moments
        assert batch.images is not None
        return self.autoencoder.moments(to_float(batch.images))

    def latent_shape(self, batch: Batch) -> tuple[int, int, int]:
        """(c, h, w) of the latents that stand for a batch."""
        if batch.moments is not None:
            height, width = batch.moments.shape[-2:]
        else:
            assert batch.images is not None
            height, width = (n // self.autoencoder.downsampling for n in batch.images.shape[-2:])
        return self.autoencoder.latent_channels, height, width

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedule = self.optimizer(self.network)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for fused optimisers, which scale gradients themselves under
        # fp16; there is no scaling in bf16 and fp32. Without a limit the norm is still logged.
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        if self.sharded:
            _require_reduced(self.network)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self.log("train/grad_norm", norm)
        # Of the whole global batch, over ranks and gathered gradients alike.
        self.log("train/loss", torch.stack(self._losses).mean(), sync_dist=True)
        self._losses = []
        if self.step_guards:
            refuse_step(optimizer, torch.stack([guard(norm) for guard in self.step_guards]).any())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rfdit"] = self.record
        # The run's own draws are keyed by sample; this is for third parties that use torch's.
        checkpoint["rng"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = zip(checkpoint["optimizer_states"], checkpoint["lr_schedulers"])
        for optimizer_state, schedule_state in states:
            self.optimizer.adopt(optimizer_state, schedule_state)
        self._rng = checkpoint["rng"]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # What Lightning logs as "step". After a checkpoint from the middle of a batch's hooks it would
        # be one off for the rest of the run, and Lightning counts again after on_train_start.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        # Not before: a DataLoader draws from torch's generator when it starts.
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if len(self._rng["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._rng["cuda"])
            self._rng = None


def _require_reduced(network: nn.Module) -> None:
    """Raises RuntimeError if a gradient is this rank's own: ranks would train different weights, silently."""
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            raise RuntimeError(
                f"FSDP has not reduced the gradient of {name}; its module returned no known tensor"
            )
