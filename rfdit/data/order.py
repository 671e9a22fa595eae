"""An endless order of samples, in shards that are permuted, and in which the samples are."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from rfdit.randomness import permutation

REMEMBERED = 2  # epochs, and groups: a batch may lie across a border
K = TypeVar("K")
V = TypeVar("V")


class Order:
    """An endless sequence of samples in which each epoch has every sample once.

    Within an epoch the shards are permuted and parted into groups; the samples of a group are
    permuted among each other. So a reader needs few shards at a time, and yet mixes their samples.

    shard_sizes: samples in each shard; the sequence's elements are their numbers, shard after shard.
    seed, purpose: what the order is drawn from.
    shuffle_shards: shards in a group, at most; all groups have the same number, give or take one.
    """

    def __init__(self, shard_sizes: Sequence[int], *, seed: int, purpose: str, shuffle_shards: int) -> None:
        self._sizes = np.array(shard_sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.size = int(self._sizes.sum())
        self._seed, self._purpose = seed, purpose
        self._groups = max(1, -(-len(shard_sizes) // shuffle_shards))
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._permuted: OrderedDict[tuple[int, int], Int[np.ndarray, _]] = OrderedDict()

    def __call__(self, place: int) -> int:
        """The number of the sample at a place of the endless sequence."""
        epoch, index = divmod(place, self.size)
        plan = _remembered(self._epochs, epoch, lambda: self._epoch(epoch))
        group = int(np.searchsorted(plan.ends, index, side="right"))
        samples = _remembered(self._permuted, (epoch, group), lambda: self._samples(plan, epoch, group))
        return int(samples[index - int(plan.ends[group]) + len(samples)])

    def _epoch(self, epoch: int) -> "_Epoch":
        """Permutes the shards for an epoch."""
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
    """The shards of each group of an epoch, and the places within the epoch at which the groups end."""

    groups: list[Int[np.ndarray, "_"]]
    ends: Int[np.ndarray, "_"]


def _remembered(cache: OrderedDict[K, V], key: K, make: Callable[[], V]) -> V:
    """What was made for the key, if it is among the last; else it is made."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > REMEMBERED:
            cache.popitem(last=False)
    return cache[key]
