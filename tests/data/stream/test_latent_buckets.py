"""Buckets of cached latents: the stream is that of the images, sample by sample, through restarts and on ranks."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rfdit.batch import Batch
from rfdit.commands.encode import encode
from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.latents.decoder import LatentDecoder
from rfdit.data.stream.buckets import AspectBuckets
from rfdit.data.stream.datamodule import StreamDataModule
from rfdit.data.tar.source import TarReader
from rfdit.images import to_float
from rfdit.processes.rank import Process
from tests.support.data.latent_shards import IDENTITY, settings
from tests.support.data.shards import Files

WriteShard = Callable[[str, Iterable[Files]], str]
SHAPES = [(16, 16), (8, 20), (20, 8), (17, 15), (9, 30), (30, 31), (40, 12)]
BUCKETS = {
    "_target_": "rfdit.data.stream.buckets.AspectBuckets",
    "resolution": 16,
    "step": 4,
    "max_aspect": 4,
}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def picture(number: int) -> Files:
    """An image of noise whose shape depends on its number."""
    height, width = SHAPES[number * number % len(SHAPES)]
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "png")
    return {"__key__": f"{number:03d}", "png": png.getvalue(), "txt": b"noise", "cls": b"0"}


@pytest.fixture
def folders(write_shard: WriteShard, tmp_path: Path) -> tuple[list[str], Path]:
    """Three shards of images, and the folder of their latents."""
    pictures = [picture(number) for number in range(60)]
    pictures[5]["png"] = b"no image"
    images = [
        write_shard(f"{n}.tar", pictures[start : start + size])
        for n, (start, size) in enumerate([(0, 25), (25, 5), (30, 30)])
    ]
    reader = {"_target_": "rfdit.data.tar.source.TarReader"}
    encode(
        settings(
            images,
            tmp_path / "out",
            batch_size=4,
            data__resolution=16,
            data__buckets=BUCKETS,
            data__reader=reader,
        )
    )
    return images, tmp_path / "out"


def buckets(**changes: Any) -> AspectBuckets:
    return AspectBuckets(**{name: value for name, value in (BUCKETS | changes).items() if name != "_target_"})


def module(shards: Sequence[str], decoder: object, **changes: Any) -> StreamDataModule:
    defaults = {
        "shards": shards,
        "reader": TarReader(),
        "decoder": decoder,
        "filters": Filters(),
        "buckets": buckets(),
        "resolution": 16,
        "batch_size": 4,
        "num_workers": 0,
        "seed": 3,
        "shuffle_shards": 2,
    }
    return StreamDataModule(**defaults | changes)


def batches(source: StreamDataModule, number: int) -> list[Batch]:
    stream = iter(source.train_dataloader())
    return [next(stream) for _ in range(number)]


def cached(out: Path, **changes: Any) -> StreamDataModule:
    return module([str(out / f"{n}.tar") for n in range(3)], LatentDecoder(autoencoder=IDENTITY), **changes)


def test_the_stream_is_that_of_the_images(folders: tuple[list[str], Path]) -> None:
    images, out = folders
    live = batches(module(images, SampleDecoder(label_key="cls")), 40)
    found = batches(cached(out), 40)
    assert len({batch.images.shape for batch in live if batch.images is not None}) > 3
    for mine, theirs in zip(found, live):
        assert mine.keys == theirs.keys
        assert torch.equal(mine.positions, theirs.positions)
        assert mine.moments is not None
        assert theirs.images is not None
        assert torch.equal(mine.moments.float(), to_float(theirs.images))


@pytest.mark.parametrize("number", [1, 7, 16])
def test_a_restart_goes_on_where_it_was(folders: tuple[list[str], Path], number: int) -> None:
    _, out = folders
    whole = [batch.keys for batch in batches(cached(out), 24)]
    first = cached(out)
    batches(first, number)
    first.batches = number  # as the trainer counts them
    second = cached(out)
    second.load_state_dict(first.state_dict())
    assert [batch.keys for batch in batches(second, 24 - number)] == whole[number:]


def test_two_ranks_see_the_same_global_batches(
    folders: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = folders
    whole = [batch.keys for batch in batches(cached(out), 20)]
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(StreamDataModule, "_process", lambda _, rank=rank: Process(rank, 2, rank))
        parts.append([batch.keys for batch in batches(cached(out, batch_size=2), 20)])
    assert [[*first, *second] for first, second in zip(*parts)] == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": None}, r"do not fit this run: data\.buckets=null \(the cache has \[\[8, 32\], "),
        ({"buckets": buckets(max_aspect=1)}, r"data\.buckets=\[\[16, 16\]\] \(the cache has "),
    ],
)
def test_other_sizes_are_refused(
    folders: tuple[list[str], Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cached(folders[1], **changes).train_dataloader()


def test_latents_of_one_size_have_no_buckets(write_shard: WriteShard, tmp_path: Path) -> None:
    encode(settings([write_shard("0.tar", [picture(0)])], tmp_path / "out"))
    source = module([str(tmp_path / "out/0.tar")], LatentDecoder(autoencoder=IDENTITY), resolution=8)
    with pytest.raises(ValueError, match=r"data\.buckets=\[.* \(the cache has null\)"):
        source.train_dataloader()
