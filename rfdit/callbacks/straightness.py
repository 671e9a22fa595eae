"""Logs how straight the paths from noise to data are."""

from typing import Any

import lightning as L
import torch

from rfdit.batch import Batch
from rfdit.callbacks.capabilities import flow_module
from rfdit.limits import Index
from rfdit.randomness import SampleGenerator
from rfdit.sampler.guidance import conditional_field
from rfdit.sampler.straightness import straightness


class Straightness(L.Callback):
    """Logs `val/straightness`, S of the evaluated weights under the conditions of the validation data.

    The noise is the same for each sample at every validation. Nothing is guided.
    steps: Euler steps from noise to data, each an evaluation of the network; 0 does not measure it.
    """

    def __init__(self, *, steps: Index = 0) -> None:
        self.steps = steps

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self.steps:
            return
        module = flow_module(pl_module)
        network = module.evaluated_network
        generator = SampleGenerator(seed=module.seed, keys=batch.positions, purpose="straightness")
        z1 = generator.fork("noise").normal(*module.latent_shape(batch))
        bf16 = trainer.precision == "bf16-mixed"
        with torch.no_grad(), torch.autocast(module.device.type, dtype=torch.bfloat16, enabled=bf16):
            conditioner = network.conditioner
            cond = conditioner(conditioner.inputs(batch), device=module.device)
            value = straightness(conditional_field(network.backbone, cond), z1, steps=self.steps).mean()
        pl_module.log("val/straightness", value, batch_size=len(batch), sync_dist=True)
