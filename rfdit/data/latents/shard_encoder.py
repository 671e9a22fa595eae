"""Encoding of one shard of images to one shard of cached latents."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from webdataset import TarWriter

from rfdit.batch import Condition, Images
from rfdit.data.filters import Filters
from rfdit.data.latents.decoder import EXTENSION, pack
from rfdit.data.latents.encode_progress import EncodeProgress
from rfdit.data.latents.fingerprint import Fingerprint
from rfdit.data.sample import Decoder
from rfdit.data.shards import is_remote
from rfdit.data.skips import SkippedSampleError, SkipReason, listed
from rfdit.data.source import Reader, ShardFilesSource, Source
from rfdit.data.stream.buckets import AspectBuckets
from rfdit.data.stream.one_pass import DecodedSample, decoded_samples
from rfdit.data.tar import sidecar
from rfdit.data.tar.remote import UnreadableShardError
from rfdit.images import to_float
from rfdit.processes.signals import StopSignal
from rfdit.protocols import TextEncoder
from rfdit.storage.atomic import write_atomically
from rfdit.storage.checked import (
    DamagedFileError,
    read_checked_json,
    structure,
    whole_numbers,
    write_checked_json,
)
from rfdit.storage.finished import read_record, write_record

Files = dict[str, str | bytes]


class ShardError(Exception):
    """A shard from which no sample could be read; the message gives the reason."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """Encodes a batch of decoded samples, whose images have one size.

    moments: an autoencoder's `moments`.
    teacher: gives the features of the images that are cached too.
    dtype: type of the stored numbers, as in `to_stored`.
    count_captions: takes the captions of each batch before they are encoded.

    Every pass has `batch_size` images; the last one of a shard, or of a bucket in it, is filled up with copies, since
    kernels are chosen by shape and round differently.
    """

    moments: Callable[[Images], Float[Tensor, "b m h w"]]
    text_encoder: TextEncoder | None
    teacher: Callable[[UInt8[Tensor, "b 3 H W"]], Float[Tensor, "b f rows columns"]] | None = None
    device: torch.device
    batch_size: int
    dtype: str
    count_captions: Callable[[Sequence[str]], None]

    @torch.no_grad()
    def __call__(self, samples: Sequence[DecodedSample]) -> Iterator[Files | SkippedSampleError]:
        """The files of each sample, its latents among them; or the error that says why it has no latents."""
        height, width = samples[0].image.shape[1:]
        images = [sample.image for sample in samples]
        images += [images[-1]] * (self.batch_size - len(images))
        pixels = torch.stack(images).to(self.device)
        moments = self.moments(to_float(pixels)).cpu()
        features = None if self.teacher is None else self.teacher(pixels).cpu()
        text = None if self.text_encoder is None else self._text(self.text_encoder, samples)
        for i, sample in enumerate(samples):
            seen = None if features is None else features[i]
            if not all(bool(x.isfinite().all()) for x in (moments[i], seen) if x is not None):
                yield SkippedSampleError(SkipReason.NON_FINITE_LATENT, sample.key)
                continue
            condition = None if text is None else text[i : i + 1]
            latents = pack(
                moments[i],
                condition,
                dtype=self.dtype,
                files=sample.files,
                original=sample.original,
                size=(height, width),
                features=seen,
            )
            yield {"__key__": sample.key, EXTENSION: latents, **sample.files}

    def _text(self, encoder: TextEncoder, samples: Sequence[DecodedSample]) -> Condition:
        captions = [sample.files["txt"].decode() for sample in samples if "txt" in sample.files]
        if len(captions) < len(samples):
            raise ValueError(
                "text_encoder is set and the data has no captions; set data.decoder.caption_key, or leave "
                "text_encoder out"
            )
        self.count_captions(captions)
        return encoder(captions, device=self.device).map(torch.Tensor.cpu)


@dataclass(frozen=True, kw_only=True)
class ShardEncoder:
    """Encodes one shard after the other into the folder `out`.

    size: (height, width) of the images. buckets: several sizes of them. The samples of a bucket keep their order.
    """

    out: Path
    reader: Reader
    decoder: Decoder
    filters: Filters
    size: tuple[int, int]
    buckets: AspectBuckets | None = None
    num_workers: int
    encoders: Encoders
    progress: EncodeProgress
    stop: StopSignal

    def finished(self, name: str) -> bool:
        """True if a shard is complete: it has its report, which is written last, and both are whole."""
        return is_finished(self.out, name)

    def outdated(self, name: str, shard: str) -> bool:
        """True if a finished shard may have been made from another shard than the one that now has this name.

        Latents that are known to come from another shard are removed, so that no run trains on them;
        otherwise they stay until the shard is read.
        Raises ShardError if the shard is missing.
        """
        then = Fingerprint(**self.report(name)["fingerprint"])
        try:
            now = then.now(shard)
        except UnreadableShardError as error:
            raise ShardError(str(error)) from None
        return not self._still_of(name, now)

    def report(self, name: str) -> dict[str, Any]:
        """The record of a finished shard: its source and that one's fingerprint, samples, skips by reason, checksum."""
        return read_checked_json(self.out / f"{name}.json")

    def __call__(self, name: str, shard: str) -> None:
        """Write NAME.tar, then NAME.json, its report, unless they exist and the shard's bytes are the same.

        Raises ShardError if no sample can be read, and leaves existing files as they are.
        """
        try:
            fingerprint = Fingerprint.of(shard)
            source = self.reader([shard], filters=self.filters, image_sizes=self.buckets is not None)
            if is_remote(shard) and isinstance(source, ShardFilesSource):
                with source.open_shard(0) as copy:
                    fingerprint = fingerprint.with_bytes(copy)
        except (ValueError, UnreadableShardError) as error:
            raise ShardError(str(error)) from None
        if self.finished(name) and self._still_of(name, fingerprint):
            return
        counts, written = Counter(source.skipped()), 0
        first: SkippedSampleError | None = None

        def write(file: BinaryIO) -> None:
            nonlocal written, first
            with TarWriter(file, encoder=False, mtime=0) as tar:
                for found in self._encoded(source):
                    if isinstance(found, SkippedSampleError):
                        counts[found.reason] += 1
                        first = first or found
                    else:
                        tar.write(found)
                        written += 1
            _require_readable(shard, written, counts, first)
            # The report and the index of an older tar must not stay beside this one.
            self._remove(f"{name}.json", f"{name}.tar{sidecar.SUFFIX}")

        write_atomically(self.out / f"{name}.tar", write, durable=True)
        sidecar.write_sidecar(self.out / f"{name}.tar")
        about = {"source": shard, "fingerprint": fingerprint.as_dict()}
        counted = {"samples": written, "skipped": dict(sorted(counts.items()))}
        write_record(self.out / f"{name}.json", self.out / f"{name}.tar", about | counted)

    def _still_of(self, name: str, now: Fingerprint) -> bool:
        """True if finished latents come from the shard with this fingerprint; those of another shard are removed."""
        report = self.report(name)
        then = Fingerprint(**report["fingerprint"])
        same = then.is_same_shard(now)
        if same is False:  # the tar first: training reads it, and without it the shard is not finished
            self._remove(f"{name}.tar", f"{name}.tar{sidecar.SUFFIX}", f"{name}.json")
        elif same and now.marks != then.marks:  # so that it is not read again the next time
            write_checked_json(self.out / f"{name}.json", report | {"fingerprint": now.as_dict()})
        return bool(same)

    def _remove(self, *files: str) -> None:
        for file in files:
            (self.out / file).unlink(missing_ok=True)

    def _encoded(self, source: Source) -> Iterator[Files | SkippedSampleError]:
        total, batch_size = sum(source.shard_sizes), self.encoders.batch_size
        waiting: dict[Sequence[int], list[DecodedSample]] = {}  # by size
        samples = decoded_samples(
            source,
            self.decoder,
            self.size,
            chunk=batch_size,
            workers=self.num_workers,
            sizes=self._sizes(source),
        )
        with closing(samples):
            for done, sample in enumerate(samples, start=1):
                self.stop.check()
                if isinstance(sample, SkippedSampleError):
                    yield sample
                else:
                    waiting.setdefault(tuple(sample.image.shape), []).append(sample)
                for size, batch in list(waiting.items()):
                    if len(batch) == batch_size or done == total:
                        yield from self.encoders(batch)
                        self.progress.advance(len(batch), done / total)
                        del waiting[size]

    def _sizes(self, source: Source) -> Int[np.ndarray, "n 2"] | None:
        """(height, width) of each image of a source; None without buckets."""
        if self.buckets is None:
            return None
        return np.array(self.buckets.sizes)[self.buckets.assign(source.image_sizes())]


def is_finished(out: Path, name: str, *, checksum: bool = True) -> bool:
    """True if a folder has a shard of latents and its report, both whole.

    checksum: compare all bytes of the tar; otherwise its size alone.
    """
    record = read_record(out / f"{name}.json", out / f"{name}.tar", checksum=checksum)
    try:
        with structure(out / f"{name}.json"):
            return record is not None and _is_report(record)
    except DamagedFileError:
        return False


def _is_report(record: Mapping[str, Any]) -> bool:
    """True for the fields of a report. Raises KeyError or TypeError for another structure."""
    Fingerprint(**record["fingerprint"])
    return isinstance(record["source"], str) and whole_numbers(
        [record["samples"], *record["skipped"].values()]
    )


def _require_readable(
    shard: str, written: int, counts: Mapping[str, int], first: SkippedSampleError | None
) -> None:
    """Raises ShardError if damage left no sample. A shard that filters leave empty is finished."""
    damaged = bool(counts.keys() & set(SkipReason))
    if not written and (damaged or not counts):
        example = "" if first is None else f"; the first: {first}"
        raise ShardError(f"no sample of {shard} can be used: {listed(counts) or 'it is empty'}{example}")
