"""What shards of latents are called."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from rfdit.data.latent_manifest import MANIFEST


def shard_names(shards: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """A name for the latents of each shard -> the shard: its own name, and a hash where two would have the same.

    The manifest's name is taken: a shard's report would replace it.

    known: the names of an earlier run, which its shards keep.
    """
    places = [
        shard if "://" in shard or shard.startswith("pipe:") else os.path.abspath(shard) for shard in shards
    ]
    kept = {place: name for name, place in known.items()}
    stems = {place: _stem(place) for place in places}
    taken = Counter(stems[place] for place in places if place not in kept) + Counter(known.keys())
    taken[os.path.splitext(MANIFEST)[0]] += 1
    names = {}
    for place in places:
        mark = f"-{blake2b(place.encode(), digest_size=4).hexdigest()}" if taken[stems[place]] > 1 else ""
        names[kept.get(place, stems[place] + mark)] = place
    return names


def _stem(place: str) -> str:
    name = os.path.basename(place.partition("?")[0].rstrip("/") if "://" in place else place)
    return re.sub(r"[^\w.-]+", "_", re.sub(r"\.(tar|parquet|csv|tsv|jsonl?)(\.gz)?$", "", name)) or "shard"
