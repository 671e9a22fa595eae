"""The index of each tar shard beside it, so that readers elsewhere need not copy the shard to start.

Run as python -m rfdit.data.index.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, build, register, validate
from rfdit.data.remote import UnreadableShardError, identity, size_of
from rfdit.data.shard_index import map_many
from rfdit.data.shards import is_remote, resolve_shards
from rfdit.data.sidecar import SUFFIX, Sidecar, StaleSidecarError, place_of
from rfdit.data.spool import Spool
from rfdit.data.tar_index import CompressedTarError
from rfdit.data.tar_source import TarReader
from rfdit.data.unfinished_files import remove_abandoned, write_locked
from rfdit.data.usable import Usable


@dataclass(frozen=True)
class _Writing:
    """Writes the index of a shard; says why, if it cannot."""

    spool: Spool
    usable: Usable
    out: str | None

    def __call__(self, shard: str) -> str | None:
        try:
            about = identity(shard)
            place = place_of(shard, self.out, self.usable)
            assert place is not None, "commands were refused without out"
            if self._is_done(Path(place), about):
                return None
            self.spool.require_room(shard, size_of(about))
            if size_of(about) is None:
                self.spool.forget(about)
            with self.spool.open(shard, about) as file:
                data = Sidecar.of(file, self.usable, about).to_json()
        except UnreadableShardError as error:
            return str(error)
        except CompressedTarError as error:
            return f"{shard} {error}"
        try:
            write_locked(Path(place), lambda out: out.write(data))
        except OSError as error:
            raise ValueError(
                f"out={self.out or 'null'}: {place} cannot be written: {error.strerror}"
            ) from error
        return None

    def _is_done(self, place: Path, about: list[Any]) -> bool:
        """Whether there is an index of the very shard. Nobody knows that of a command's output."""
        if size_of(about) is None:
            return False
        try:
            found = Sidecar.from_json(place.read_bytes())
            found.check(about, self.usable)
        except (OSError, StaleSidecarError):
            return False
        return found.is_of(about)


def write_indexes(
    shards: Sequence[str], *, reader: TarReader, usable: Usable, out: str | None = None
) -> list[str]:
    """Writes the indexes that are not there yet, or of which nobody knows; returns why some could not be.

    out: a folder; None for beside the shards. Raises ValueError if it cannot take them.
    """
    if out is None and (remote := [shard for shard in shards if is_remote(shard)]):
        raise ValueError(
            f"out is not set; give a folder, since indexes cannot be written beside {remote[0]}, and upload it or "
            "give it to runs as data.reader.index"
        )
    if out is not None and is_remote(out):
        raise ValueError(f"out={out} is no folder of this machine; write indexes to one and upload it")
    places = Counter(place_of(shard, out, usable) for shard in shards)
    place, n = places.most_common(1)[0]
    if n > 1:
        raise ValueError(f"out={out}: {n} shards would have the index {place}; index each folder by itself")
    for folder in {Path(place).parent for place in places if place is not None}:
        remove_abandoned(folder, names=f"*{SUFFIX}")
    writing = _Writing(reader.spool, usable, out)
    return [problem for problem in map_many(writing, shards, "indexing shards") if problem]


def index(cfg: DictConfig) -> None:
    """One run of the command.

    Raises ValueError, naming the setting, for what is no tar shard, and at the end for those not indexed.
    """
    OmegaConf.set_struct(cfg, False)
    # Not all of the group is built, so its parts are checked and not the whole.
    cfg.data.pop("_target_", None)
    config = validate(cfg)
    data, out = config["data"], config["out"]
    reader = build(data["reader"])
    if not isinstance(reader, TarReader):
        raise ValueError(
            f"data.reader={type(reader).__name__} reads no tar shards; use data=laion or data=imagenet_wds"
        )
    shards = resolve_shards(build(data["shards"]) if isinstance(data["shards"], dict) else data["shards"])
    usable = Usable(build(data["filters"]), config["image_sizes"], reader.caption_key)
    folder = None if out is None else os.path.expanduser(out)
    problems = write_indexes(shards, reader=reader, usable=usable, out=folder)
    if problems:
        raise ValueError(
            f"data.shards: {len(problems)} of {len(shards)} have no index, the first: {problems[0]}"
        )
    print(
        f"{len(shards)} shards have an index {'beside them' if folder is None else f'in {folder}'}",
        flush=True,
    )


@hydra.main(config_path=str(CONFIG_DIR), config_name="index", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    with explain_errors("index", ValueError, OSError):
        try:
            index(cfg)
        except KeyboardInterrupt:
            print("stopped; the same command goes on with the shards that have no index", flush=True)
            raise SystemExit(130) from None


def main() -> None:
    """The entry of `python -m rfdit.data.index`."""
    register()
    with explain_errors("index"):
        _main()


if __name__ == "__main__":
    main()
