"""Where shards come from."""

from collections.abc import Sequence
from typing import Protocol

from rfdit.data.shards import expand_shards


class ShardSource(Protocol):
    """Training and validation shards, found or made when they are asked for."""

    def train_shards(self) -> list[str]: ...

    def val_shards(self) -> list[str]:
        """Empty if there is no validation set."""
        ...


class TarShards:
    """Shards that exist.

    shards: a glob, brace pattern, folder, http(s) URL, `pipe:` command, or a list of these.
    val_shards: likewise, for validation; None for none.
    """

    def __init__(self, *, shards: str | Sequence[str], val_shards: str | Sequence[str] | None = None) -> None:
        self._train, self._val = shards, val_shards

    def train_shards(self) -> list[str]:
        return expand_shards(self._train)

    def val_shards(self) -> list[str]:
        return [] if self._val is None else expand_shards(self._val, "data.val_shards")
