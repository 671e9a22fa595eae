"""The conditions of many pictures, each distinct caption encoded once."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch

from rfdit.batch import Condition
from rfdit.conditioning import Conditioner

KEPT_GROUPS = 16  # of encoded inputs; what 50,000 different captions become would not fit


class Conditions:
    """What the network reads for inputs out of a known list, and what guidance moves away from.

    inputs: captions or labels of all pictures to come.
    negative: a caption to move away from; None is the null condition.
    guide: the second conditioner of autoguidance, which moves away from what its own network says of
        the same inputs.
    group: how many distinct inputs are encoded together. Groups follow the list alone, so that an
        input's condition does not depend, even in its rounding, on which pictures are asked for.
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
        self._places = {given: i for i, given in enumerate(self._distinct)}
        self._groups: OrderedDict[int, Condition] = OrderedDict()
        self._away: Condition | None = None
        self._guide: Conditions | None = None
        if guide is not None:
            self._guide = Conditions(guide, inputs, negative=None, group=group, device=device)

    def __call__(self, inputs: Sequence[str | int]) -> Condition:
        """One row per input; raises KeyError for one that is not in the list."""
        places = [self._places[given] for given in inputs]
        wanted = sorted({place // self.group for place in places})
        encoded = Condition.join([self._encoded(number) for number in wanted])
        starts = {number: i * self.group for i, number in enumerate(wanted)}
        rows = [starts[place // self.group] + place % self.group for place in places]
        return encoded.map(lambda tensor: tensor[rows])

    def away(self, inputs: Sequence[str | int]) -> Condition:
        """The negative or null condition, or the guide's of the same inputs; one row per input."""
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
        """A group's conditions, computed now or of late."""
        if number not in self._groups:
            if len(self._groups) == KEPT_GROUPS:
                self._groups.popitem(last=False)
            start = number * self.group
            inputs = cast(list[str], self._distinct[start : start + self.group])  # or all of them int
            self._groups[number] = self.conditioner(inputs, device=self.device)
        self._groups.move_to_end(number)
        return self._groups[number]
