"""Conditioners: class labels or captions to a `Condition`, the null condition, and the drop per sample."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from rfdit.batch import Batch, Condition
from rfdit.counted import counted
from rfdit.limits import Count, Fraction
from rfdit.micro import FEATURES, Fields, check_fields, fourier_features, sampled_values
from rfdit.protocols import TextEncoder, Truncates
from rfdit.randomness import SampleGenerator

# Captions, class labels, or a cached condition.
Plain = Sequence[str] | Sequence[int] | Int[Tensor, "b"] | Condition


@dataclass(frozen=True)
class WithMicro:
    """Inputs of a conditioner with the numbers of micro-conditioning of each sample."""

    inputs: Plain
    values: Float[Tensor, "b n"]


Inputs = Plain | WithMicro

ENDS_SHOWN = 3  # ends of captions that a sentence lists
END_SHOWN = 120  # characters of each


@runtime_checkable
class Conditioner(Protocol):
    """An `nn.Module` that turns labels or captions into the condition that the network reads.

    drop: the probability with which training replaces a sample's condition by the null one.
    """

    drop: float

    @property
    def num_classes(self) -> int | None:
        """The number of classes that it takes; None for captions."""
        ...

    @property
    def encoder(self) -> TextEncoder | None:
        """The encoder of its captions; None for class labels."""
        ...

    def __call__(self, inputs: Inputs, *, device: torch.device) -> Condition: ...

    def inputs(self, batch: Batch) -> Inputs:
        """The labels, captions or cached features of a batch; raises ValueError if it has none."""
        ...

    def null(self, *, device: torch.device) -> Condition:
        """The null condition, one row."""
        ...


@runtime_checkable
class TakesClassesByName(Protocol):
    """A conditioner with a table of classes."""

    def from_classes(
        self, table: Float[Tensor, "n d"], there: Sequence[str], here: Sequence[str]
    ) -> Float[Tensor, "m d"]:
        """Its own table with the rows of the classes of a table that have the same names, and its null row.

        there, here: the names of the classes of `table`, and of its own, by number.
        """
        ...


# As for `rfdit.protocols.Backbone`: `isinstance` may not find an encoder, which is a submodule.
Conditioner.register(nn.Module)  # type: ignore[attr-defined]


class MicroEmbedding(nn.Module):
    """Numbers about an image, added to the pooled vector, and with it to the time vector (SDXL, sec. 2.2).

    Fourier features of each number, through two layers, of which the last begins at zero: a model starts as it is
    without them. The null condition has none of them.

    fields: see `rfdit.micro`. width: of the pooled vector.
    given, image_size: numbers by name in place of the fields' own, and (height, width) of the images, in sampling.
    """

    def __init__(self, fields: Fields, *, width: int) -> None:
        super().__init__()
        check_fields(fields)
        self.fields = dict(fields)
        self.given: Mapping[str, float] = {}
        self.image_size: tuple[int, int] | None = None
        self.first = nn.Linear(FEATURES * len(fields), width)
        self.second = nn.Linear(width, width)
        nn.init.normal_(self.first.weight, std=0.02)
        nn.init.zeros_(self.first.bias)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, values: Float[Tensor, "b n"]) -> Float[Tensor, "b p"]:
        return self.second(F.silu(self.first(fourier_features(values))))

    def add(self, cond: Condition, values: Tensor | None) -> Condition:
        """The conditions with the numbers of their images, those of sampling if there are none."""
        if values is None:
            sampled = sampled_values(self.fields, self.given, self.image_size)
            values = torch.tensor(sampled).expand(len(cond), -1)
        return replace(cond, pooled=cond.pooled + self(values.to(cond.pooled.device)))


@runtime_checkable
class HasMicro(Protocol):
    """A conditioner that may have micro-conditioning."""

    def micro_embedding(self) -> MicroEmbedding | None:
        """The numbers about images that it adds; None without them."""
        ...


def _parts(inputs: Inputs) -> tuple[Plain, Tensor | None]:
    """(inputs, numbers of micro-conditioning, if they come with them)."""
    return (inputs.inputs, inputs.values) if isinstance(inputs, WithMicro) else (inputs, None)


def _micro_of(batch: Batch) -> Tensor:
    if batch.micro is None:
        raise ValueError(
            "conditioner.micro is set, and the data gives no numbers; set data.decoder.micro to the same fields"
        )
    return batch.micro


def sample_with(conditioner: object, given: Mapping[str, float]) -> None:
    """Set the numbers of micro-conditioning with which images are sampled.

    Raises ValueError for names that are not those of the model's fields.
    """
    micro = conditioner.micro_embedding() if isinstance(conditioner, HasMicro) else None
    if micro is not None:
        sampled_values(micro.fields, given, (1, 1))
        micro.given = dict(given)
    elif given:
        raise ValueError(
            f"micro.{next(iter(given))} has no effect: the model was trained without micro-conditioning"
        )


class LabelConditioner(nn.Module):
    """An embedding table with one row per class and a last one for "no class".

    Shapes: labels (b,) -> pooled (b, width).
    width: the model's, since a label embedding is added to the time embedding as it is.
    Raises ValueError for labels outside 0 to num_classes - 1.
    """

    encoder = None

    def __init__(
        self, *, num_classes: Count, width: Count, drop: Fraction = 0.1, micro: Fields | None = None
    ) -> None:
        super().__init__()
        self.num_classes, self.drop = num_classes, check_probability(drop)
        self.table = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.micro = None if micro is None else MicroEmbedding(micro, width=width)

    def forward(self, inputs: Sequence[int] | Tensor | WithMicro, *, device: torch.device) -> Condition:
        given, values = _parts(inputs)
        labels = torch.as_tensor(given)
        if (wrong := self._wrong(labels)) is not None:
            raise ValueError(
                f"class labels must be 0 to {self.num_classes - 1} "
                f"(conditioner.num_classes={self.num_classes}), not {labels[wrong].item()}"
            )
        # Without the last row, so that a label which is one too large fails on a GPU, too.
        cond = Condition(pooled=F.embedding(labels.to(device), self.table.weight[: self.num_classes]))
        return cond if self.micro is None else self.micro.add(cond, values)

    def inputs(self, batch: Batch) -> Tensor | WithMicro:
        """The labels; raises ValueError, naming a sample, for wrong ones that are not on a GPU yet."""
        if batch.labels is None:
            raise ValueError(
                "conditioner=labels needs class labels, and the data has none; set data.decoder.label_key"
            )
        if (wrong := self._wrong(batch.labels)) is not None:
            sample = f"sample {batch.keys[wrong]}" if batch.keys else "a sample"
            raise ValueError(
                f"data.shards: {sample} has the class {batch.labels[wrong].item()}, and classes are 0 to "
                f"{self.num_classes - 1} (conditioner.num_classes={self.num_classes})"
            )
        return batch.labels if self.micro is None else WithMicro(batch.labels, _micro_of(batch))

    def _wrong(self, labels: Tensor) -> int | None:
        """The index of the first label that is not a class; None for labels on a GPU, as reading waits for it."""
        if labels.is_cuda:
            return None
        wrong = (labels < 0) | (labels >= self.num_classes)
        return int(wrong.int().argmax()) if bool(wrong.any()) else None

    def from_classes(
        self, table: Float[Tensor, "n d"], there: Sequence[str], here: Sequence[str]
    ) -> Float[Tensor, "m d"]:
        """As of `TakesClassesByName`."""
        own = self.table.weight.detach().clone()
        known = {name: i for i, name in enumerate(there)}
        for i, name in enumerate(here):
            if name in known:
                own[i] = table[known[name]]
        own[-1] = table[-1]
        return own

    def micro_embedding(self) -> MicroEmbedding | None:
        return self.micro

    def null(self, *, device: torch.device) -> Condition:
        # A copy: a view would not keep a gathered table alive under FSDP.
        return Condition(pooled=self.table.weight[self.num_classes :].clone().to(device))


class TextConditioner(nn.Module):
    """Captions through a text encoder, or their cached features; the null condition is the empty caption."""

    num_classes = None

    def __init__(self, *, encoder: TextEncoder, drop: Fraction = 0.1, micro: Fields | None = None) -> None:
        super().__init__()
        self.encoder, self.drop = encoder, check_probability(drop)
        self.micro = None if micro is None else MicroEmbedding(micro, width=encoder.pooled_width)

    def forward(self, inputs: Sequence[str] | Condition | WithMicro, *, device: torch.device) -> Condition:
        given, values = _parts(inputs)
        if isinstance(given, Condition):  # may be stored in fewer bits
            cond = given.map(lambda x: x.to(device, torch.float32 if x.is_floating_point() else x.dtype))
        else:
            cond = self.encoder(cast(Sequence[str], given), device=device)
        return cond if self.micro is None else self.micro.add(cond, values)

    def inputs(self, batch: Batch) -> Sequence[str] | Condition | WithMicro:
        found = batch.condition if batch.condition is not None else batch.captions
        if found is None:
            raise ValueError("conditioner=text needs captions, and the data has none; use conditioner=labels")
        return found if self.micro is None else WithMicro(found, _micro_of(batch))

    def micro_embedding(self) -> MicroEmbedding | None:
        return self.micro

    def null(self, *, device: torch.device) -> Condition:
        return self.encoder([""], device=device)


def truncation(conditioner: Conditioner, inputs: Iterable[object]) -> str | None:
    """A sentence about the captions among the inputs that the text encoder cuts off; None if there are none."""
    encoder = conditioner.encoder
    if not isinstance(encoder, Truncates):
        return None
    captions = (given for given in dict.fromkeys(inputs) if isinstance(given, str))
    ends = [end for caption in captions if (end := encoder.unread_end(caption))]
    if not ends:
        return None
    shown = (end if len(end) <= END_SHOWN else f"{end[:END_SHOWN].rstrip()} ..." for end in ends[:ENDS_SHOWN])
    quoted = ", ".join(f'"... {end}"' for end in shown)
    more = (
        f" and those of {counted(len(ends) - ENDS_SHOWN, 'more caption')}" if len(ends) > ENDS_SHOWN else ""
    )
    tokens = f"{encoder.length} tokens (text_encoder.length)"
    return f"the text encoder reads {tokens}; these ends are cut off: {quoted}{more}"


def check_probability(drop: float) -> float:
    """Returns `drop`; raises ValueError outside [0, 1]."""
    if not 0 <= drop <= 1:
        raise ValueError(f"conditioner.drop={drop} must be a probability between 0 and 1")
    return drop


def drop_condition(
    cond: Condition, null: Condition, *, probability: float, generator: SampleGenerator
) -> Condition:
    """Replaces each sample's condition by `null` with the given probability.

    So one network learns both fields of classifier-free guidance (arXiv 2207.12598, algorithm 1).
    null: one row.
    """
    keep = keeps_condition(probability=probability, generator=generator)
    return cond.where(keep, null.expand(len(cond)))


def keeps_condition(*, probability: Fraction, generator: SampleGenerator) -> Bool[Tensor, "b"]:
    """False for the samples whose condition `drop_condition` replaces."""
    return generator.uniform() >= probability
