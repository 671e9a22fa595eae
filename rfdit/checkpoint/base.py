"""The weights that the adapters of a checkpoint change, which are not in it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Base:
    """A saved model's weights by their place and their digest.

    ckpt: the path, or hub name, at which they were. weights: ema, another average, or raw.
    digest: `state_digest` of all their tensors.
    """

    ckpt: str
    weights: str
    digest: str

    @classmethod
    def read(cls, found: Any) -> "Base | None":
        """From a checkpoint's header, where None stands for a whole network; raises ValueError for anything else."""
        if found is None:
            return None
        names = ("ckpt", "weights", "digest")
        if type(found) is not dict or sorted(found) != sorted(names) or {*map(type, found.values())} != {str}:
            raise ValueError("its base is not that of adapters")
        return cls(**found)
