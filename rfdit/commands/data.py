"""A survey of a data setting, with a sheet of its images: `rfdit data FOLDER`. See conf/data.yaml."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from rfdit.config.build import build
from rfdit.config.command import command
from rfdit.config.data_group import build_reader, validate_parts
from rfdit.config.overrides import setting
from rfdit.data.contents import option_for
from rfdit.data.sample import CacheDecoder
from rfdit.data.survey import survey
from rfdit.image_grid import captioned_grid, write_image
from rfdit.images import parse_size
from rfdit.text_encoder.unread import TruncationCount


def show(config: dict[str, Any]) -> None:
    """Print the survey of a validated configuration's data, and write its sheet."""
    data = config["data"]
    decoder, size = build(data["decoder"]), parse_size(data["resolution"], setting="data.resolution")
    reader, shards = build_reader(data, record_dead_links=False)
    if isinstance(decoder, CacheDecoder):
        decoder.check(shards, size)
    source = reader(shards, filters=build(data["filters"]))
    found = survey(source, decoder, size, most=config["samples"], images=config["images"])
    lines = found.lines(size, data.get("batch_size", 1))
    if config["text_encoder"] is not None and found.captions:
        cut = TruncationCount(build(config["text_encoder"]), most=config["samples"])
        cut.add([text for captions in found.captions for text in captions])
        length = config["text_encoder"]["length"]
        lines.append(("too long", cut.sentence() or f"none, for text_encoder.length={length} tokens"))
    if found.images and config["images"]:
        sheet = Path(config["sheet"])
        write_image(sheet, captioned_grid(torch.stack(found.images), found.titles))
        lines.append(("sheet", f"{len(found.images)} images as training sees them, in {sheet}"))
    for name, text in lines:
        print(f"{name:<9} {text}", flush=True)


@command("data")
def _main(cfg: DictConfig) -> None:
    show(validate_parts(cfg))


def main() -> None:
    """The entry of `rfdit data`; a first argument that is a path means data.shards=PATH, of the kind found there."""
    first = sys.argv[1] if len(sys.argv) > 1 else "-"
    if not first.startswith("-") and ("=" not in first or Path(first).exists()):
        sys.argv[1] = setting("data.shards", first)
        path = os.path.expanduser(first)
        option = option_for(path) if os.path.isdir(path) else None
        if option is not None and not any(argument.startswith("data=") for argument in sys.argv):
            sys.argv.append(f"data={option}")
    _main()
