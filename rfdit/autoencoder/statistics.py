"""Scale and shift of latents: a number, or one for each channel, or one for each channel and position."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rfdit.batch import Latent
from rfdit.device import constant

# As published: one for all latents, (c,), or (c, h, w), with axes of length 1 before or behind.
Published = float | Sequence[float] | Float[Tensor, "..."]


@dataclass(frozen=True)
class PerPosition:
    """Numbers for each channel and position of a latent, of which a checkpoint keeps the digest.

    shape: (c, h, w). sha256: of the float32 numbers in that order.
    values: the numbers, (c, h, w); None where only the digest was kept, which can be compared and not applied.
    """

    shape: tuple[int, ...]
    sha256: str
    values: Float[Tensor, "c h w"] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, values: Float[Tensor, "c h w"]) -> "PerPosition":
        """The numbers with their digest."""
        values = values.detach().float().cpu().contiguous()
        digest = hashlib.sha256(values.reshape(-1).numpy().data).hexdigest()
        return cls(tuple(values.shape), digest, values)

    def __str__(self) -> str:
        return f"{self.sha256[:12]} (of {'x'.join(map(str, self.shape))} numbers)"


Statistic = float | tuple[float, ...] | PerPosition


def statistic(values: Published) -> Statistic:
    """The numbers in their shortest form: one, one for each channel, or one for each channel and position.

    Raises ValueError for numbers that are not finite.
    """
    given = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    if not bool(given.isfinite().all()):
        raise ValueError("statistics of latents must be finite numbers")
    sides = list(given.shape)
    while len(sides) > 3 and sides[0] == 1:  # the batch
        sides.pop(0)
    given = given.detach().cpu().double().reshape(sides)
    if given.numel() == 1:
        return float(given)
    if given.numel() == max(sides):
        return tuple(given.reshape(-1).tolist())
    if len(sides) != 3:
        raise ValueError(f"statistics of latents have the shape {sides}, not one number, (c,) or (c, h, w)")
    return PerPosition.of(given)


def from_mean_and_std(mean: Published, std: Published) -> tuple[Statistic, Statistic]:
    """(scale, shift) of latents with this mean and standard deviation: 1 / std, and the mean.

    Raises ValueError for a standard deviation that is not above 0.
    """
    deviation = std if isinstance(std, Tensor) else torch.tensor(std, dtype=torch.float64)
    if not bool((deviation > 0).all()):
        raise ValueError("standard deviations of latents must be above 0")
    return statistic(1 / deviation.double()), statistic(mean)


def spread(numbers: Statistic, latents: Latent) -> float | Float[Tensor, "..."]:
    """The numbers in a form that multiplies latents (b, c, *size): as they are, or of shape (c, ...).

    Raises ValueError for latents of another size than numbers for each position, or of other channels.
    """
    if isinstance(numbers, float | int):
        return numbers
    shape = numbers.shape if isinstance(numbers, PerPosition) else (len(numbers),)
    own = tuple(latents.shape[1:] if isinstance(numbers, PerPosition) else latents.shape[1:2])
    if shape != own:
        raise ValueError(
            f"the latents are of {'x'.join(map(str, latents.shape[1:]))} numbers, and the autoencoder's "
            f"statistics are for {'x'.join(map(str, shape))}; use the resolution that it was made for"
        )
    if isinstance(numbers, PerPosition):
        return _on(numbers, latents.device)
    return constant(numbers, like=latents, dtype=torch.float32).view(-1, *[1] * (latents.ndim - 2))


@lru_cache(maxsize=32)
def _on(numbers: PerPosition, device: torch.device) -> Tensor:
    """The numbers on a device, copied once, as by `constant`."""
    if numbers.values is None:
        raise ValueError("only the digest of these statistics was kept; load the autoencoder for them")
    with torch.inference_mode(False):
        return numbers.values.to(device)


def as_plain(numbers: Statistic) -> Any:
    """The numbers as a checkpoint or a JSON file has them; of those for each position, their digest."""
    if isinstance(numbers, PerPosition):
        return {"shape": list(numbers.shape), "sha256": numbers.sha256}
    return list(numbers) if isinstance(numbers, tuple) else numbers


def from_plain(value: Any) -> Statistic | None:
    """The inverse of `as_plain`; None for anything else."""
    if type(value) in (int, float):
        return float(value)
    if type(value) in (list, tuple) and value and all(type(x) in (int, float) for x in value):
        return tuple(float(x) for x in value)
    if type(value) is dict and value.keys() == {"shape", "sha256"}:
        shape, digest = value["shape"], value["sha256"]
        if type(shape) in (list, tuple) and all(type(n) is int for n in shape) and type(digest) is str:
            return PerPosition(tuple(shape), digest)
    return None


def compared(mine: Statistic, other: Statistic) -> tuple[Any, Any]:
    """Two that differ, in words: of several numbers, the first that differs."""
    if isinstance(mine, tuple) and isinstance(other, tuple) and len(mine) == len(other):
        channel = next(n for n, (a, b) in enumerate(zip(mine, other)) if a != b)
        return f"{mine[channel]} in channel {channel}", f"{other[channel]} in channel {channel}"
    return _told(mine), _told(other)


def _told(numbers: Statistic) -> Any:
    if not isinstance(numbers, tuple):
        return numbers
    return f"[{', '.join(f'{x:g}' for x in numbers[:3])}{', ...' * (len(numbers) > 3)}]"
