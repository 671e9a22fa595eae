"""The conditions of many images, each distinct caption encoded once."""

from collections.abc import Sequence
from typing import cast

import torch

from rfdit.batch import Condition
from rfdit.conditioning import Conditioner
from rfdit.storage.lru import LRU

KEPT_GROUPS = 16  # groups of encoded inputs; those of 50,000 different captions would not fit into memory


class Conditions:
    """Encodes inputs from a known list, and the condition that guidance moves away from.

    inputs: captions or labels of all images to come.
    negative: a caption to move away from; None is the null condition.
    group: the number of distinct inputs that are encoded together. Groups follow the list alone, so
        that the condition of an input does not depend, even in its rounding, on the batch.
    guide: the conditioner of the second network of autoguidance, which moves away from the velocity of
        that network under the same inputs.
    """

    def __init__(
        self,
        conditioner: Conditioner,
        inputs: Sequence[str | int],
        *,
        negative: str | None,
        group: int,
        device: torch.device,
        guide: Conditioner | None = None,
    ) -> None:
        self.conditioner, self.negative, self.group, self.device = conditioner, negative, group, device
        self._distinct = list(dict.fromkeys(inputs))
        self._index = {given: i for i, given in enumerate(self._distinct)}
        self._groups: LRU[int, Condition] = LRU(KEPT_GROUPS)
        self._away: Condition | None = None
        self._guide: Conditions | None = None
        if guide is not None:
            self._guide = Conditions(guide, inputs, negative=None, group=group, device=device)

    def __call__(self, inputs: Sequence[str | int]) -> Condition:
        """The conditions of inputs, one row each; raises KeyError for one that is not in the list."""
        indices = [self._index[given] for given in inputs]
        groups = sorted({index // self.group for index in indices})
        encoded = Condition.join([self._encoded(number) for number in groups])
        starts = {number: i * self.group for i, number in enumerate(groups)}
        rows = [starts[index // self.group] + index % self.group for index in indices]
        return encoded.map(lambda tensor: tensor[rows])

    def away(self, inputs: Sequence[str | int]) -> Condition:
        """The negative or null condition, or that of the guide for the same inputs; one row per input."""
        if self._guide is not None:
            return self._guide(inputs)
        if self._away is None:
            self._away = (
                self.conditioner.null(device=self.device)
                if self.negative is None
                else self.conditioner([self.negative], device=self.device)
            )
        return self._away.expand(len(inputs))

    def _encoded(self, number: int) -> Condition:
        """The conditions of a group, from the cache or computed now."""

        def encode() -> Condition:
            start = number * self.group
            inputs = cast(list[str], self._distinct[start : start + self.group])  # or all of them int
            return self.conditioner(inputs, device=self.device)

        return self._groups.get_or_make(number, encode)
