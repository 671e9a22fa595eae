"""What a folder of cached latents says of itself, and what of it must agree with what reads it."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rfdit.data.unfinished_files import write_locked
from rfdit.precision import NAMES
from rfdit.protocols import Pretrained

MANIFEST = "latents.json"  # beside the shards
FORMAT = 2
CROP = "shorter side resized, centre cropped"  # what `decode_image` does


@dataclass(frozen=True, kw_only=True)
class LatentManifest:
    """How a folder of latent shards was made.

    latents: the latent contract: name, channels, downsampling, scale, shift.
    resolution, crop: (height, width) of the images, and how they got it.
    dtype: how numbers are stored, as it was asked for.
    autoencoder, text_encoder: the settings that decide what they compute, not where their weights
        are or how fast they run. No text_encoder, no text features.
    weights: of each encoder that has any, as `weights_of` describes them.
    arithmetic: fp32 or bf16, of each of these encoders.
    decoder, filters: settings of what was read.
    shards: name of each latent shard -> the shard it was made from, finished or not.
    command: what a shell has to run to finish them.
    """

    latents: dict[str, Any]
    resolution: list[int]
    dtype: str
    autoencoder: dict[str, Any]
    text_encoder: dict[str, Any] | None
    weights: dict[str, dict[str, str]]
    arithmetic: dict[str, str]
    decoder: dict[str, Any]
    filters: dict[str, Any]
    shards: dict[str, str]
    command: str
    crop: str = CROP
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def differences(self, here: "LatentManifest") -> list[str]:
        """What another run's manifest says otherwise, as `mismatches` does; it may have more shards."""
        settings = {"decoder": "data.decoder", "filters": "data.filters", "resolution": "data.resolution"}
        apart = ("weights", "arithmetic", "shards", "command")
        found: list[str] = []
        for name in (field.name for field in fields(self) if field.name not in apart):
            cached, other = getattr(self, name), getattr(here, name)
            if isinstance(cached, dict) and isinstance(other, dict):
                cached = dict.fromkeys(other) | cached  # also what only the other one names
            found += mismatches(cached, other, settings.get(name, name))
        found += other_weights(self.weights, here.weights)
        for name in sorted(self.arithmetic.keys() & here.arithmetic.keys()):
            found += mismatches(self.arithmetic[name], here.arithmetic[name], f"{name}.dtype")
        gone = [shard for name, shard in self.shards.items() if here.shards.get(name) != shard]
        if gone:
            found.append(
                f"data.shards lacks {len(gone)} of the {len(self.shards)} shards of the cache, the first is {gone[0]}"
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
        lacking = [field.name for field in fields(cls) if field.name not in values]
        if lacking:
            raise ValueError(
                f"{place} lacks {', '.join(lacking)}; encode anew with python -m rfdit.data.encode"
            )
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def write_text(path: Path, text: str) -> None:
    """Replaces the file at once."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_locked(path, write)


def agree(manifest: LatentManifest, out: Path) -> None:
    """Writes the manifest, or adds its new shards to the one that `out` has.

    Raises ValueError if that one says something else.
    """
    place = out / MANIFEST
    if not place.exists():
        write_text(place, manifest.to_json())
    cached = read_manifest(str(place))
    if differences := cached.differences(manifest):
        raise ValueError(
            f"out={out} holds latents that were made otherwise: {', '.join(differences)}; set what the cache "
            "has, or give another out"
        )
    if cached.shards != manifest.shards:
        write_text(place, manifest.to_json())


def weights_of(name: str, node: Mapping[str, Any] | None, encoder: object) -> dict[str, dict[str, str]]:
    """The encoder `name` -> its weights' sha256 and the setting that says where they were.

    Empty for one without weights, or with weights that training changes.
    """
    if not isinstance(encoder, Pretrained) or node is None:
        return {}
    setting = "pretrained" if "pretrained" in node else "source"
    return {
        name: {"sha256": encoder.weights_digest(), "place": f"{name}.{setting}={_brief(node.get(setting))}"}
    }


def arithmetic_of(device: torch.device, **encoders: object) -> dict[str, str]:
    """In what each pretrained encoder computes on a device: fp32 or bf16."""
    return {
        name: NAMES[encoder.dtype_on(device)]
        for name, encoder in encoders.items()
        if isinstance(encoder, Pretrained)
    }


def other_weights(
    cached: Mapping[str, Mapping[str, str]], here: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """As `mismatches`, for encoders that both have and whose weights are not the same."""
    for name in sorted(cached.keys() & here.keys()):
        mine, theirs = here[name], cached[name]
        if mine["sha256"] != theirs["sha256"]:
            yield (
                f"{mine['place']} has the weights {mine['sha256'][:12]} (the cache has {theirs['sha256'][:12]}, of "
                f"{theirs['place']})"
            )


def beside(address: str, name: str) -> str:
    """The path or URL of another file in the same folder."""
    path, question, query = address.partition("?") if "://" in address else (address, "", "")
    return os.path.join(os.path.dirname(path), name) + question + query


def place_of(shard: str) -> str:
    """Where the manifest of the folder, or the URL, that holds a shard is."""
    if shard.startswith("pipe:"):
        raise ValueError(
            f"data.shards={shard} does not say where its {MANIFEST} is; set data.decoder.manifest to its "
            "path or URL"
        )
    return beside(shard, MANIFEST)


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
