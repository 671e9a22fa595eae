"""What an evaluation offers to `sample.py`."""

from typing import Protocol, runtime_checkable

from rfdit.sampler import Pipeline


@runtime_checkable
class Evaluation(Protocol):
    """Samples what it needs and measures it; chosen by `eval=...`."""

    def __call__(self, pipeline: Pipeline, *, seed: int) -> dict[str, float]:
        """Each metric's value."""
        ...

    @property
    def name(self) -> str:
        """What the numbers are called together."""
        ...
