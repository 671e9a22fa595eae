"""Write the index of each tar shard beside it, for readers elsewhere: `rfdit index data.shards=...`."""

import os

from omegaconf import DictConfig

from rfdit.config.build import build
from rfdit.config.command import command
from rfdit.config.data_group import build_reader, validate_parts
from rfdit.counted import counted
from rfdit.data.skips import REMEDIES, listed
from rfdit.data.source import IndexingReader


def index(cfg: DictConfig) -> None:
    """Index all shards; raises ValueError, naming the setting, at the end for those that could not be indexed."""
    config = validate_parts(cfg)
    data, out = config["data"], config["out"]
    reader, shards = build_reader(data)
    if not isinstance(reader, IndexingReader):
        raise ValueError(
            f"data.reader={type(reader).__name__} does not read tar shards; use data=laion or data=imagenet_wds"
        )
    folder = None if out is None else os.path.expanduser(out)
    report = reader.write_indexes(
        shards, filters=build(data["filters"]), image_sizes=config["image_sizes"], out=folder
    )
    problems, left_out = report.problems, f"; left out: {listed(report.skipped)}" if report.skipped else ""
    where = "beside each" if folder is None else f"in {folder}"
    done, samples = counted(len(shards) - len(problems), "shard"), counted(report.samples, "sample")
    print(f"indexed {done} of {samples} in all, with the index {where}{left_out}", flush=True)
    for reason, remedy in REMEDIES.items():
        if reason in report.skipped:
            print(f"{reason}: {remedy}", flush=True)
    if problems:
        raise ValueError(
            f"data.shards: {len(problems)} of {len(shards)} have no index, the first: {problems[0]}"
        )


@command("index")
def main(cfg: DictConfig) -> None:
    """The program `rfdit index`."""
    try:
        index(cfg)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the shards that have no index", flush=True)
        raise SystemExit(130) from None
