"""The endless, shuffled order of samples: permuted shards, permuted samples within groups of them, and mixtures."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from rfdit.randomness import permutation
from rfdit.storage.lru import LRU

CACHED = 2  # epochs, and groups: a batch may lie across a border


class Order:
    """An endless sequence of samples in which each epoch has every sample once.

    Within an epoch the shards are permuted and divided into groups; the samples of a group are permuted
    among themselves. A reader thus needs few shards at a time, and still mixes their samples.

    shard_sizes: samples in each shard; samples are numbered shard after shard.
    seed, purpose: key of the permutations.
    shuffle_shards: largest number of shards in a group; the groups differ by one shard at most.
    """

    def __init__(self, shard_sizes: Sequence[int], *, seed: int, purpose: str, shuffle_shards: int) -> None:
        self._sizes = np.array(shard_sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.size = int(self._sizes.sum())
        self._seed, self._purpose = seed, purpose
        self._groups = max(1, -(-len(shard_sizes) // shuffle_shards))
        self._epochs: LRU[int, _Epoch] = LRU(CACHED)
        self._permuted: LRU[tuple[int, int], Int[np.ndarray, _]] = LRU(CACHED)

    def __call__(self, place: int) -> int:
        """The number of the sample at a place in the endless sequence."""
        epoch, index = divmod(place, self.size)
        plan = self._epochs.get_or_make(epoch, lambda: self._epoch(epoch))
        group = int(np.searchsorted(plan.ends, index, side="right"))
        samples = self._permuted.get_or_make((epoch, group), lambda: self._samples(plan, epoch, group))
        return int(samples[index - int(plan.ends[group]) + len(samples)])

    def _epoch(self, epoch: int) -> "_Epoch":
        """The permuted shards of an epoch."""
        order = permutation(len(self._sizes), seed=self._seed, purpose=f"{self._purpose}/{epoch}").numpy()
        groups = np.array_split(order, self._groups)
        return _Epoch(groups, ends=np.cumsum([self._sizes[group].sum() for group in groups]))

    def _samples(self, plan: "_Epoch", epoch: int, group: int) -> Int[np.ndarray, "_"]:
        """The samples of a group in their order."""
        spans = [np.arange(self._sizes[shard]) + self._starts[shard] for shard in plan.groups[group]]
        samples = np.concatenate(spans)
        purpose = f"{self._purpose}/{epoch}/{group}"
        return samples[permutation(len(samples), seed=self._seed, purpose=purpose).numpy()]


@dataclass(frozen=True)
class _Epoch:
    """The shards of each group of an epoch, and the places in the epoch where the groups end."""

    groups: list[Int[np.ndarray, "_"]]
    ends: Int[np.ndarray, "_"]


class MixedOrder:
    """An endless sequence in which each of several sets has its share, and an order and epochs of its own.

    Of the first n places, a set has as many as its share of n, to within the number of sets. If the shares are the
    sets' sizes times whole numbers, each of their samples comes as often as its number says in every epoch of all.

    orders: of the sets. shares: how often they come, in any unit.
    """

    def __init__(self, orders: Sequence["Order"], shares: Sequence[Fraction]) -> None:
        self._orders = orders
        self._first = list(itertools.accumulate((order.size for order in orders), initial=0))
        rest = [*itertools.accumulate(reversed(shares))][::-1]  # of each set and those after it
        self._of_rest = [share / (whole or 1) for share, whole in zip(shares, rest, strict=True)]

    def __call__(self, place: int) -> int:
        """The number of the sample at a place, where the sets are numbered one after the other."""
        for order, first, share in zip(self._orders, self._first, self._of_rest):
            before = place * share.numerator // share.denominator
            if (place + 1) * share.numerator // share.denominator > before:
                return first + order(before)
            place -= before
        raise AssertionError("the last set has all that is left")
