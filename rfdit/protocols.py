"""What the parts know of each other: the Protocol through which siblings meet without importing each other."""

from typing import Protocol, runtime_checkable

from rfdit.batch import Condition, Latent, Time


@runtime_checkable
class Backbone(Protocol):
    """A velocity network v(z_t, t, cond), in practice an nn.Module."""

    def __call__(self, z_t: Latent, t: Time, cond: Condition) -> Latent: ...
