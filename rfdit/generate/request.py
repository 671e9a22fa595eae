"""Requests for images: from prompts or labels, seeds and scales to one specification per image."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rfdit.checkpoint.saved_run import SavedRun
from rfdit.config.overrides import quoted
from rfdit.counted import counted
from rfdit.generate.classes import captions, class_names, read_labels
from rfdit.sampler import Solver, StochasticSolver
from rfdit.storage.text import read_text, text_lines


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The far end of an interpolation; weight: how near to it an image is, from 0 to 1."""

    input: str | int
    seed: int
    weight: float


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image to generate.

    input: its prompt or class label. caption: the text below it on a sheet.
    seed, key: those of its noise. scale: the guidance scale; None is the sampler's own.
    """

    input: str | int
    caption: str
    seed: int
    key: int
    scale: float | None = None
    toward: Endpoint | None = None

    @property
    def kind(self) -> tuple[float | None, int, int]:
        """Scale and seeds, which all images of a batch share."""
        return self.scale, self.seed, self.seed if self.toward is None else self.toward.seed

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a record, without what is not set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


Specs = Sequence[ImageSpec]


@dataclass(frozen=True, kw_only=True)
class ContactSheet:
    """The images to generate, and how one sheet lays them out.

    rows, columns: the labels of a table of images; without them each image has its caption.
    width: captioned images in a row; None makes the sheet about square.
    needs_ode: the reason why no stochastic solver can generate them; empty if one can.
    """

    specs: Specs
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    width: int | None = None
    needs_ode: str = ""

    def check_solver(self, solver: Solver | StochasticSolver) -> None:
        """Raises ValueError for a stochastic solver where the images need an ODE's."""
        if self.needs_ode and isinstance(solver, StochasticSolver):
            name = type(solver).__name__
            raise ValueError(
                f"sampler.solver={name} draws noise in every step, and {self.needs_ode}; use sampler=euler or heun"
            )


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """The settings of `sample.yaml` that specify the images to generate; they are described there.

    inputs: prompts or class labels. captions: the text below images of each.

    Raises ValueError for settings that contradict each other.
    """

    inputs: Sequence[str | int]
    captions: Sequence[str]
    seed: int = 0
    first_key: int = 0
    count: int = 1
    total: int | None = None
    seeds: Sequence[int] | None = None
    scales: Sequence[float] | None = None
    matrix: bool = True
    columns: int | None = None

    def __post_init__(self) -> None:
        for name, n in (("count", self.count), ("total", self.total), ("columns", self.columns)):
            if n is not None and n < 1:
                raise ValueError(f"{name}={n} must be at least 1")
        if self.total is not None and self.count != 1:
            raise ValueError(f"total={self.total} and count={self.count} are both set; give one of them")
        for name, values in self._lists():
            if not values:
                raise ValueError(f"{name}=[] is empty; give {name}=[1,2], or null")
            if self.count != 1 or self.total is not None:
                raise ValueError(f"count and total do not go with {name}; give more seeds instead")

    def sheet(self) -> ContactSheet:
        """A plain list, a matrix of prompts x seeds x scales, or prompts with a seed and a scale each."""
        if self.seeds is None and self.scales is None:
            return self._list()
        return self._matrix() if self.matrix else self._pairs()

    def _lists(self) -> list[tuple[str, Sequence[float]]]:
        lists = (("seeds", self.seeds), ("scales", self.scales))
        return [(name, values) for name, values in lists if values is not None]

    def _list(self) -> ContactSheet:
        n = len(self.inputs)
        total = n * self.count if self.total is None else self.total
        inputs = [i * n // total for i in range(total)]  # evenly: counts differ by one at most
        return ContactSheet(
            specs=[
                ImageSpec(self.inputs[k], self.captions[k], self.seed, self.first_key + i)
                for i, k in enumerate(inputs)
            ],
            width=self.columns,
        )

    def _matrix(self) -> ContactSheet:
        """A row for each prompt, or prompt and seed; a column for each scale, or seed if there are no scales.

        All images of a seed start from the same noise, so that they differ by prompt and scale alone.
        """
        if self.columns is not None:
            raise ValueError(f"columns={self.columns} does not go with a matrix, whose columns are its own")
        for name, values in self._lists():
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} has an entry twice; a matrix needs each once")
        seeds: Sequence[int] = self.seeds or [self.seed]
        scales: Sequence[float | None] = self.scales or [None]
        specs = [
            ImageSpec(input, caption, seed, self.first_key, scale)
            for (input, caption), seed, scale in product(zip(self.inputs, self.captions), seeds, scales)
        ]
        if self.scales is None:
            return ContactSheet(specs=specs, rows=self.captions, columns=[f"seed {s}" for s in seeds])
        rows = self.captions
        if self.seeds is not None:
            rows = [f"{caption}, seed {s}" for caption, s in product(self.captions, seeds)]
        return ContactSheet(specs=specs, rows=rows, columns=[f"scale {s:g}" for s in self.scales])

    def _pairs(self) -> ContactSheet:
        n = len(self.inputs)
        for name, values in self._lists():
            if len(values) != n:
                given = counted(len(values), "entry", "entries")
                wanted = counted(n, "prompt or label", "prompts or labels")
                raise ValueError(
                    f"{name} has {given} for {wanted}; with matrix=false give one for each, "
                    "or matrix=true for every combination"
                )
        # With a seed of its own, an image's noise does not depend on its place in the list.
        seeds, keys = self.seeds or [self.seed] * n, [0] * n if self.seeds else range(n)
        scales: Sequence[float | None] = self.scales or [None] * n
        captions = [
            caption if scale is None else f"{caption} ({scale:g})"
            for caption, scale in zip(self.captions, scales)
        ]
        return ContactSheet(
            specs=[
                ImageSpec(input, caption, seed, self.first_key + key, scale)
                for input, caption, seed, key, scale in zip(self.inputs, captions, seeds, keys, scales)
            ],
            width=self.columns,
        )


def read_prompts(prompts: Any) -> list[str]:
    """Prompts from a list, or from a text file with one per line.

    Raises ValueError if there are none, and for an entry of the list that is not text: `null`, a list, or 1.10,
    which arrives here as the number 1.1. Whole numbers are taken as text.
    """
    if isinstance(prompts, str):
        if not Path(prompts).expanduser().is_file():
            inline = shlex.quote(f"prompts=[{quoted(prompts)}]")
            raise ValueError(f"prompts={prompts} is not a file; for one prompt inline write {inline}")
        wanted = "a text file with one prompt per line"
        prompts = text_lines(read_text(prompts, setting="prompts", wanted=wanted)) or prompts
    if not (isinstance(prompts, list) and prompts):
        raise ValueError(f"prompts={prompts} has no prompt; give a list, or a text file with one per line")
    for prompt in prompts:
        if type(prompt) not in (str, int):
            raise ValueError(
                f"prompts has the entry {json.dumps(prompt)}, which is not text; put quotation marks around a "
                """prompt that reads like null, true, a list or a number: 'prompts=["1.10"]'"""
            )
    return [str(prompt) for prompt in prompts]


def read_request(saved: SavedRun, config: Mapping[str, Any]) -> SampleRequest | None:
    """The request in a validated `sample.yaml`; None if it has neither prompts nor labels.

    Raises ValueError for prompts or labels that the model was not trained with.
    """
    prompts, labels = config["prompts"], config["labels"]
    if prompts is not None and labels is not None:
        raise ValueError("prompts and labels are both set; give the one that the model was trained with")
    if saved.knows_labels and (prompts is not None or config["negative"] is not None):
        raise ValueError(f"ckpt={saved.path} was trained on class labels; give labels=[0,1] and no prompts")
    if not saved.knows_labels and labels is not None:
        raise ValueError(f"ckpt={saved.path} was trained on captions; give 'prompts=[...]' and no labels")
    inputs: list[str] | list[int]
    if prompts is not None:
        inputs = shown = read_prompts(prompts)
    elif labels is not None:
        assert saved.num_classes is not None
        names = class_names(saved, config["class_names"])
        inputs = read_labels(labels, num_classes=saved.num_classes, names=names)
        shown = captions(inputs, names)
    else:
        return None
    rest = ("seed", "first_key", "count", "total", "seeds", "scales", "matrix", "columns")
    return SampleRequest(inputs=inputs, captions=shown, **{name: config[name] for name in rest})
