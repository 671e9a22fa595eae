"""Samples per second of rfdit's loader, compared with the limit and with other loaders on the same JPEGs.

    python benchmarks/data.py --shards '/data/cc12m/*.tar' --workers 2
    python benchmarks/data.py --shards ... --passes 20        # memory of the workers after each pass

All loaders do the same with each sample: they decode it as `decode_image` does (Pillow with draft mode), resize
and centre-crop it to --resolution, and collate it with its caption into batches of --batch.

- limit: --workers processes that decode JPEGs from memory and discard the result.
- rfdit: the training loader of `StreamDataModule`.
- webdataset: `WebDataset(resampled=True)` with a shuffle buffer, the same decoding, and a DataLoader.
- streaming, litdata: mosaicml's MDS and Lightning's chunks with the bytes of the JPEGs, where they are installed.

Since a shard of real photos is small, its samples are written --copies times to --temporary, under new keys, in
shards of 500. The loaders run in turns in one process, --repeats times, and medians are printed.
"""

import argparse
import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from webdataset import TarWriter

from rfdit.data.decode import SampleDecoder, decode_image, image_bytes
from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample, collate
from rfdit.data.shards import expand_shards
from rfdit.data.skips import SkippedSampleError
from rfdit.data.stream.datamodule import StreamDataModule
from rfdit.data.tar.source import TarReader

SHARD = 500  # samples per shard
WARM = 4  # batches that are not timed, while the workers start


def read_all(shards: list[str]) -> list[RawSample]:
    """All samples of the shards, in memory."""
    source = TarReader()(shards, filters=Filters())
    found = source.samples(range(sum(source.shard_sizes)))
    return [raw for raw in found if not isinstance(raw, SkippedSampleError)]


def write_copies(samples: list[RawSample], copies: int, folder: Path) -> list[str]:
    """Write the samples `copies` times, under new keys; returns the shards."""
    numbered = enumerate(itertools.chain.from_iterable(itertools.repeat(samples, copies)))
    shards = []
    while part := list(itertools.islice(numbered, SHARD)):
        shards.append(str(folder / f"{len(shards):05d}.tar"))
        with TarWriter(shards[-1], encoder=False) as tar:
            for number, raw in part:
                files = {name: data for name, data in raw.items() if not name.startswith("__")}
                tar.write({"__key__": f"{number:09d}"} | files)
    return shards


def _decode_repeatedly(images: list[bytes], side: int, seconds: float, ready: Any, counts: Any) -> None:
    torch.set_num_threads(1)
    ready.wait()
    done, end = 0, time.perf_counter() + seconds
    for data in itertools.cycle(images):
        if time.perf_counter() >= end:
            break
        decode_image(data, (side, side))
        done += 1
    counts.put(done)


def limit(samples: list[RawSample], side: int, workers: int, seconds: float = 5.0) -> float:
    """Samples per second of processes that only decode."""
    images = [data for data in map(image_bytes, samples) if data is not None]
    context = multiprocessing.get_context("fork")
    ready, counts = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_decode_repeatedly, args=(images, side, seconds, ready, counts))
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    done = sum(counts.get() for _ in processes)
    for process in processes:
        process.join()
    return done / seconds


def rate(batches: Iterable[Any], samples: int, size: Callable[[Any], int]) -> float:
    """Samples per second of a loader after its warm-up."""
    iterator = iter(batches)
    for _ in range(WARM):
        next(iterator)
    done, start = 0, time.perf_counter()
    while done < samples:
        done += size(next(iterator))
    return done / (time.perf_counter() - start)


def rfdit_loader(shards: list[str], side: int, batch: int, workers: int) -> DataLoader[Any]:
    """The training loader of `data=laion`."""
    data = StreamDataModule(
        shards=shards, reader=TarReader(), decoder=SampleDecoder(), filters=Filters(), resolution=side,
        batch_size=batch, num_workers=workers, seed=0,
    )  # fmt: skip
    return data.train_dataloader()


def webdataset_loader(shards: list[str], side: int, batch: int, workers: int) -> Iterable[Any]:
    """The usual pipeline of webdataset."""
    import webdataset as wds

    decoder = SampleDecoder()
    dataset = (
        wds.WebDataset(shards, resampled=True, shardshuffle=False, seed=0)
        .shuffle(1000)
        .map(lambda raw: decoder(raw, (side, side)))
        .batched(batch, collation_fn=lambda samples: collate(samples, torch.arange(len(samples))))
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4)


class Decoded(IterableDataset[Any]):
    """The samples of another library, decoded and collated as rfdit does."""

    def __init__(self, dataset: Iterable[Any], side: int, batch: int) -> None:
        self.dataset, self.side, self.batch = dataset, side, batch

    def __iter__(self) -> Iterator[Any]:
        decoder, samples = SampleDecoder(), []
        while True:
            for row in self.dataset:
                samples.append(
                    decoder({"__key__": "", "jpg": row["jpg"], "txt": row["txt"]}, (self.side,) * 2)
                )
                if len(samples) == self.batch:
                    yield collate(samples, torch.arange(self.batch))
                    samples = []


def streaming_loader(
    samples: list[RawSample], folder: Path, side: int, batch: int, workers: int
) -> Iterable[Any]:
    """The loader of mosaicml-streaming; raises ImportError if it is not installed."""
    from streaming import MDSWriter, StreamingDataset

    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"jpg": "bytes", "txt": "str"}) as out:
            for raw in samples:
                out.write({"jpg": image_bytes(raw), "txt": raw["txt"].decode()})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch)
    return DataLoader(Decoded(dataset, side, batch), batch_size=None, num_workers=workers, prefetch_factor=4)


def _identity(raw: dict[str, Any]) -> dict[str, Any]:
    return raw


def litdata_loader(
    samples: list[RawSample], folder: Path, side: int, batch: int, workers: int
) -> Iterable[Any]:
    """The loader of litdata; raises ImportError if it is not installed."""
    import litdata

    if not folder.exists():
        rows = [{"jpg": image_bytes(raw), "txt": raw["txt"].decode()} for raw in samples]
        litdata.optimize(fn=_identity, inputs=rows, output_dir=str(folder), chunk_bytes="64MB", num_workers=1)
    dataset = litdata.StreamingDataset(str(folder), shuffle=True)
    return DataLoader(Decoded(dataset, side, batch), batch_size=None, num_workers=workers, prefetch_factor=4)


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Print the median rate of every loader and its share of the limit."""
    originals = read_all(expand_shards(options.shards))
    shards = write_copies(originals, options.copies, folder)
    samples = originals * options.copies
    side, batch, workers = options.resolution, options.batch, options.workers
    loaders: dict[str, Callable[[], Iterable[Any]]] = {
        "rfdit": lambda: rfdit_loader(shards, side, batch, workers),
        "webdataset": lambda: webdataset_loader(shards, side, batch, workers),
        "streaming": lambda: streaming_loader(samples, folder / "mds", side, batch, workers),
        "litdata": lambda: litdata_loader(samples, folder / "lit", side, batch, workers),
    }
    rates: dict[str, list[float]] = {"limit": []}
    absent: set[str] = set()
    for _ in range(options.repeats):
        rates["limit"].append(limit(originals, side, workers))
        for name, make in loaders.items():
            multiprocessing.set_start_method("fork", force=True)  # litdata changes it
            try:
                rates.setdefault(name, []).append(rate(make(), options.samples, len))
            except ImportError as error:
                absent.add(f"{name}: {error}")
                rates.pop(name, None)
    photo = statistics.mean(len(image_bytes(raw) or b"") for raw in originals) / 1e3
    print(f"{len(originals)} images of {photo:.0f} KB, {options.copies} times; {side} px, batch {batch}")
    print(f"{workers} workers; medians of {options.repeats} repeats of {options.samples} samples")
    top = statistics.median(rates["limit"])
    for name, found in rates.items():
        median = statistics.median(found)
        print(
            f"{name:12} {median:8.0f}/s  {median / top:5.0%} of the limit  ({min(found):.0f} to {max(found):.0f})"
        )
    for line in sorted(absent):
        print(f"not measured: {line}")


def watch_memory(options: argparse.Namespace, folder: Path) -> None:
    """Print the private memory of the workers after every pass over the shards."""
    shards = write_copies(read_all(expand_shards(options.shards)), options.copies, folder)
    loader = rfdit_loader(shards, options.resolution, options.batch, options.workers)
    samples = len(read_all(expand_shards(options.shards))) * options.copies
    iterator = iter(loader)
    for done in range(options.passes):
        for _ in range(samples // options.batch):
            next(iterator)
        private = [private_megabytes(worker.pid) for worker in iterator._workers]  # type: ignore[attr-defined]
        print(f"pass {done + 1:2}: " + "  ".join(f"{size:6.1f} MB" for size in private), flush=True)


def private_megabytes(pid: int) -> float:
    """Memory that a process does not share with others, in MB (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True, help="shards with JPEGs and captions")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument(
        "--samples", type=int, default=4000, help="samples that are timed per loader and repeat"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--passes", type=int, default=0, help="measure memory over this many passes instead")
    parser.add_argument("--temporary", default=None, help="folder for the copies")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.temporary))
    try:
        (watch_memory if options.passes else compare)(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
