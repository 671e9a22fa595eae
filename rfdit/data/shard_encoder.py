"""From one shard of images to one shard of cached latents."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Float
from torch import Tensor
from webdataset import TarWriter

from rfdit.batch import Condition, Images
from rfdit.data import sidecar
from rfdit.data.decoded import DecodedSample, decoded_samples
from rfdit.data.encode_progress import EncodeProgress
from rfdit.data.filters import Filters
from rfdit.data.fingerprint import Fingerprint
from rfdit.data.latent_manifest import write_text
from rfdit.data.latents import EXTENSION, pack
from rfdit.data.remote import UnreadableShardError
from rfdit.data.sample import Decoder
from rfdit.data.shards import is_remote
from rfdit.data.skips import SkipReason
from rfdit.data.source import Reader, Source
from rfdit.data.stop_signal import StopSignal
from rfdit.data.tar_source import TarSource
from rfdit.data.unfinished_files import write_locked
from rfdit.images import to_float
from rfdit.protocols import TextEncoder

Files = dict[str, str | bytes]


class ShardError(Exception):
    """A shard from which no sample could be read, and why."""


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """What becomes of a batch of decoded samples.

    moments: an autoencoder's.
    dtype: of what is stored, as in `stored`.

    Every pass has `batch_size` images, the last one of a shard filled up with copies: kernels are
    chosen by shape, and rounding with them.
    """

    moments: Callable[[Images], Float[Tensor, "b m h w"]]
    text_encoder: TextEncoder | None
    device: torch.device
    batch_size: int
    dtype: str

    @torch.no_grad()
    def __call__(self, samples: Sequence[DecodedSample]) -> Iterator[Files | SkipReason]:
        """The files of each sample's latents, or why it has none."""
        images = [sample.image for sample in samples]
        images += [images[-1]] * (self.batch_size - len(images))
        moments = self.moments(to_float(torch.stack(images).to(self.device))).cpu()
        text = None if self.text_encoder is None else self._text(self.text_encoder, samples)
        for i, sample in enumerate(samples):
            if not bool(moments[i].isfinite().all()):
                yield SkipReason.NON_FINITE_LATENT
                continue
            condition = None if text is None else text[i : i + 1]
            latents = pack(moments[i], condition, dtype=self.dtype)
            yield {"__key__": sample.key, EXTENSION: latents, **sample.files}

    def _text(self, encoder: TextEncoder, samples: Sequence[DecodedSample]) -> Condition:
        captions = [sample.files["txt"].decode() for sample in samples if "txt" in sample.files]
        if len(captions) < len(samples):
            raise ValueError(
                "text_encoder is set and the data has no captions; set data.decoder.caption_key, or leave "
                "text_encoder out"
            )
        return encoder(captions, device=self.device).map(torch.Tensor.cpu)


@dataclass(frozen=True, kw_only=True)
class ShardEncoder:
    """Encodes one shard after the other into the folder `out`.

    size: (height, width) of the images.
    """

    out: Path
    reader: Reader
    decoder: Decoder
    filters: Filters
    size: tuple[int, int]
    num_workers: int
    encoders: Encoders
    progress: EncodeProgress
    stop: StopSignal

    def finished(self, name: str) -> bool:
        """Whether a shard is there, with its report, which is written last."""
        return is_finished(self.out, name)

    def outdated(self, name: str, shard: str) -> bool:
        """Whether a finished shard may have been made from another one than is now under that name.

        If it is known that it was, its latents are removed, so that nobody trains from them; otherwise
        they stay until the shard was read.
        Raises ShardError without the shard.
        """
        then = Fingerprint(**self.report(name)["fingerprint"])
        try:
            now = then.now(shard)
        except UnreadableShardError as error:
            raise ShardError(str(error)) from None
        return not self._still_of(name, now)

    def report(self, name: str) -> dict[str, Any]:
        """What became of a finished shard's samples: source, its fingerprint, samples, skipped by reason."""
        return json.loads((self.out / f"{name}.json").read_text())

    def __call__(self, name: str, shard: str) -> None:
        """Writes NAME.tar, then NAME.json, its report, unless they are there and of the same bytes.

        Raises ShardError, leaving what it found, if no sample can be read.
        """
        try:
            fingerprint = Fingerprint.of(shard)
            source = self.reader([shard], filters=self.filters)
            if is_remote(shard) and isinstance(source, TarSource):
                with source.open_shard(0) as copy:
                    fingerprint = fingerprint.with_bytes(copy)
        except (ValueError, UnreadableShardError) as error:
            raise ShardError(str(error)) from None
        if self.finished(name) and self._still_of(name, fingerprint):
            return
        counts, written = Counter(source.skipped()), 0

        def write(file: BinaryIO) -> None:
            nonlocal written
            with TarWriter(file, encoder=False, mtime=0) as tar:
                for found in self._encoded(source):
                    if isinstance(found, SkipReason):
                        counts[found] += 1
                    else:
                        tar.write(found)
                        written += 1
            _require_readable(shard, written, counts)
            # What describes an older tar must not be found beside this one.
            self._remove(f"{name}.json", f"{name}.tar{sidecar.SUFFIX}")

        write_locked(self.out / f"{name}.tar", write)
        sidecar.write_sidecar(self.out / f"{name}.tar")
        about = {"source": shard, "fingerprint": fingerprint.as_dict()}
        self._write_report(name, about | {"samples": written, "skipped": dict(sorted(counts.items()))})

    def _still_of(self, name: str, now: Fingerprint) -> bool:
        """Whether finished latents are of the shard with this fingerprint; those that are not are removed."""
        report = self.report(name)
        then = Fingerprint(**report["fingerprint"])
        same = then.same_shard(now)
        if same is False:  # the tar first: training sees it, and without it the shard is not finished
            self._remove(f"{name}.tar", f"{name}.tar{sidecar.SUFFIX}", f"{name}.json")
        elif same and now.marks != then.marks:  # it need not be read again the next time
            self._write_report(name, report | {"fingerprint": now.as_dict()})
        return bool(same)

    def _remove(self, *files: str) -> None:
        for file in files:
            (self.out / file).unlink(missing_ok=True)

    def _write_report(self, name: str, report: Mapping[str, Any]) -> None:
        write_text(self.out / f"{name}.json", json.dumps(report, ensure_ascii=False) + "\n")

    def _encoded(self, source: Source) -> Iterator[Files | SkipReason]:
        total, batch_size = sum(source.shard_sizes), self.encoders.batch_size
        batch: list[DecodedSample] = []
        samples = decoded_samples(source, self.decoder, self.size, chunk=batch_size, workers=self.num_workers)
        with closing(samples):
            for seen, sample in enumerate(samples, start=1):
                self.stop.check()
                if isinstance(sample, SkipReason):
                    yield sample
                else:
                    batch.append(sample)
                if batch and (len(batch) == batch_size or seen == total):
                    yield from self.encoders(batch)
                    self.progress.advance(len(batch), seen / total)
                    batch = []


def is_finished(out: Path, name: str) -> bool:
    """Whether a folder has a shard of latents and its report."""
    return (out / f"{name}.tar").exists() and (out / f"{name}.json").exists()


def _require_readable(shard: str, written: int, counts: Mapping[str, int]) -> None:
    """A shard that filters leave empty is done; one that could not be read must be tried again."""
    damaged = bool(counts.keys() & set(SkipReason))
    if not written and (damaged or not counts):
        raise ShardError(f"no sample of {shard} can be used: {listed(counts) or 'it is empty'}")


def listed(counts: Mapping[str, int]) -> str:
    """`3 corrupt_image, 1 missing_caption`."""
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items()))
