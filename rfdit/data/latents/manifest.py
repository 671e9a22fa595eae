"""The manifest of a folder of cached latents, and its comparison with the settings of a run."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from rfdit.device import NAMES
from rfdit.differences import brief, differences, walk
from rfdit.protocols import HasEncoders, Pretrained
from rfdit.storage.checked import checked_json, parse_checked_json, write_checked_json

MANIFEST = "latents.json"  # beside the shards
FORMAT = 5
TEACHER = "auxiliary.teacher"  # the setting, and the name of its weights
CROP = "shorter side resized, centre cropped"  # what `decode_image` does


@dataclass(frozen=True, kw_only=True)
class LatentManifest:
    """The description of a folder of latent shards.

    latents: the latent contract: name, channels, downsampling, scale, shift.
    resolution, crop: (height, width) of the images, and the way in which they were cropped to it.
    buckets: (height, width) of each of the sizes, with aspect-ratio buckets; None for one resolution.
    dtype: type of the stored numbers, as given in the settings.
    autoencoder, text_encoder: the settings that decide their results, not where their weights are or
        how fast they run. Without a text_encoder there are no text features.
    teacher: likewise those of the network of which there are features of the images; None without them.
    weights: digest of each encoder that has weights, as `weights_of` gives them.
    arithmetic: fp32 or bf16, of each of these encoders.
    decoder, filters: settings with which the images were read.
    shards: {name of a latent shard: the shard it is made from}, finished or not.
    command: the shell command that finishes them.
    recorded: of pairs of noise and latents, the model and the sampler that made them; None for encoded images.
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
    teacher: dict[str, Any] | None = None
    buckets: list[list[int]] | None = None
    recorded: dict[str, Any] | None = None
    crop: str = CROP
    format: int = FORMAT

    def to_json(self) -> bytes:
        return checked_json(asdict(self))

    def differences(self, here: "LatentManifest") -> list[str]:
        """The differences of another run's manifest, as `mismatches` words them; it may have more shards."""
        settings = {name: f"data.{name}" for name in ("decoder", "filters", "resolution", "buckets")}
        settings["teacher"] = TEACHER
        apart = ("weights", "arithmetic", "shards", "command")
        found = [
            difference.text("the cache has")
            for name in (field.name for field in fields(self) if field.name not in apart)
            for difference in differences(getattr(here, name), getattr(self, name), settings.get(name, name))
        ]
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
        """Raises ValueError, naming the file, if it is not a manifest of this format."""
        values = parse_checked_json(data, place=place)
        try:
            version = values["format"]
            if version == FORMAT:
                manifest = cls(**values)
                manifest._check()
                return manifest
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{place} is not a manifest of cached latents") from None
        raise ValueError(
            f"{place} has format {version}, and this rfdit reads format {FORMAT}; encode again with rfdit encode"
        )

    def _check(self) -> None:
        """Raises TypeError for fields of other types than their own, since a manifest may come from anyone."""
        texts = [self.dtype, self.command, self.crop, *self.shards.values(), *self.arithmetic.values()]
        texts += [text for about in self.weights.values() for text in (about["sha256"], about["place"])]
        settings = [self.latents, self.autoencoder, self.decoder, self.filters]
        settings += [self.text_encoder or {}, self.teacher or {}, self.recorded or {}]
        sizes = [self.resolution, *(self.buckets or [])]
        sides = all(type(size) is list and [type(side) for side in size] == [int, int] for size in sizes)
        if not (sides and all(type(x) is str for x in texts) and all(type(x) is dict for x in settings)):
            raise TypeError


def update_manifest(manifest: LatentManifest, out: Path) -> None:
    """Write the manifest, or add its new shards to the manifest of `out`.

    Raises ValueError if that one differs otherwise.
    """
    path = out / MANIFEST
    if not path.exists():
        write_checked_json(path, asdict(manifest))
    cached = read_manifest(str(path))
    if different := cached.differences(manifest):
        raise ValueError(
            f"out={out} holds latents of other settings: {', '.join(different)}; set what the cache "
            "has, or give another out"
        )
    if cached.shards != manifest.shards:
        write_checked_json(path, asdict(manifest))


def weights_of(name: str, node: Mapping[str, Any] | None, encoder: object) -> dict[str, dict[str, str]]:
    """{name: the SHA-256 of an encoder's weights, and the setting that says where they were}.

    Of an encoder that is made of others, `name.encoders.PART` for each of them.
    Empty for an encoder without weights, or with weights that are trained.
    """
    if node is not None and isinstance(encoder, HasEncoders):
        parts = {part: (node["encoders"][part], each) for part, each in encoder.encoders.items()}
        found = [weights_of(f"{name}.encoders.{part}", *about) for part, about in parts.items()]
        return {key: value for each in found for key, value in each.items()}
    if not isinstance(encoder, Pretrained) or node is None:
        return {}
    setting = next((key for key in ("pretrained", "weights") if key in node), "source")
    return {
        name: {"sha256": encoder.weights_digest(), "place": f"{name}.{setting}={brief(node.get(setting))}"}
    }


def is_of(weights: str, encoder: str) -> bool:
    """True for a name of `weights_of` that belongs to an encoder or to one that it is made of."""
    return weights == encoder or weights.startswith(f"{encoder}.")


def arithmetic_of(device: torch.device, **encoders: object) -> dict[str, str]:
    """The arithmetic of each pretrained encoder on a device: fp32 or bf16."""
    found: dict[str, str] = {}
    for name, encoder in encoders.items():
        if isinstance(encoder, HasEncoders):
            parts = {f"{name}.encoders.{part}": each for part, each in encoder.encoders.items()}
            found |= arithmetic_of(device, **parts)
        elif isinstance(encoder, Pretrained):
            found[name] = NAMES[encoder.dtype_on(device)]
    return found


def other_weights(
    cached: Mapping[str, Mapping[str, str]], here: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """The differences, as `mismatches`, between the weights of encoders that both have."""
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


def manifest_path(shard: str) -> str:
    """The path or URL of the manifest beside a shard."""
    if shard.startswith("pipe:"):
        raise ValueError(
            f"data.shards={shard} does not say where its {MANIFEST} is; set data.decoder.manifest to its "
            "path or URL"
        )
    return beside(shard, MANIFEST)


def read_manifest(place: str) -> LatentManifest:
    """The manifest at a path or URL; raises ValueError if it is missing."""
    import fsspec

    try:
        with fsspec.open(place, "rb") as file:
            data = file.read()
    except Exception as error:  # each file system has its own
        missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if missing else f"cannot be read ({type(error).__name__}: {error})"
        raise ValueError(
            f"data.shards: {place} {reason}; cached latents are shards and a {MANIFEST} beside them, as "
            "rfdit encode and rfdit sample output=latents write them"
        ) from None
    return LatentManifest.from_json(data, place=place)


def check_recorded_alike(place: str, one: LatentManifest, other_place: str, other: LatentManifest) -> None:
    """Raises ValueError for two folders whose pairs are not of the same map from noise to latents."""
    if different := [d.text() for d in differences(one.recorded, other.recorded, "recorded")]:
        raise ValueError(
            f"data.shards: the latents of {place} and {other_place} were not made in the same way: "
            f"{', '.join(different)}; train on one of them, or record both with the same model and sampler"
        )


def mismatches(cached: Any, here: Any, path: str) -> Iterator[str]:
    """`path=... (the cache has ...)` for every setting that the cache records and that differs here."""
    named = dict(walk(cached, path))
    for difference in differences(here, cached, path):
        if difference.path in named:
            yield difference.text("the cache has")
