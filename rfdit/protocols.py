"""The Protocols through which packages meet without importing each other.

A class of your own satisfies one by having its attributes and methods; nothing is inherited.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rfdit.batch import Batch, Condition, Latent, Time
from rfdit.randomness import SampleGenerator


@runtime_checkable
class VelocityNetwork(Protocol):
    """A velocity v(z_t, t, cond): all that objectives, guidance and samplers need of a network."""

    def __call__(self, z_t: Latent, t: Time, cond: Condition) -> Latent: ...


@runtime_checkable
class Backbone(VelocityNetwork, Protocol):
    """The `nn.Module` that is trained: a velocity network with the attributes on which a run relies.

    blocks: the transformer blocks, which FSDP shards, torch.compile compiles and FP8 converts one by
        one; may be empty. FSDP shards all other layers as one more unit.
    patch_size: latent pixels per token, along one side; throughput counts tokens by it.
    width: length of a token's vector; muP scales learning rates by it.
    """

    blocks: nn.ModuleList
    patch_size: int
    width: int

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...


@dataclass(frozen=True)
class Route:
    """The tokens that some blocks see in a forward pass; the others pass these blocks by.

    first, last: numbers of the first and the last of these blocks, from 1.
    kept: numbers of the tokens of each sample that go through them, ascending; None for all. Blocks that no token goes
        through are not computed.
    left_out: True for samples for which a joined path (`RoutesTokens.path`) gives nothing.
    """

    first: int
    last: int
    kept: Int[Tensor, "b k"] | None = None
    left_out: Bool[Tensor, "b"] | None = None

    def repeated(self, times: int) -> "Route":
        """The route of `times` copies of the batch, one after another."""
        kept = None if self.kept is None else self.kept.repeat(times, 1)
        left_out = None if self.left_out is None else self.left_out.repeat(times)
        return Route(self.first, self.last, kept, left_out)


@runtime_checkable
class TakesDurations(Protocol):
    """A backbone that may also give the mean velocity over the time from r to t, u(z_t, r, t).

    durations: True if it does, given `Condition.duration` = t - r.
    """

    durations: bool


def takes_durations(network: object) -> bool:
    """True for a network that also gives mean velocities."""
    return isinstance(network, TakesDurations) and network.durations


@runtime_checkable
class TakesGuidance(Protocol):
    """A backbone with an input for the scale of guidance, whose effect it has learned.

    guidance: the scale without `Condition.guidance`; None if it has no such input.
    """

    guidance: float | None


def takes_guidance(network: object) -> bool:
    """True for a network that takes the scale of guidance as an input."""
    network = unwrapped(network)
    return isinstance(network, TakesGuidance) and network.guidance is not None


@runtime_checkable
class SetsTarget(Protocol):
    """A velocity network that is regressed on something else than z1 - z0 at some times."""

    def target(self, z0: Latent, z1: Latent, t: Time) -> Latent:
        """The velocity that it should have at z_t."""
        ...


@runtime_checkable
class HasPrediction(Protocol):
    """A velocity network that follows from another prediction.

    with_variance: return the output's second half of channels as well.
    """

    prediction: object

    def __call__(
        self, z_t: Latent, t: Time, cond: Condition, *, with_variance: bool = False
    ) -> Latent | tuple[Latent, Latent]: ...


@runtime_checkable
class LearnsVariance(Protocol):
    """A prediction that may parametrise the variance of a schedule's reverse steps too.

    schedule: the timesteps. learned_variance: the network's output has as many channels again.
    """

    schedule: object
    learned_variance: bool


@runtime_checkable
class StandsFor(Protocol):
    """A backbone around another one. network: the other."""

    network: "Backbone"


def unwrapped(backbone: object) -> object:
    """The network that a backbone is around, or itself."""
    return backbone.network if isinstance(backbone, StandsFor) else backbone


@runtime_checkable
class RemarksOnSize(Protocol):
    """A backbone whose number of parameters is not what its size lets one expect.

    size_remark: the reason, in a few words.
    """

    size_remark: str


# From Python 3.12 on, `isinstance` does not find the submodules of a module, so that no module would be a
# Backbone. All modules count as one instead, and `check_backbone` looks for the attributes.
Backbone.register(nn.Module)  # type: ignore[attr-defined]


def class_name(backbone: Backbone) -> str:
    """The name of a backbone's class, or of the one that it stands for."""
    return type(backbone.network if isinstance(backbone, StandsFor) else backbone).__name__


def check_backbone(backbone: object) -> None:
    """Raises ValueError if a configured model lacks an attribute of `Backbone`."""
    missing = [name for name in Backbone.__annotations__ if not hasattr(backbone, name)]
    if missing:
        kind = type(backbone)
        raise ValueError(
            f"model._target_={kind.__module__}.{kind.__qualname__} has no {', '.join(missing)}; "
            "rfdit.protocols.Backbone states them"
        )


@dataclass(frozen=True)
class FlowLoss:
    """The result of an objective on one batch.

    total: the scalar that is minimised.
    per_sample: each sample's loss, detached and unweighted. t: each sample's time.
    parts: named scalars for the log, such as the terms of `total`, as `train/NAME`; `loss` is the name of
        `total` itself.
    """

    total: Float[Tensor, ""]
    per_sample: Float[Tensor, "b"]
    t: Time
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)

    def detach(self) -> "FlowLoss":
        """The same values without their graph."""
        parts = {name: part.detach() for name, part in self.parts.items()}
        return FlowLoss(self.total.detach(), self.per_sample.detach(), self.t.detach(), parts)


@runtime_checkable
class Objective(Protocol):
    """One training step of a method: from clean latents to a loss."""

    def __call__(
        self, backbone: Backbone, z0: Latent, cond: Condition, *, generator: SampleGenerator
    ) -> FlowLoss:
        """The loss of a batch.

        z0: (b, c, h, w) clean latents. cond: their conditions, some of them already dropped.
        generator: all randomness, keyed by sample; fork it once for each purpose.
        """
        ...


@runtime_checkable
class OwnsLayers(Protocol):
    """An objective with layers of its own, which are trained with the network and are not part of the model.

    layers: these, such as a learned weighting; None if it has none.
    """

    layers: nn.Module | None


@runtime_checkable
class Auxiliary(Protocol):
    """An `nn.Module` whose loss on the states after a block is added to the objective's.

    block: number of the block, from 1. coefficient: factor of the loss.
    """

    block: int
    coefficient: float

    def is_over(self, step: int) -> bool:
        """True from the step on from which the loss is left out."""
        ...

    def __call__(
        self, x: Float[Tensor, "b n d"], batch: Batch | None, *, grid: tuple[int, int]
    ) -> Float[Tensor, "b"]:
        """The loss of each sample, float32.

        x: the states of the image's tokens. grid: rows and columns of the tokens.
        batch: the clean images, or what is cached of them; None once it is over. The loss is then 0 with gradients of
            0, since ranks wait for those of all parameters.
        Raises ValueError for a batch without what it reads.
        """
        ...


@runtime_checkable
class Routing(Protocol):
    """Chooses tokens that pass some of the blocks by, in training alone."""

    def blocks(self, depth: int, path: tuple[int, int] | None) -> tuple[int, int]:
        """Numbers of the first and the last of these blocks, from 1, for a backbone of so many.

        path: as of `RoutesTokens`.
        Raises ValueError if it does not have them.
        """
        ...

    def kept(self, grid: tuple[int, int], *, generator: SampleGenerator) -> Int[Tensor, "b k"] | None:
        """Numbers of the tokens of each sample that go through them, ascending; None for all.

        grid: rows and columns of the tokens, which are numbered row by row.
        """
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """An `nn.Module` that turns captions into a `Condition`.

    width: length of a token's vector. pooled_width: length of the vector for the whole caption.
    length: tokens per caption, padding included.
    """

    width: int
    pooled_width: int
    length: int

    def __call__(self, captions: Sequence[str], *, device: torch.device) -> Condition:
        """b captions -> pooled (b, pooled_width), tokens (b, length, width), mask (b, length), on `device`.

        Vectors are float32. The mask is True where a token is not padding, which holds for at least one
        token of every caption, the empty one (the null condition) included.
        """
        ...


@runtime_checkable
class Truncates(Protocol):
    """A text encoder that reads captions up to a last token."""

    def unread_end(self, caption: str) -> str:
        """The end of a caption behind that token; empty if the caption is read whole."""
        ...


@runtime_checkable
class HasEncoders(Protocol):
    """A text encoder that is made of others, by name."""

    encoders: Mapping[str, TextEncoder]


@runtime_checkable
class DropsParts(Protocol):
    """A text encoder whose parts are dropped in training. drop: the probability of each, by name."""

    drop: Mapping[str, float]

    def drop_parts(self, cond: Condition, null: Condition, *, generator: SampleGenerator) -> Condition:
        """The conditions of a batch with some parts replaced by those of `null`, one row."""
        ...


@runtime_checkable
class Pretrained(Protocol):
    """An encoder whose weights training does not change, so that its results can be cached."""

    def weights_digest(self) -> str:
        """SHA-256 of the weights as they were loaded. Call it before the first use, which may round them."""
        ...

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype in which it computes on a device."""
        ...
