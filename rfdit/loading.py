"""A trained model, ready to generate images: `rfdit.load`."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from rfdit.checkpoint.registry import check_saved
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.build import build
from rfdit.cost.count import count_parameters
from rfdit.generate.load import BUILT, PipelineSettings, load_pipeline
from rfdit.image_grid import to_pil
from rfdit.interchange.source import open_model, with_sources
from rfdit.protocols import class_name
from rfdit.sampler import Pipeline, Sampler, Solver
from rfdit.sampler.guidance import Unscaled, with_scale
from rfdit.storage.untrusted import explained


class Model:
    """Images from captions or class labels.

    saved: the checkpoint or folder. pipeline: its network, autoencoder and sampler; the sampler has the
    settings with which training sampled its own images, and a call's arguments replace them.
    """

    def __init__(self, *, saved: SavedRun, pipeline: Pipeline) -> None:
        self.saved, self.pipeline = saved, pipeline
        self.knows_labels = saved.knows_labels

    def __repr__(self) -> str:
        """`Model(MMDiT of 8,214,531 parameters, captions to 32x32 images, step 1,400 of outputs/demo)`."""
        network = self.pipeline.network
        down = self.pipeline.autoencoder.downsampling
        _, *sides = self.pipeline.latent_shape
        size = "x".join(str(side * down) for side in sides)
        inputs = f"{self.saved.num_classes} classes" if self.knows_labels else "captions"
        kind = f"{class_name(network.backbone)} of {count_parameters(network):,} parameters"
        return (
            f"Model({kind}, {inputs} to {size} images, step {self.saved.step:,} of {self.saved.run_folder})"
        )

    def __call__(
        self,
        inputs: str | int | Sequence[str] | Sequence[int],
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        solver: Solver | None = None,
        shift: float | None = None,
        seed: int = 0,
        first_key: int = 0,
        negative: str | None = None,
    ) -> list[Image.Image]:
        """Generates one image for each of one or several captions or labels.

        seed, first_key: image i starts from the noise of (seed, first_key + i), as in sample.py.
        guidance_scale: scale of the run's own guidance, or of the one inside its interval, or of
            classifier-free guidance if it had none. The other arguments are those of `Sampler` and `Pipeline`.
        Raises ValueError for captions if the model was trained on labels, and the other way round.
        """
        several: Any = [inputs] if isinstance(inputs, str | int) else list(inputs)
        self._check(several, negative)
        sampler = self._sampler(steps=steps, shift=shift, guidance_scale=guidance_scale)
        if solver is not None:
            sampler.solver = solver
        pipeline = self.pipeline.with_sampler(sampler)
        images = pipeline(several, seed=seed, first_key=first_key, negative=negative)
        return [to_pil(image) for image in images]

    def _sampler(self, *, steps: int | None, shift: float | None, guidance_scale: float | None) -> Sampler:
        """The run's own sampler, with other settings where they are given."""
        node = dict(self.saved.config["sampler"])
        node |= {name: x for name, x in (("steps", steps), ("shift", shift)) if x is not None}
        sampler: Sampler = build(node)
        if guidance_scale is not None:
            own = sampler.guidance
            sampler.guidance = (
                own.scaled(guidance_scale) if isinstance(own, Unscaled) else with_scale(own, guidance_scale)
            )
        return sampler

    def _check(self, inputs: Sequence[str | int], negative: str | None) -> None:
        if not inputs:
            raise ValueError("inputs=[] is empty; give a caption or a class label, or several")
        kind, kinds = (int, "class labels") if self.knows_labels else (str, "captions")
        if not all(isinstance(item, kind) for item in inputs) or (self.knows_labels and negative is not None):
            given = f"negative={negative!r}" if negative is not None else f"inputs={inputs}"
            raise ValueError(f"{self.saved.path} was trained on {kinds}; {given} is not one of them")


def load(
    source: str | Path,
    *,
    weights: str | None = None,
    accelerator: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    autoencoder: str | None = None,
    text_encoder: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    packages: Collection[str] = (),
    micro: Mapping[str, float] = MappingProxyType({}),
) -> Model:
    """Loads the model of a run folder, a .ckpt file, an exported folder, or a hub repository `owner/name`.

    weights: as for sample.py; the average if there is one, by default.
    accelerator, precision, batch_size: as for sample.py.
    autoencoder, text_encoder: locations of their weights, if not those that training used.
    base: where the base of a run of adapters is, if it is not where training found it.
    revision: a branch, tag or commit of a hub repository.
    packages: those of your own whose classes the model's configuration may name.
    micro: numbers of micro-conditioning by name, in place of the model's defaults.

    No pickle is executed, and only safetensors and JSON are downloaded from a hub repository.
    Raises ValueError or OSError with one sentence if there is no such model.
    """
    saved = open_model(source, revision, base=base, packages=packages)
    saved = with_sources(saved, autoencoder=autoencoder, text_encoder=text_encoder)
    check_saved(saved, (*BUILT, "sampler"), packages)  # only these parts are built
    with explained(f"{saved.path} cannot be built"):
        settings = PipelineSettings(
            sampler=build(saved.config["sampler"]),
            weights=weights or ("ema" if saved.ema else "raw"),
            accelerator=accelerator,
            precision=precision,
            batch_size=batch_size,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            packages=packages,
            micro=micro,
        )
        return Model(saved=saved, pipeline=load_pipeline(saved, settings))
