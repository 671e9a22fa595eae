"""Image shards to shards of cached latents: names, parts for many processes, and what is left to do."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from rfdit.counted import counted
from rfdit.data.latents.manifest import MANIFEST
from rfdit.data.latents.shard_encoder import ShardEncoder, ShardError, is_finished
from rfdit.data.shards import is_remote
from rfdit.data.skips import listed
from rfdit.progress import tracked


@dataclass(frozen=True)
class EncodePart:
    """One of `count` equal parts of the shards."""

    index: int
    count: int

    def of(self, names: Sequence[str]) -> Sequence[str]:
        """This part of all names, finished or not: processes that start at different times must agree."""
        return names[self.index :: self.count]

    @property
    def lock(self) -> str:
        """The name of the file that the process of this part locks."""
        return f"encode_{self.index}_of_{self.count}.lock"


def shard_names(shards: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """{name: shard} of the latent shards: the shard's own name, with a hash if two would have the same name.

    The manifest's name is reserved: the shard's report would replace it.

    known: the names of an earlier run, which its shards keep.
    """
    shards = [shard if is_remote(shard) else os.path.abspath(shard) for shard in shards]
    known_names = {shard: name for name, shard in known.items()}
    stems = {shard: _stem(shard) for shard in shards}
    taken = Counter(stems[shard] for shard in shards if shard not in known_names) + Counter(known.keys())
    taken[os.path.splitext(MANIFEST)[0]] += 1
    names = {}
    for shard in shards:
        suffix = f"-{blake2b(shard.encode(), digest_size=4).hexdigest()}" if taken[stems[shard]] > 1 else ""
        names[known_names.get(shard, stems[shard] + suffix)] = shard
    return names


def _stem(shard: str) -> str:
    name = os.path.basename(shard.partition("?")[0].rstrip("/") if "://" in shard else shard)
    return re.sub(r"[^\w.-]+", "_", re.sub(r"\.(tar|parquet|csv|tsv|jsonl?)(\.gz)?$", "", name)) or "shard"


def encode_missing(encoder: ShardEncoder, shards: Mapping[str, str]) -> list[str]:
    """Encode the shards that are missing or have changed; returns the reasons why some could not be encoded.

    shards: {name: shard}.
    """
    failures, outdated = [], set()
    checked = tracked(shards, "checking", total=len(shards), unit="shards")
    finished = [name for name in checked if encoder.finished(name)]
    for name in finished:
        try:
            if encoder.outdated(name, shards[name]):
                outdated.add(name)
        except ShardError as error:
            failures.append(str(error))
    if outdated:
        print(
            f"reading {counted(len(outdated), 'shard')} again, which changed after the encoding",
            flush=True,
        )
    done = set(finished) - outdated
    missing = [name for name in shards if name not in done]
    encoder.progress.start(finished=len(shards) - len(missing))
    for name in missing:
        try:
            with encoder.stop.deferred():
                encoder(name, shards[name])
        except ShardError as error:  # one bad shard must not end a job of thousands
            failures.append(str(error))
        encoder.progress.next_shard()
    return failures


def summary(encoder: ShardEncoder, names: Sequence[str], part: EncodePart) -> str:
    """A sentence about all samples of a part's shards, including those of earlier runs."""
    reports = [encoder.report(name) for name in names if is_finished(encoder.out, name, checksum=False)]
    skipped = sum((Counter(report["skipped"]) for report in reports), Counter())
    samples = sum(report["samples"] for report in reports)
    which = f"part {part.index} of {part.count}: " if part.count > 1 else ""
    left_out = f"; left out: {listed(skipped)}" if skipped else ""
    found = f"{counted(samples, 'sample')} in {counted(len(reports), 'shard')}"
    return f"{which}{found} in {encoder.out}{left_out}"
