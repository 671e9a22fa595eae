"""Pack any source as tar shards: `rfdit pack data.shards=... out=FOLDER`."""

import json
import os
from pathlib import Path

from omegaconf import DictConfig

from rfdit.config.build import build
from rfdit.config.command import command
from rfdit.config.data_group import build_reader, validate_parts
from rfdit.counted import counted
from rfdit.data.tar.pack import FORMAT, Packing
from rfdit.storage.folders import make_folder


def plan_packing(cfg: DictConfig) -> Packing:
    """The packing that a configuration describes; raises ValueError, naming the setting, if it cannot be done."""
    config = validate_parts(cfg)
    data = config["data"]
    if missing := [name for name in ("shards", "reader", "filters") if name not in data]:
        raise ValueError(
            f"data.{missing[0]} is not set; packing needs data.shards, data.reader and data.filters"
        )
    filters = build(data["filters"])
    reader, shards = build_reader(data, record_dead_links=False)
    source = reader(shards, filters=filters)
    plan = {
        "format": FORMAT,
        "shards": [[shard, *_state(shard)] for shard in shards],
        "columns": data["reader"].get("columns"),
        "filters": filters.settings,
        "samples": sum(source.shard_sizes),
        "samples_per_shard": config["samples_per_shard"],
        "verify": config["verify"],
    }
    out = Path(config["out"])
    make_folder(out, setting="out")
    return Packing(
        source=source,
        out=out,
        samples_per_shard=config["samples_per_shard"],
        verify=config["verify"],
        plan=json.loads(json.dumps(plan)),
    )


def _state(shard: str) -> list[int]:
    """Size and time of change of a local file; nothing for other shards."""
    if not os.path.isfile(shard):
        return []
    status = os.stat(shard)
    return [status.st_size, status.st_mtime_ns]


@command("pack")
def main(cfg: DictConfig) -> None:
    """The program `rfdit pack`."""
    try:
        print(plan_packing(cfg)(), flush=True)
    except KeyboardInterrupt:
        done = len(list(Path(cfg.out).expanduser().glob("[0-9]*.json")))
        print(
            f"stopped with {counted(done, 'whole shard')} in {cfg.out}; the same command goes on", flush=True
        )
        raise SystemExit(130) from None
