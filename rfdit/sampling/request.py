"""Which pictures are asked for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rfdit.sampler import Solver, StochasticSolver


@dataclass(frozen=True, slots=True)
class Toward:
    """Where an interpolated picture leads to, and how far along it is, from 0 to 1."""

    given: str | int
    seed: int
    weight: float


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to make.

    given: its prompt or class label. caption: what is written below it.
    seed, key: its noise. scale: of guidance; None for the sampler's own.
    """

    given: str | int
    caption: str
    seed: int
    key: int
    scale: float | None = None
    toward: Toward | None = None

    @property
    def kind(self) -> tuple[float | None, int, int]:
        """Scale and seeds; a batch has pictures of one kind."""
        return self.scale, self.seed, self.seed if self.toward is None else self.toward.seed

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a record; what is not set is left out."""
        values = {"input": self.given, "caption": self.caption, "seed": self.seed, "key": self.key}
        extra = {"scale": self.scale, "toward": self.toward and asdict(self.toward)}
        return values | {name: value for name, value in extra.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Pictures, and how a sheet shows them.

    rows, columns: the labels of a table of pictures; without them each has its caption.
    width: how many captioned pictures in a row; None for about a square.
    needs_ode: why no stochastic solver can make them; empty if one can.
    """

    pictures: Sequence[Picture]
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    width: int | None = None
    needs_ode: str = ""

    def check_solver(self, solver: Solver | StochasticSolver) -> None:
        """Raises ValueError for a stochastic solver where the pictures need an ODE's."""
        if self.needs_ode and isinstance(solver, StochasticSolver):
            name = type(solver).__name__
            raise ValueError(
                f"sampler.solver={name} draws noise in every step, and {self.needs_ode}; use sampler=euler or heun"
            )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The settings of `sample.yaml` that say what to make; they are described there.

    inputs: prompts or class labels. captions: what is written below pictures of each.

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
        for name, values in (("seeds", self.seeds), ("scales", self.scales)):
            if values is None:
                continue
            if not values:
                raise ValueError(f"{name}=[] is empty; give {name}=[1,2], or null")
            if self.count != 1 or self.total is not None:
                raise ValueError(f"count and total do not go with {name}; give more seeds instead")

    def request(self) -> Request:
        """A plain list, a matrix of prompts x seeds x scales, or prompts with a seed and a scale each."""
        if self.seeds is None and self.scales is None:
            return Request(pictures=self._listed(), width=self.columns)
        return self._matrix() if self.matrix else self._paired()

    def _listed(self) -> list[Picture]:
        n = len(self.inputs)
        total = n * self.count if self.total is None else self.total
        # Evenly: no input has two pictures more than another.
        places = (i * n // total for i in range(total))
        return [
            Picture(self.inputs[k], self.captions[k], self.seed, self.first_key + i)
            for i, k in enumerate(places)
        ]

    def _matrix(self) -> Request:
        """A row for each prompt, or prompt and seed; a column for each scale, or seed if there are no scales.

        All pictures of a seed start from the same noise, so that they differ by prompt and scale alone.
        """
        if self.columns is not None:
            raise ValueError(f"columns={self.columns} does not go with a matrix, whose columns are its own")
        for name, values in (("seeds", self.seeds), ("scales", self.scales)):
            if len(set(values or ())) < len(values or ()):
                raise ValueError(f"{name}={list(values or ())} has an entry twice; a matrix needs each once")
        seeds: Sequence[int] = self.seeds or [self.seed]
        scales: Sequence[float | None] = self.scales or [None]
        inputs = list(zip(self.inputs, self.captions))
        pictures = [
            Picture(given, caption, seed, self.first_key, scale)
            for (given, caption), seed, scale in product(inputs, seeds, scales)
        ]
        if self.scales is None:
            return Request(pictures=pictures, rows=self.captions, columns=[f"seed {s}" for s in seeds])
        rows = [
            caption if self.seeds is None else f"{caption}, seed {s}"
            for caption, s in product(self.captions, seeds)
        ]
        return Request(pictures=pictures, rows=rows, columns=[f"scale {s:g}" for s in self.scales])

    def _paired(self) -> Request:
        n = len(self.inputs)
        for name, values in (("seeds", self.seeds), ("scales", self.scales)):
            if values is not None and len(values) != n:
                raise ValueError(
                    f"{name} has {len(values)} entries for {n} prompts or labels; with matrix=false give one for "
                    "each, or matrix=true for every combination"
                )
        seeds = self.seeds or [self.seed] * n
        scales: Sequence[float | None] = self.scales or [None] * n
        return Request(
            pictures=[
                # With a seed of its own, a picture's noise does not depend on its place.
                Picture(
                    given,
                    caption + (f" ({scale:g})" if scale is not None else ""),
                    seed,
                    self.first_key + (0 if self.seeds else i),
                    scale,
                )
                for i, (given, caption, seed, scale) in enumerate(
                    zip(self.inputs, self.captions, seeds, scales)
                )
            ],
            width=self.columns,
        )


def read_prompts(prompts: Any) -> list[str]:
    """Prompts inline, or from a text file with one per line; raises ValueError if there are none."""
    if isinstance(prompts, str):
        path = Path(prompts)
        if not path.is_file():
            raise ValueError(
                f"prompts={prompts} is no file; for one prompt inline write 'prompts=[{prompts}]'"
            )
        return _prompts_in(path)
    if not (isinstance(prompts, list) and prompts):
        raise ValueError(f"prompts={prompts} names no prompt; give a list, or a text file with one per line")
    return [str(prompt) for prompt in prompts]


def _prompts_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"prompts={path} is no text in UTF-8; give a text file with one per line") from None
    if found := [line.strip() for line in lines if line.strip()]:
        return found
    raise ValueError(f"prompts={path} names no prompt; it needs one per line")
