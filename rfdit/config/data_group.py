"""The data group of commands that read its shards without training: only parts of it are built."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from rfdit.config.build import build, validate
from rfdit.data.shards import resolve_shards
from rfdit.data.source import Reader, RecordingReader


def validate_parts(cfg: DictConfig) -> dict[str, Any]:
    """The validated configuration of a command that does not build the whole data group.

    Each part is checked against its own target; settings that only training needs are allowed.
    """
    OmegaConf.set_struct(cfg, False)
    cfg.data.pop("_target_", None)
    return validate(cfg)


def build_reader(data: dict[str, Any], *, record_dead_links: bool = True) -> tuple[Reader, list[str]]:
    """The reader of a validated data group, and the shards that it reads.

    record_dead_links: False for commands that count dead URLs themselves, and would count them twice
        when they are started again.
    """
    reader: Reader = build(data["reader"])
    if not record_dead_links and isinstance(reader, RecordingReader):
        reader = reader.without_record()
    shards = build(data["shards"]) if isinstance(data["shards"], dict) else data["shards"]
    return reader, resolve_shards(shards, suffixes=reader.suffixes)
