"""What a folder of cached latents says of itself, and what of it must agree with what reads it."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from rfdit.data.cache_folder import write_atomically

MANIFEST = "latents.json"  # beside the shards
FORMAT = 1
CROP = "shorter side resized, centre cropped"  # what `decode_image` does


@dataclass(frozen=True, kw_only=True)
class LatentManifest:
    """How a folder of latent shards was made.

    latents: the latent contract: name, channels, downsampling, scale, shift.
    resolution, crop: (height, width) of the images, and how they got it.
    dtype: how numbers are stored, as it was asked for.
    autoencoder, text_encoder: the settings that decide what they compute, not where their weights
        are or how fast they run. No text_encoder, no text features.
    decoder, filters: settings of what was read.
    shards: name of each latent shard -> the shard it was made from.
    """

    latents: dict[str, Any]
    resolution: list[int]
    dtype: str
    autoencoder: dict[str, Any]
    text_encoder: dict[str, Any] | None
    decoder: dict[str, Any]
    filters: dict[str, Any]
    shards: dict[str, str]
    crop: str = CROP
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def differences(self, here: "LatentManifest") -> list[str]:
        """What another run's manifest says otherwise, as `mismatches` does."""
        settings = {"decoder": "data.decoder", "filters": "data.filters", "resolution": "data.resolution"}
        found: list[str] = []
        for name in (field.name for field in fields(self) if field.name != "shards"):
            cached, other = getattr(self, name), getattr(here, name)
            if isinstance(cached, dict) and isinstance(other, dict):
                cached = dict.fromkeys(other) | cached  # also what only the other one names
            found += mismatches(cached, other, settings.get(name, name))
        if self.shards != here.shards:
            same = len(self.shards.items() & here.shards.items())
            found.append(
                f"data.shards has {len(here.shards)} shards (the cache {len(self.shards)}, {same} of them the same)"
            )
        return found

    @classmethod
    def from_json(cls, data: bytes, *, place: str) -> "LatentManifest":
        """Raises ValueError, naming the file, if rfdit did not write it, or a later rfdit did."""
        try:
            values = json.loads(data)
            version = values["format"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{place} is no description of cached latents") from None
        if version != FORMAT:
            raise ValueError(
                f"{place} has format {version}, and this rfdit reads format {FORMAT}; encode anew with "
                "python -m rfdit.data.encode"
            )
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def write_text(path: Path, text: str) -> None:
    """Replaces the file at once."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_atomically(path, write)


def place_of(shard: str) -> str:
    """Where the manifest of the folder, or the URL, that holds a shard is."""
    if shard.startswith("pipe:"):
        raise ValueError(
            f"data.shards={shard} does not say where its {MANIFEST} is; set data.decoder.manifest to its "
            "path or URL"
        )
    address, question, query = shard.partition("?") if "://" in shard else (shard, "", "")
    return os.path.join(os.path.dirname(address), MANIFEST) + question + query


def read_manifest(place: str) -> LatentManifest:
    """From a path or a URL; raises ValueError if there is none."""
    import fsspec

    try:
        with fsspec.open(place, "rb") as file:
            data = file.read()
    except Exception as error:  # each file system has its own
        missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if missing else f"cannot be read ({type(error).__name__}: {error})"
        raise ValueError(
            f"data.shards: {place} {reason}; cached latents are shards and a {MANIFEST} beside them, as "
            "python -m rfdit.data.encode writes them"
        ) from None
    return LatentManifest.from_json(data, place=place)


def mismatches(cached: Any, here: Any, path: str) -> Iterator[str]:
    """`path=... (the cache has ...)` for every setting that the cache names and that differs here."""
    if isinstance(cached, Mapping) and isinstance(here, Mapping):
        for name in cached:
            yield from mismatches(cached[name], here.get(name), f"{path}.{name}")
    elif cached != here:
        yield f"{path}={_brief(here)} (the cache has {_brief(cached)})"


def _brief(value: Any) -> Any:
    """A whole node by its class."""
    if isinstance(value, Mapping):
        return str(value.get("_target_", "other settings")).rpartition(".")[2]
    return "null" if value is None else value
