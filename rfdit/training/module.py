"""The LightningModule, which connects network, autoencoder, objective and optimiser."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from rfdit.autoencoder.contract import Autoencoder
from rfdit.batch import Batch, Condition, Latent
from rfdit.conditioning import Conditioner, drop_condition, keeps_condition
from rfdit.images import to_float
from rfdit.model.acceleration import compile_blocks, use_fp8
from rfdit.model.adapters import Unadapted
from rfdit.model.layers.adaln_operators import warn_without_kernels
from rfdit.model.layers.embeddings import token_grid
from rfdit.model.routing import check_routing, draw_route, routed
from rfdit.model.states import BlockStates
from rfdit.network import Network
from rfdit.objective.needs import ComparesPairs, HasTeacher
from rfdit.objective.validation import TIMES, losses_at_times
from rfdit.protocols import Auxiliary, DropsParts, FlowLoss, Objective, Routing
from rfdit.randomness import SampleGenerator
from rfdit.sampler import Pipeline, Sampler
from rfdit.training.checkpoint_io import check_restored
from rfdit.training.fits import check_conditions, check_pairs, guides_target
from rfdit.training.optim import OptimizerFactory, refuse_step
from rfdit.training.strategy import ShardsNetworks


class FlowModule(L.LightningModule):
    """Trains a `Network` by an objective on an autoencoder's latents.

    seed: determines a sample's noise, time and dropped caption, together with its position in the stream.
    last_loss: the loss of the last training step, for callbacks.
    fp8: compute the blocks' matrix products in FP8, except those of the averages.
    compile_blocks: torch.compile each transformer block, except those of the averages.
    routing: chooses tokens that pass some of the blocks by, in training steps alone.
    record: the `checkpoint_header` of its checkpoints.
    trained_only: for adapters: the checkpoints have only what is trained.
    """

    def __init__(
        self,
        *,
        network: Network,
        autoencoder: Autoencoder,
        objective: Objective,
        optimizer: OptimizerFactory,
        seed: int,
        record: dict[str, Any],
        compile_blocks: bool = False,
        fp8: bool = False,
        trained_only: bool = False,
        routing: Routing | None = None,
    ) -> None:
        super().__init__()
        check_conditions(network.conditioner, objective)
        if routing is not None:
            check_routing(routing, network.backbone, network.auxiliary)
        self.routing = routing
        self.teacher = objective.teacher if isinstance(objective, HasTeacher) else None
        self.network = network
        self._reference = Unadapted(network.backbone) if isinstance(objective, ComparesPairs) else None
        self.autoencoder, self.objective, self.optimizer = autoencoder, objective, optimizer
        self.seed, self.record, self.compile_blocks, self.fp8 = seed, record, compile_blocks, fp8
        self.trained_only, self.strict_loading = trained_only, not trained_only
        self.last_loss: FlowLoss | None = None
        # Each decides from the gradient's norm, before clipping, whether the step is refused.
        self.step_guards: list[Callable[[Tensor], Tensor]] = []
        # Averages of the weights, sharded and saved as the network is; a dict keeps them from being submodules.
        self.averages: dict[str, Network] = {}
        self._configured = False
        self.sharded = False  # every rank holds parts of the networks, and all must use them together
        self._step_at_start = 0  # the global step at the start of the batch
        self._losses: list[FlowLoss] = []  # since the last optimiser step
        self._rng: dict[str, Any] | None = None
        self._evaluated: tuple[Network, ...] = (network,)
        self._states = BlockStates()  # those of the block that the network's auxiliary loss reads

    @property
    def evaluated_network(self) -> Network:
        """The network that validation, grids and metrics use: the first average, if one is kept."""
        return self._evaluated[0]

    def evaluate_with(self, network: Network) -> None:
        """Set the network that is evaluated; a tuple keeps it from being a submodule."""
        self._evaluated = (network,)

    def pipeline(
        self, sampler: Sampler, latent_shape: tuple[int, int, int], *, batch_size: int = 32
    ) -> Pipeline:
        """A pipeline that samples from the evaluated network, in the arithmetic of training."""
        return Pipeline(
            network=self.evaluated_network,
            autoencoder=self.autoencoder,
            sampler=sampler,
            latent_shape=latent_shape,
            device=self.device,
            bf16=self.trainer.precision == "bf16-mixed",
            batch_size=batch_size,
        )

    def configure_model(self) -> None:
        if self._configured:  # Lightning calls it more than once
            return
        self._configured = True
        if self.fp8:
            use_fp8(self.network.backbone)
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardsNetworks):
            for network in (self.network, *self.averages.values()):
                strategy.shard(network)
            self.sharded = True

    def on_fit_start(self) -> None:
        warn_without_kernels(self.device)
        if self.network.auxiliary is not None:
            self._states.of(self.network.backbone, self.network.auxiliary.block)
        if self.compile_blocks:
            compile_blocks(self.network.backbone)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._loss(self.network, batch)
        self.last_loss = loss.detach()
        self._losses.append(self.last_loss)
        return loss.total

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        # For its errors: here reading labels does not wait for a GPU.
        self.network.conditioner.inputs(batch)
        check_pairs(batch, self.objective)
        return batch

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # With a purpose of its own: noise that training never saw, the same at every validation.
        generator = SampleGenerator(seed=self.seed, keys=batch.positions, purpose="validation")
        network = self.evaluated_network
        z0, cond = self._inputs(network, batch, generator)
        losses = losses_at_times(network.backbone, z0, cond, generator=generator).mean(0)
        logged = {"val/loss": losses.mean()} | {f"val/loss_t{t:.2f}": loss for t, loss in zip(TIMES, losses)}
        self.log_dict(logged, batch_size=len(batch), sync_dist=True)

    def _loss(self, network: Network, batch: Batch) -> FlowLoss:
        noise = batch.noise
        recorded = None if noise is None else SampleGenerator(seed=noise[:, 0], keys=noise[:, 1])
        generator = SampleGenerator(seed=self.seed, keys=batch.positions, purpose="train", recorded=recorded)
        z0, cond = self._inputs(network, batch, generator)
        cond, needs = self._dropped(network.conditioner, cond, generator)
        if self.teacher is not None:
            self.teacher.read(batch, device=self.device)
        route = draw_route(self.routing, network.backbone, z0.shape[-2:], generator=generator)
        if self._reference is not None:
            z0, cond = self._pairs(z0, cond, batch, generator)
            route, needs = route and route.repeated(2), {"reference": self._reference}
        with routed(network.backbone, route):
            loss = self.objective(network.backbone, z0, cond, generator=generator, **needs)
        if network.auxiliary is None:
            return loss
        return self._with_auxiliary(network.auxiliary, loss, batch, grid=z0.shape[-2:])

    def _dropped(
        self, conditioner: Conditioner, cond: Condition, generator: SampleGenerator
    ) -> tuple[Condition, dict[str, Any]]:
        """Conditions of which some are dropped, and what an objective that guides its target is to know of that."""
        needs: dict[str, Any] = {}
        if drop := conditioner.drop:
            null, dropping = conditioner.null(device=self.device), generator.fork("drop")
            cond = drop_condition(cond, null, probability=drop, generator=dropping)
            if guides_target(self.objective):
                kept = keeps_condition(probability=drop, generator=dropping)
                needs = {"null": null.expand(len(cond)), "kept": kept}
        # A teacher sees the whole caption, and so must what learns from it.
        if self.teacher is None and isinstance(encoder := conditioner.encoder, DropsParts):
            null = conditioner.null(device=self.device)
            cond = encoder.drop_parts(cond, null, generator=generator.fork("drop_parts"))
        return cond, needs

    def _pairs(
        self, z0: Latent, cond: Condition, batch: Batch, generator: SampleGenerator
    ) -> tuple[Float[Tensor, "twice c h w"], Condition]:
        """Latents and conditions of a batch's images, and then of those that were rejected for them."""
        assert batch.rejected is not None
        moments = self.autoencoder.moments(to_float(batch.rejected))
        rejected = self.autoencoder.from_moments(moments, generator=generator.fork("posterior"))
        return torch.cat([z0, rejected]), Condition.join([cond, cond])

    def _with_auxiliary(
        self, auxiliary: Auxiliary, loss: FlowLoss, batch: Batch, *, grid: Sequence[int]
    ) -> FlowLoss:
        """The loss with the auxiliary one. grid: height and width of the latents."""
        over = auxiliary.is_over(self.trainer.global_step)
        tokens = token_grid(grid, self.network.backbone.patch_size)
        value = auxiliary(self._states.take(), None if over else batch, grid=tokens).mean()
        total = loss.total + auxiliary.coefficient * value
        # Not left out of the parts when it is over: the logger would repeat the last value.
        logged = torch.full_like(value, torch.nan) if over else value
        return replace(loss, total=total, parts={**loss.parts, "matching": loss.total, "auxiliary": logged})

    def _inputs(self, network: Network, batch: Batch, generator: SampleGenerator) -> tuple[Latent, Condition]:
        """Clean latents and conditions of a batch."""
        z0 = self.autoencoder.from_moments(self._moments(batch), generator=generator.fork("posterior"))
        return z0, network.conditioner(network.conditioner.inputs(batch), device=self.device)

    def _moments(self, batch: Batch) -> Tensor:
        """The autoencoder's moments of the batch's images: cached, or computed now."""
        if batch.moments is not None:
            return batch.moments
        assert batch.images is not None
        return self.autoencoder.moments(to_float(batch.images))

    def latent_shape(self, batch: Batch) -> tuple[int, int, int]:
        """(c, h, w) of the latents of a batch."""
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
        # Losses of the whole global batch, over ranks and accumulated gradients alike.
        for name in ("loss", *self._losses[0].parts):
            values = [loss.total if name == "loss" else loss.parts[name] for loss in self._losses]
            self.log(f"train/{name}", torch.stack(values).mean(), sync_dist=True)
        self._losses = []
        if self.step_guards:
            refuse_step(optimizer, torch.stack([guard(norm) for guard in self.step_guards]).any())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rfdit"] = self.record
        if self.trained_only:
            kept, state = self._trained_names(), checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: state[name] for name in state if name in kept}
        # The run's own draws are keyed by sample; this is for other packages that use torch's generator.
        checkpoint["rng"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def _trained_names(self) -> set[str]:
        return {f"network.{name}" for name, p in self.network.named_parameters() if p.requires_grad}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trained_only and checkpoint["state_dict"].keys() != self._trained_names():
            raise ValueError("its tensors are not those of this run's adapters")
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
        steps = progress["optimizer"]["step"]["total"]["completed"]
        if steps != checkpoint["global_step"]:
            raise ValueError(f"its loops have done {steps} steps, and the run {checkpoint['global_step']}")
        states = zip(checkpoint["optimizer_states"], checkpoint["lr_schedulers"])
        for optimizer_state, schedule_state in states:
            self.optimizer.adopt(optimizer_state, schedule_state)
        self._rng = checkpoint["rng"]
        torch.Generator().set_state(self._rng["cpu"])  # raises an error for other data

    def on_train_start(self) -> None:
        try:
            for optimizer in self.trainer.optimizers:
                check_restored(optimizer)
        except ValueError as error:
            raise ValueError(f"ckpt={self.trainer.ckpt_path} is damaged: {error}") from None

    @property
    def stepped(self) -> bool:
        """True at the end of a batch with an optimiser step, False if its gradients are only accumulated."""
        return self.trainer.global_step != self._step_at_start

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._step_at_start = self.trainer.global_step
        # Lightning logs this as "step". After a checkpoint from the middle of a batch's hooks it would be one
        # off for the rest of the run, and Lightning counts again after on_train_start.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        # Not before: a DataLoader draws from torch's generator when it starts.
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if len(self._rng["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._rng["cuda"])
            self._rng = None


def _require_reduced(network: nn.Module) -> None:
    """Raises RuntimeError for a gradient that was not reduced: ranks would silently train different weights."""
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            raise RuntimeError(
                f"FSDP has not reduced the gradient of {name}; its module did not return a tensor that FSDP knows"
            )
