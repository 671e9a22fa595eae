"""Shards of emoji in parts for docs/finetuning.md: `python benchmarks/emoji_parts.py SHARDS OUT`.

base: all but food and hearts. food, food_val: the class "Food & Drink", every fourth image for validation.
hearts: hearts of one kind or colour, all with the caption "a heart".
"""

import json
import sys
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rfdit.data.tar.write import write_tar


def samples(shards: Path) -> Iterator[dict[str, bytes]]:
    """The samples of all shards in a folder, by extension."""
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for key, members in groupby(tar, key=lambda member: member.name.partition(".")[0]):
                files = {member.name.partition(".")[2]: tar.extractfile(member).read() for member in members}
                yield {"__key__": key, **files}


def main(shards: Path, out: Path) -> None:
    parts: dict[str, list[dict[str, bytes]]] = {"base": [], "food": [], "food_val": [], "hearts": []}
    food = 0
    for sample in samples(shards):
        about = json.loads(sample["json"])
        if about["category"] == "Food & Drink":
            parts["food_val" if food % 4 == 3 else "food"].append(sample)
            food += 1
        elif "heart" not in about["caption"]:
            parts["base"].append(sample)
        elif about["caption"].endswith(" heart") and about["category"] == "Smileys & Emotion":
            parts["hearts"].append(sample | {"txt": b"a heart"})
    for name, part in parts.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        write_tar(out / name / f"{name}.tar", part)
        print(f"{name}: {len(part)} images")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
