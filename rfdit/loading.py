"""A trained model, ready to make pictures: `rfdit.load`."""

import copy
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rfdit.config import build
from rfdit.grid import to_pil
from rfdit.interchange.folder import travelling
from rfdit.interchange.source import open_model
from rfdit.sample import load_pipeline
from rfdit.sampler import ClassifierFree, NoGuidance, Pipeline, Sampler, Solver
from rfdit.sampler.guidance import with_scale
from rfdit.training.checkpoint import SavedRun
from rfdit.trusted import check_targets


class Model:
    """Pictures from captions or class labels.

    saved: what was loaded. pipeline: what makes the pictures; its sampler has the settings with which
    training looked at its own pictures, and a call's arguments stand in for them.
    """

    def __init__(self, *, saved: SavedRun, pipeline: Pipeline) -> None:
        self.saved, self.pipeline = saved, pipeline
        self.knows_labels = "num_classes" in saved.config["conditioner"]

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
        """One picture per caption or label, of which one or several are given.

        seed, first_key: picture i starts from the noise of (seed, first_key + i), as in sample.py.
        guidance_scale: of the run's own guidance, or of the one inside its interval; plain guidance where
            it had none. The other arguments are those of `Sampler` and `Pipeline`.
        Raises ValueError for captions where the model knows labels, and the other way round.
        """
        wanted: Any = [inputs] if isinstance(inputs, str | int) else list(inputs)
        self._check(wanted, negative)
        pipeline = copy.copy(self.pipeline)
        pipeline.sampler = self._sampler(steps=steps, shift=shift, guidance_scale=guidance_scale)
        if solver is not None:
            pipeline.sampler.solver = solver
        return [
            to_pil(image) for image in pipeline(wanted, seed=seed, first_key=first_key, negative=negative)
        ]

    def _sampler(self, *, steps: int | None, shift: float | None, guidance_scale: float | None) -> Sampler:
        """The run's own, with other settings where they are given."""
        node = dict(self.saved.config["sampler"])
        node |= {name: x for name, x in (("steps", steps), ("shift", shift)) if x is not None}
        sampler: Sampler = build(node)
        if guidance_scale is not None:
            unguided = isinstance(sampler.guidance, NoGuidance)
            guidance = ClassifierFree(scale=1.0) if unguided else sampler.guidance
            sampler.guidance = with_scale(guidance, guidance_scale)
        return sampler

    def _check(self, inputs: Sequence[str | int], negative: str | None) -> None:
        if not inputs:
            raise ValueError("inputs=[] names nothing; give a caption or a class label, or several")
        kind, kinds = (int, "class labels") if self.knows_labels else (str, "captions")
        if not all(isinstance(item, kind) for item in inputs) or (self.knows_labels and negative is not None):
            given = f"negative={negative!r}" if negative is not None else f"inputs={inputs}"
            raise ValueError(f"{self.saved.path} was trained on {kinds}; {given} is something else")


def load(
    source: str | Path,
    *,
    weights: str | None = None,
    accelerator: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    autoencoder: str | None = None,
    text_encoder: str | None = None,
    revision: str | None = None,
    packages: Collection[str] = ("rfdit",),
) -> Model:
    """The model in a run folder, a .ckpt file, an exported folder, or a hub repository `owner/name`.

    weights: as of sample.py; the average if there is one, by default.
    accelerator, precision, batch_size: as of sample.py.
    autoencoder, text_encoder: where their weights are, if not where training found them.
    revision: of a hub repository: a branch, tag or commit.
    packages: whose classes the model's configuration may name.

    No pickle is run, and of a hub repository only safetensors and JSON are even downloaded.
    Raises ValueError or OSError with one sentence if there is no such model.
    """
    saved = open_model(source, revision)
    check_targets(travelling(saved.config), packages)  # nothing else of it is built
    settings = {
        "sampler": saved.config["sampler"],
        "weights": weights or ("ema" if saved.ema else "raw"),
        "accelerator": accelerator,
        "precision": precision,
        "batch_size": batch_size,
        "autoencoder": {"source": autoencoder},
        "text_encoder": {"source": text_encoder},
        "packages": list(packages),
    }
    return Model(saved=saved, pipeline=load_pipeline(saved, settings))
