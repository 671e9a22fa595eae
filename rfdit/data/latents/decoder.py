"""Cached latents: the file of one sample, and the decoder that reads it."""

import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

import fsspec
import torch
from jaxtyping import Float
from safetensors import torch as safetensors
from torch import Tensor

from rfdit.batch import Condition
from rfdit.data.decode import find_caption, find_label, find_micro
from rfdit.data.latents.manifest import (
    CROP,
    TEACHER,
    LatentManifest,
    beside,
    check_recorded_alike,
    is_of,
    manifest_path,
    mismatches,
    other_weights,
    read_manifest,
)
from rfdit.data.sample import RawSample, Sample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.micro import Fields

EXTENSION = "safetensors"
LOOKUPS = 32  # in parallel, since servers answer slowly
CHECKSUMS = "crc32"  # in the file's metadata: its own, then EXTENSION=CHECKSUM of the sample's other files
UNKNOWN = "--------"  # in place of its own checksum until that is computed
ORIGINAL, SIZE = "original_size", "image_size"  # tensors of a sample's file: (height, width)
NOISE = "noise"  # likewise: (seed, key)
CACHE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def check_dtype(dtype: str, *, setting: str = "dtype") -> None:
    """Raises ValueError for an unknown dtype."""
    if dtype != "auto" and dtype not in CACHE_DTYPES:
        raise ValueError(f"{setting}={dtype} is unknown; use auto, {', '.join(CACHE_DTYPES)}")


def to_stored(values: Float[Tensor, "..."], dtype: str) -> Float[Tensor, "..."]:
    """Convert float32 values to the dtype in which they are stored.

    dtype: bf16, fp16, fp32, or auto: bf16 if that loses nothing (an encoder computes in bf16), else
        fp32, so that the values are read as they were computed, to the last bit.
    Raises ValueError for finite values that fp16 cannot hold.
    """
    if dtype == "auto":
        half = values.bfloat16()
        return half if torch.equal(half.float(), values) else values
    converted = values.to(CACHE_DTYPES[dtype])
    if dtype == "fp16" and not bool(converted.isfinite().all()):
        raise ValueError(f"dtype=fp16 cannot hold {values.abs().max():.3g}; use dtype=bf16 or dtype=auto")
    return converted


def pack(
    moments: Float[Tensor, "m h w"],
    condition: Condition | None,
    *,
    dtype: str,
    files: Mapping[str, bytes] = MappingProxyType({}),
    original: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    noise: tuple[int, int] | None = None,
    features: Float[Tensor, "f rows columns"] | None = None,
) -> bytes:
    """The safetensors file of one sample, with checksums of itself and of the sample's other files.

    condition: its one row of text features. Padding after the last real token is left out: no model
        reads it, and it is most of a short caption's features.
    files: the other files, by extension.
    original, size: (height, width) of the image in its file, and as it was encoded; left out if not known.
    noise: seed and key of the noise that the latents were made from, of recorded pairs.
    features: those of the image's patches.
    """
    tensors = {"moments": to_stored(moments, dtype)}
    if features is not None:
        tensors["features"] = to_stored(features, dtype)
    for name, pair in ((ORIGINAL, original), (SIZE, size), (NOISE, noise)):
        if pair is not None:
            tensors[name] = torch.tensor(pair)
    if condition is not None:
        tensors["pooled"] = to_stored(condition.pooled[0], dtype)
        if condition.tokens is not None and condition.mask is not None:
            length = int(condition.mask[0].nonzero()[-1]) + 1
            tensors["tokens"] = to_stored(condition.tokens[0, :length], dtype)
            tensors["mask"] = condition.mask[0, :length]
    # In one entry, since the order of several is not fixed.
    checksums = " ".join(
        [UNKNOWN, *(f"{extension}={_crc32(files[extension])}" for extension in sorted(files))]
    )
    data = safetensors.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {CHECKSUMS: checksums}
    )
    head, tail = _around_checksum(data)
    return head + _crc32(head, tail).encode() + tail


def unpack(data: bytes, files: Mapping[str, str | bytes]) -> dict[str, Tensor]:
    """The tensors in a file of `pack`.

    files: the sample's files by extension, of which those that have a checksum are compared.
    Raises ValueError if a checksum is missing, or differs.
    """
    head, tail = _around_checksum(data)
    if data[len(head) : len(head) + len(UNKNOWN)] != _crc32(head, tail).encode():
        raise ValueError("its bytes are not those that were written")
    length = int.from_bytes(data[:8], "little")
    _, *checksums = json.loads(data[8 : 8 + length])["__metadata__"][CHECKSUMS].split(" ")
    for checksum in checksums:
        extension, _, expected = checksum.rpartition("=")
        if _crc32(cast(bytes, files.get(extension, b""))) != expected:
            raise ValueError(f"its .{extension} is not the one that was written with it")
    return safetensors.load(data)


def _around_checksum(data: bytes) -> tuple[bytes, bytes]:
    """The bytes of a file before its own checksum, and those after it."""
    key = f'"{CHECKSUMS}":"'.encode()
    before, found, _ = data.partition(key)
    if not found:
        raise ValueError("it has no checksum")
    at = len(before) + len(key)
    return data[:at], data[at + len(UNKNOWN) :]


def _crc32(*parts: bytes) -> str:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return f"{crc:08x}"


def unpack_condition(tensors: Mapping[str, Tensor], *, length: int) -> Condition:
    """One row of text features, its tokens padded to `length` with masked zeros."""
    pooled, tokens, mask = tensors["pooled"][None], tensors.get("tokens"), tensors.get("mask")
    if tokens is None or mask is None:
        return Condition(pooled)
    padded, real = tokens.new_zeros(1, length, tokens.shape[1]), mask.new_zeros(1, length)
    padded[0, : len(tokens)], real[0, : len(mask)] = tokens, mask
    return Condition(pooled, padded, real)


def _original(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(height, width) of the image before it was resized; raises SkippedSampleError for a sample without it."""
    if ORIGINAL not in tensors:
        raise SkippedSampleError(SkipReason.CORRUPT_LATENT, f"it has no {ORIGINAL}")
    height, width = tensors[ORIGINAL].tolist()
    return height, width


def _noise(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Seed and key of the noise that the latents were made from; None for those of an image."""
    if NOISE not in tensors:
        return None
    seed, key = tensors[NOISE].tolist()
    return seed, key


def encoded_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the image whose latents are in a file of `pack`.

    Raises SkippedSampleError for a file that does not have it.
    """
    try:
        height, width = safetensors.load(data)[SIZE].tolist()
        return height, width
    except Exception as error:  # safetensors raises many kinds of errors
        raise SkippedSampleError(SkipReason.CORRUPT_LATENT, f"it has no {SIZE} ({error})") from error


@dataclass(frozen=True, kw_only=True)
class LatentDecoder:
    """Decodes samples that `rfdit encode` or `rfdit sample output=latents` has written. A `CacheDecoder`.

    autoencoder, text_encoder: the run's settings of both, which must be those of the cache.
    text: use the cache's text features, if it has them; else captions are encoded in training.
    teacher: the run's settings of the network whose features of images are read, which must be that of the cache;
        None reads none.
    micro: fields of micro-conditioning, as for `SampleDecoder`; the cache has the images' sizes.
    manifest: path or URL of the cache's latents.json, if it is not beside the shards. A cache that is
        not finished is not noticed then.
    partial: accept a cache that is not finished.
    weights: digests of the encoders that the run has loaded, as `weights_of` gives them; other encoders are
        not compared.

    A call raises SkippedSampleError for a sample without latents, with latents that are not finite or of another
    size, or with a file that has changed since it was written.
    """

    autoencoder: Mapping[str, Any] = field(repr=False)
    text_encoder: Mapping[str, Any] | None = field(default=None, repr=False)
    teacher: Mapping[str, Any] | None = field(default=None, repr=False)
    text: bool = True
    micro: Fields | None = None
    manifest: str | None = None
    partial: bool = False
    weights: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def expecting(self, weights: Mapping[str, Mapping[str, str]]) -> "LatentDecoder":
        """This decoder with the `weights` of a run."""
        return replace(self, weights=weights)

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Sample:
        """The sample, whose latents must be of an image of `size`."""
        data = raw.get(EXTENSION)
        if data is None:
            raise SkippedSampleError(SkipReason.MISSING_LATENT, f"there is no {EXTENSION} file")
        try:
            tensors = unpack(cast(bytes, data), raw)
            moments = tensors["moments"]
            self._check_shape(moments, size)
            noise = _noise(tensors)
            features = None if self.teacher is None else tensors["features"]
            condition = None
            if self.text and self.text_encoder is not None and "pooled" in tensors:
                condition = unpack_condition(tensors, length=self.text_encoder["length"])
        except Exception as error:  # safetensors raises many kinds of errors
            raise SkippedSampleError(SkipReason.CORRUPT_LATENT, str(error)) from error
        if not all(bool(x.isfinite().all()) for x in tensors.values()):
            raise SkippedSampleError(SkipReason.NON_FINITE_LATENT)
        micro = None
        if self.micro is not None:
            micro = find_micro(raw, self.micro, lambda: _original(tensors), size)
        return Sample(
            key=cast(str, raw["__key__"]),
            moments=moments,
            micro=micro,
            caption=find_caption(raw, "txt") if "txt" in raw else None,
            label=find_label(raw, "cls") if "cls" in raw else None,
            condition=condition,
            noise=noise,
            features=features,
        )

    def _check_shape(self, moments: Tensor, size: tuple[int, int]) -> None:
        """Raises ValueError for moments that are not of an image of `size`."""
        down = self.autoencoder.get("downsampling")
        sides = None if down is None else tuple(side // down for side in size)
        if moments.ndim != 3 or sides not in (None, tuple(moments.shape[1:])):
            raise ValueError(f"its moments have the shape {tuple(moments.shape)}")

    def check(
        self,
        shards: Sequence[str],
        size: tuple[int, int],
        buckets: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Compare the run with the manifest of every folder of shards.

        size: (height, width) of the images. buckets: all of these sizes, if there are several.

        Raises ValueError, naming every setting that differs, if a manifest is missing, if shards of a folder
        have yet to be encoded, or if the pairs of several folders were recorded in different ways.
        """
        places = [self.manifest] if self.manifest else sorted({manifest_path(shard) for shard in shards})
        manifests = {place: read_manifest(place) for place in places}
        for place, cached in manifests.items():
            check_recorded_alike(place, cached, places[0], manifests[places[0]])
            self._check_settings(cached, place, size, buckets)
            if not self.manifest and not self.partial:
                _require_finished(cached, place, shards)

    def _check_settings(
        self,
        cached: LatentManifest,
        place: str,
        size: tuple[int, int],
        buckets: Sequence[tuple[int, int]] | None,
    ) -> None:
        sizes = None if buckets is None else [list(each) for each in buckets]
        differences = [
            *mismatches(cached.autoencoder, self.autoencoder, "autoencoder"),
            *mismatches(cached.resolution, list(size), "data.resolution"),
            *mismatches(cached.buckets, sizes, "data.buckets"),
            *mismatches(cached.crop, CROP, "the crop"),
        ]
        remedy = "set what the cache has, or encode again with rfdit encode"
        text_weights = {name: each for name, each in cached.weights.items() if is_of(name, "text_encoder")}
        apart = {*text_weights, TEACHER}
        image_weights = {name: each for name, each in cached.weights.items() if name not in apart}
        differences += other_weights(image_weights, self.weights)
        if self.teacher is not None:
            differences += self._check_teacher(cached)
        if self.text and cached.text_encoder is not None:
            text = list(mismatches(cached.text_encoder, self.text_encoder, "text_encoder"))
            text += other_weights(text_weights, self.weights)
            differences += text
            remedy += "; data.decoder.text=false leaves the cached text features unread" if text else ""
        if differences:
            raise ValueError(
                f"the latents of {place} do not fit this run: {', '.join(differences)}; {remedy}"
            )

    def _check_teacher(self, cached: LatentManifest) -> list[str]:
        """The differences between the network that the auxiliary loss reads and that of the cached features."""
        if cached.teacher is None:
            return ["auxiliary reads features of the images, and the cache has none"]
        weights = {name: each for name, each in cached.weights.items() if name == TEACHER}
        return [*mismatches(cached.teacher, self.teacher, TEACHER), *other_weights(weights, self.weights)]


def _require_finished(cached: LatentManifest, place: str, shards: Sequence[str]) -> None:
    """Raises ValueError if a folder lacks shards of its manifest; those among `shards` exist."""
    given = set(shards)
    tars = [tar for name in cached.shards if (tar := beside(place, f"{name}.tar")) not in given]
    with ThreadPoolExecutor(LOOKUPS) as pool:
        missing = list(pool.map(_exists, tars)).count(False)
    if missing:
        total = len(cached.shards)
        raise ValueError(
            f"the latents of {place} are not finished: {total - missing} of {total} shards exist; finish them "
            f"with `{cached.command}`, or train on what there is with data.decoder.partial=true"
        )


def _exists(place: str) -> bool:
    filesystem, path = fsspec.core.url_to_fs(place)
    return bool(filesystem.exists(path))
