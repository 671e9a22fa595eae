"""Cached latents: how a sample is stored, and how it becomes a sample of a batch again."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import fsspec
import torch
from jaxtyping import Float
from safetensors import torch as safetensors
from torch import Tensor

from rfdit.batch import Condition
from rfdit.data.latent_manifest import (
    CROP,
    LatentManifest,
    beside,
    mismatches,
    other_weights,
    place_of,
    read_manifest,
)
from rfdit.data.sample import RawSample, Sample
from rfdit.data.skips import SkippedSampleError, SkipReason

EXTENSION = "safetensors"
QUESTIONS = 32  # asked at once
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def check_dtype(dtype: str) -> None:
    """Raises ValueError for a way to store numbers that there is not."""
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} is unknown; use auto, {', '.join(DTYPES)}")


def stored(values: Float[Tensor, "..."], dtype: str) -> Float[Tensor, "..."]:
    """float32 values as they are stored.

    dtype: bf16, fp16, fp32, or auto: bf16 where that loses nothing, which is what an encoder that
        computes in bf16 gives, else fp32. So what is read is what was computed, to the last bit.
    Raises ValueError for finite values that fp16 cannot hold.
    """
    if dtype == "auto":
        half = values.bfloat16()
        return half if torch.equal(half.float(), values) else values
    kept = values.to(DTYPES[dtype])
    if dtype == "fp16" and not bool(kept.isfinite().all()):
        raise ValueError(f"dtype=fp16 cannot hold {values.abs().max():.3g}; use dtype=bf16 or dtype=auto")
    return kept


def pack(moments: Float[Tensor, "m h w"], condition: Condition | None, *, dtype: str) -> bytes:
    """The file of one sample.

    condition: its one row of text features. The tokens after the last real one are left out, since
        no model looks at them: they are most of a short caption's features.
    """
    tensors = {"moments": stored(moments, dtype)}
    if condition is not None:
        tensors["pooled"] = stored(condition.pooled[0], dtype)
        if condition.tokens is not None and condition.mask is not None:
            length = int(condition.mask[0].nonzero()[-1]) + 1
            tensors["tokens"] = stored(condition.tokens[0, :length], dtype)
            tensors["mask"] = condition.mask[0, :length]
    return safetensors.save({name: tensor.contiguous() for name, tensor in tensors.items()})


def unpack_condition(tensors: Mapping[str, Tensor], *, length: int) -> Condition:
    """One row of text features, its tokens padded with masked zeros to `length`."""
    pooled, tokens, mask = tensors["pooled"][None], tensors.get("tokens"), tensors.get("mask")
    if tokens is None or mask is None:
        return Condition(pooled)
    padded, real = tokens.new_zeros(1, length, tokens.shape[1]), mask.new_zeros(1, length)
    padded[0, : len(tokens)], real[0, : len(mask)] = tokens, mask
    return Condition(pooled, padded, real)


@dataclass(frozen=True, kw_only=True)
class LatentDecoder:
    """Reads samples that `python -m rfdit.data.encode` has written.

    autoencoder, text_encoder: the run's settings of both, which must be those the cache was made with.
    text: use the cache's text features, if it has them; otherwise captions are encoded while training.
    manifest: path or URL of the cache's latents.json, if it is not beside the shards. Whether the cache
        is finished cannot be seen then.
    partial: whether a cache that is not finished will do.
    weights: of the encoders that the run has loaded, as `weights_of` describes them; those that are
        not here are not compared.

    Calling it raises SkippedSampleError for a sample without latents, or with a damaged file.
    """

    autoencoder: Mapping[str, Any]
    text_encoder: Mapping[str, Any] | None = None
    text: bool = True
    manifest: str | None = None
    partial: bool = False
    weights: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Sample:
        """size: of the images, which `check` has found to be the cache's."""
        data = raw.get(EXTENSION)
        if data is None:
            raise SkippedSampleError(SkipReason.MISSING_LATENT)
        try:
            tensors = safetensors.load(cast(bytes, data))
            moments = tensors["moments"]
            condition = None
            if self.text and self.text_encoder is not None and "pooled" in tensors:
                condition = unpack_condition(tensors, length=self.text_encoder["length"])
            caption, label = raw.get("txt"), raw.get("cls")
            return Sample(
                key=cast(str, raw["__key__"]),
                moments=moments,
                caption=None if caption is None else cast(bytes, caption).decode(),
                label=None if label is None else int(label),
                condition=condition,
            )
        except Exception as error:  # whatever the damage leads to
            raise SkippedSampleError(SkipReason.CORRUPT_LATENT, str(error)) from error

    def check(self, shards: Sequence[str], size: tuple[int, int]) -> None:
        """Holds the run against what every folder of the shards says of itself.

        Raises ValueError, naming every setting that differs, if a folder says nothing, or if shards of
        it are still to be encoded.
        """
        places = [self.manifest] if self.manifest else sorted({place_of(shard) for shard in shards})
        for place in places:
            cached = read_manifest(place)
            self._check_settings(cached, place, size)
            if not self.manifest and not self.partial:
                _require_finished(cached, place, shards)

    def _check_settings(self, cached: LatentManifest, place: str, size: tuple[int, int]) -> None:
        differences = [
            *mismatches(cached.autoencoder, self.autoencoder, "autoencoder"),
            *mismatches(cached.resolution, list(size), "data.resolution"),
            *mismatches(cached.crop, CROP, "the crop"),
        ]
        way_out = "set what the cache has, or encode anew with python -m rfdit.data.encode"
        theirs = dict(cached.weights)
        text_weights = theirs.pop("text_encoder", None)
        differences += other_weights(theirs, self.weights)
        if self.text and cached.text_encoder is not None:
            text = list(mismatches(cached.text_encoder, self.text_encoder, "text_encoder"))
            if text_weights is not None:
                text += other_weights({"text_encoder": text_weights}, self.weights)
            differences += text
            way_out += "; data.decoder.text=false leaves the cached text features unread" if text else ""
        if differences:
            raise ValueError(
                f"the latents of {place} do not fit this run: {', '.join(differences)}; {way_out}"
            )


def _require_finished(cached: LatentManifest, place: str, shards: Sequence[str]) -> None:
    """Raises ValueError if a folder lacks shards that belong to it. Those among `shards` are there."""
    given = set(shards)
    tars = [tar for name in cached.shards if (tar := beside(place, f"{name}.tar")) not in given]
    with ThreadPoolExecutor(QUESTIONS) as pool:  # servers answer slowly
        missing = list(pool.map(_exists, tars)).count(False)
    if missing:
        total = len(cached.shards)
        raise ValueError(
            f"the latents of {place} are not finished: {total - missing} of {total} shards are there; finish them "
            f"with `{cached.command}`, or train on what there is with data.decoder.partial=true"
        )


def _exists(place: str) -> bool:
    filesystem, path = fsspec.core.url_to_fs(place)
    return bool(filesystem.exists(path))
