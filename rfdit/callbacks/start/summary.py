"""A summary before the first step of a run: data, model, device, batch, and where everything goes."""

import math

import lightning as L
import torch

from rfdit.callbacks.capabilities import DescribesData, MonitorsMetric, callbacks_of, flow_module
from rfdit.callbacks.start.traps import Start, traps
from rfdit.cost.count import count_macs, count_parameters, weightless
from rfdit.counted import counted
from rfdit.data.skips import listed
from rfdit.data.stream.description import DataDescription
from rfdit.device import device_in_words
from rfdit.model.layers.embeddings import token_grid
from rfdit.protocols import Backbone, RemarksOnSize, class_name

PRECISIONS = {"bf16-mixed": "bf16 mixed precision", "32-true": "fp32"}


class StartSummary(L.Callback):
    """Prints a summary when the data is open and the model is on its device, and a warning for each of `traps`.

    folder: that of the run. A data module of another kind than rfdit's is left out, and so is what depends on it.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = folder
        self._backbone: Backbone | None = None
        self._parameters, self._trained = 0, 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":  # before a strategy shards the network
            network = flow_module(pl_module).network
            self._backbone, self._parameters = weightless(network.backbone), count_parameters(network)
            self._trained = count_parameters(network, trainable=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, data = flow_module(pl_module), trainer.datamodule  # type: ignore[attr-defined]
        with torch.no_grad():  # on all ranks together: each may hold only a part of it
            null = module.network.conditioner.null(device=module.device)
        if not trainer.is_global_zero:
            return
        assert self._backbone is not None
        about = data.describe() if isinstance(data, DescribesData) else None
        model = f"{class_name(self._backbone)}, {self._parameters:,} parameters"
        if 2 * self._trained < self._parameters:
            model += f", of which {self._trained:,} are trained"
        if isinstance(self._backbone, RemarksOnSize):
            model += f" ({self._backbone.size_remark})"
        tokens = None
        if about is not None:
            downsampling, channels = module.autoencoder.downsampling, module.autoencoder.latent_channels
            latent = (about.size[0] // downsampling, about.size[1] // downsampling)
            tokens = math.prod(token_grid(latent, self._backbone.patch_size))
            macs = count_macs(self._backbone, (channels, *latent), null)
            model += f"; an image has {counted(tokens, 'token')} and takes {macs / 1e9:.3g} GMACs"
        devices, gradients = trainer.world_size, trainer.accumulate_grad_batches
        precision = PRECISIONS.get(str(trainer.precision), str(trainer.precision))
        lines = [
            ("data", _data(about, devices * gradients)),
            ("model", model),
            ("device", f"{device_in_words(module.device, devices)}, {'FP8 in ' * module.fp8}{precision}"),
            ("batch", _batch(about, devices, gradients)),
            ("training", f"in {self.folder} {_steps(trainer)}; checkpoints, metrics and images go there"),
        ]
        start = Start(
            data=about,
            tokens=tokens,
            downsampling=module.autoencoder.downsampling,
            reads_captions=module.network.conditioner.encoder is not None,
            batch=0 if about is None else about.batch_size * devices * gradients,
            monitors=[
                each.monitor for each in callbacks_of(trainer, MonitorsMetric) if each.monitor is not None
            ],
            validates=bool(trainer.limit_val_batches),
        )
        print("\n".join(f"{name:<9} {text}" for name, text in lines if text is not None), flush=True)
        for sentence in traps(start):
            print(f"warning: {sentence}", flush=True)


def _data(about: DataDescription | None, batches: int) -> str | None:
    if about is None:
        return None
    text = f"{counted(about.samples, 'sample')}"
    if about.epoch is not None:
        steps = math.ceil(about.epoch / (batches * about.batch_size))
        text += f", an epoch of {counted(steps, 'step')}"
    if about.left_out:
        text += f"; left out: {listed(about.left_out)}"
    val = "no validation" if about.val_samples is None else f"validation on {about.val_samples:,}"
    return f"{text}; {val}"


def _batch(about: DataDescription | None, devices: int, gradients: int) -> str | None:
    if about is None:
        return None
    factors = [(devices, "devices"), (gradients, "accumulated")]
    times = "".join(f" x {n} {what}" for n, what in factors if n > 1)
    whole = about.batch_size * devices * gradients
    return f"{counted(whole, 'image')} a step" + (f" ({about.batch_size}{times})" if times else "")


def _steps(trainer: L.Trainer) -> str:
    end = f" to {trainer.max_steps:,}" if trainer.max_steps > 0 else ""
    return f"from step {trainer.global_step:,}{end}"
