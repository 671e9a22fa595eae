"""Pairs of images: which files are one, what is left out and why, and that both are treated alike."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rfdit.data.filters import Filters
from rfdit.data.preferences.decoder import PreferenceDecoder
from rfdit.data.sample import collate
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.stream.buckets import AspectBuckets
from rfdit.data.stream.datamodule import StreamDataModule
from rfdit.data.tar.source import TarReader

Files = dict[str, str | bytes]
DECODE = PreferenceDecoder()


def png(seed: int, height: int = 8, width: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
        file, "png"
    )
    return file.getvalue()


def pair(key: str = "a", **files: bytes) -> Files:
    """The files of a pair, some of them replaced."""
    named = {"win.png": png(0), "lose.png": png(1), "txt": b"a cat"}
    return {"__key__": key, **named, **{name.replace("_", "."): data for name, data in files.items()}}


def without(name: str) -> Files:
    return {key: value for key, value in pair().items() if key != name}


def data(shard: str, **settings: object) -> StreamDataModule:
    defaults = {
        "reader": TarReader(),
        "decoder": DECODE,
        "filters": Filters(),
        "resolution": 8,
        "batch_size": 4,
        "num_workers": 0,
        "seed": 0,
    }
    return StreamDataModule(shards=shard, **defaults | settings)


def test_a_pair_is_two_images_of_one_caption() -> None:
    sample = DECODE(pair(), (8, 8))
    assert sample.caption == "a cat"
    for seed, image in enumerate((sample.image, sample.rejected)):
        assert image is not None
        assert np.array_equal(image.numpy(), np.asarray(Image.open(io.BytesIO(png(seed)))).transpose(2, 0, 1))


@pytest.mark.parametrize("missing", ["win", "lose"])
def test_half_a_pair_is_left_out_with_the_reason(missing: str) -> None:
    with pytest.raises(SkippedSampleError, match=f"there is no {missing}.jpg; its files are ") as skipped:
        DECODE(without(f"{missing}.png"), (8, 8))
    assert skipped.value.reason == SkipReason.INCOMPLETE_PAIR
    with pytest.raises(SkippedSampleError) as damaged:
        DECODE(pair(**{f"{missing}_png": b"nothing"}), (8, 8))
    assert damaged.value.reason == SkipReason.CORRUPT_IMAGE


def test_the_preferred_images_can_be_read_alone() -> None:
    alone = PreferenceDecoder(rejected=None)(without("lose.png"), (8, 8))
    assert alone.rejected is None
    assert collate([alone], torch.tensor([0])).rejected is None


def test_names_may_be_others() -> None:
    files = {"__key__": "a", "chosen.webp": png(0), "other.jpg": png(1), "txt": b"a cat"}
    assert PreferenceDecoder(preferred="chosen", rejected="other")(files, (8, 8)).rejected is not None


def test_both_images_are_mirrored_and_cropped_alike(
    write_shard: Callable[[str, Iterable[Files]], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    same = [pair(f"{i}", win_png=png(i, 12, 30), lose_png=png(i, 12, 30)) for i in range(16)]
    shard = write_shard("0.tar", [*same, without("lose.png")])
    plain, mirrored = (
        next(iter(data(shard, batch_size=17, flip=flip).train_dataloader())) for flip in (False, True)
    )
    assert plain.skipped == {"incomplete_pair": 1}
    assert plain.num_images == 34
    for batch in (plain, mirrored):
        assert torch.equal(batch.images, batch.rejected)
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(plain.images, mirrored.images)]
    assert 0 < sum(turned) < 17


def test_buckets_are_refused() -> None:
    buckets = AspectBuckets(resolution=64, step=32, token=[8, 2])
    with pytest.raises(
        ValueError, match=r"data\.buckets are of single images, and data=preferences has pairs"
    ):
        data("x.tar", buckets=buckets)
