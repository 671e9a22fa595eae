"""From labels or captions to a `Condition`; the null condition; the per-sample drop."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rfdit.batch import Batch, Condition
from rfdit.protocols import TextEncoder
from rfdit.randomness import SampleGenerator

# Captions, class labels, or a condition that was computed before.
Inputs = Sequence[str] | Sequence[int] | Int[Tensor, "b"] | Condition


@runtime_checkable
class Conditioner(Protocol):
    """Turns what samples are conditioned on into what the network reads; in practice an nn.Module.

    drop: the probability with which training replaces a sample's condition by the null one.
    """

    drop: float

    def __call__(self, inputs: Inputs, *, device: torch.device) -> Condition: ...

    def inputs(self, batch: Batch) -> Inputs:
        """The part of a batch that it reads."""
        ...

    def null(self, *, device: torch.device) -> Condition:
        """The condition of one sample that says nothing."""
        ...


class LabelConditioner(nn.Module):
    """An embedding table with one row per class and a last one for "no class".

    width: the model's; a label embedding is added to the time embedding as it is.
    """

    def __init__(self, *, num_classes: int, width: int, drop: float = 0.1) -> None:
        super().__init__()
        self.num_classes, self.drop = num_classes, check_probability(drop)
        self.table = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, inputs: Sequence[int] | Tensor, *, device: torch.device) -> Condition:
        labels = torch.as_tensor(inputs)
        # A look at labels on a GPU would stall it; there, a wrong one fails in the embedding.
        if not labels.is_cuda and bool(((labels < 0) | (labels >= self.num_classes)).any()):
            raise ValueError(
                f"class labels must be 0 to {self.num_classes - 1} "
                f"(conditioner.num_classes={self.num_classes}), not {labels.tolist()}"
            )
        return Condition(pooled=self.table(labels.to(device)))

    def inputs(self, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise ValueError(
                "conditioner=labels needs class labels, and the data has none; set data.decoder.label_key"
            )
        return batch.labels

    def null(self, *, device: torch.device) -> Condition:
        # A copy: a view would keep nothing alive of a table whose parts are on many ranks.
        return Condition(pooled=self.table.weight[self.num_classes :].clone().to(device))


class TextConditioner(nn.Module):
    """Captions through a text encoder, unless their features are cached; the empty caption says nothing."""

    def __init__(self, *, encoder: TextEncoder, drop: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.drop = encoder, check_probability(drop)

    def forward(self, inputs: Sequence[str] | Condition, *, device: torch.device) -> Condition:
        if isinstance(inputs, Condition):  # stored in fewer bits, perhaps
            return inputs.map(lambda x: x.to(device, torch.float32 if x.is_floating_point() else x.dtype))
        return self.encoder(inputs, device=device)

    def inputs(self, batch: Batch) -> Sequence[str] | Condition:
        if batch.condition is not None:
            return batch.condition
        if batch.captions is None:
            raise ValueError("conditioner=text needs captions, and the data has none; use conditioner=labels")
        return batch.captions

    def null(self, *, device: torch.device) -> Condition:
        return self.encoder([""], device=device)


def check_probability(drop: float) -> float:
    """`drop` itself; raises ValueError outside [0, 1]."""
    if not 0 <= drop <= 1:
        raise ValueError(f"conditioner.drop={drop} is a probability, between 0 and 1")
    return drop


def drop_condition(
    cond: Condition, null: Condition, *, probability: float, generator: SampleGenerator
) -> Condition:
    """`null` in place of each sample's condition with the given probability.

    This is what teaches one network both fields of classifier-free guidance (arXiv 2207.12598).
    """
    keep = generator.uniform() >= probability
    return cond.where(keep, null.expand(len(cond)))
