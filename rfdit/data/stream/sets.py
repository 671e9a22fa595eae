"""Several sets of one run, each with a share of the training or a number of repetitions."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

from rfdit.data.shards import Shards
from rfdit.data.source import Source
from rfdit.limits import Limit

# Whole or with a few decimals: shares of the order are exact.
Weight = Annotated[
    float, Limit("more than 0 and at most a million", lambda x: 0 < x <= 1e6 and Fraction(str(x)) > 0)
]


@dataclass(frozen=True)
class SetRate:
    """The shards of one set, and how often each of its samples comes compared with those of other sets."""

    shards: int
    rate: Fraction


def sets_of(
    shards: Shards, weights: Sequence[Weight] | None, repeats: Sequence[Weight] | None
) -> list[Shards] | None:
    """The items of `data.shards`, each a set; None without weights and repeats, when all are one set.

    Raises ValueError, naming the setting, for numbers that do not fit the list.
    """
    if weights is not None and repeats is not None:
        raise ValueError("data.weights and data.repeats are both set; give the shares or the repetitions")
    name, numbers = ("data.weights", weights) if weights is not None else ("data.repeats", repeats)
    if numbers is None:
        return None
    if isinstance(shards, str) or not isinstance(shards, Sequence):
        raise ValueError(f"{name}={list(numbers)} needs a list of sets: data.shards=[FIRST,SECOND]")
    if len(numbers) != len(shards):
        raise ValueError(
            f"{name}={list(numbers)} has {len(numbers)} numbers, and data.shards is a list of {len(shards)}; "
            "give one number for each item"
        )
    return list(shards)


def rates_of(
    sources: Sequence[Source], weights: Sequence[Weight] | None, repeats: Sequence[Weight] | None
) -> list[SetRate]:
    """The rates of the sets' samples: their repeats, or those at which each set has its weight in all training."""
    sizes = [sum(source.shard_sizes) for source in sources]
    numbers = [Fraction(str(number)) for number in weights or repeats or ()]
    rates = [number / size if weights else number for number, size in zip(numbers, sizes, strict=True)]
    return [SetRate(len(source.shard_sizes), rate) for source, rate in zip(sources, rates, strict=True)]
