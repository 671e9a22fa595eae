"""Micro-conditioning: its numbers from images, crops, buckets, flips and caches, and what the model makes of them."""

import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rfdit.batch import Batch, Condition
from rfdit.commands.encode import encode
from rfdit.conditioning import LabelConditioner, TextConditioner, drop_condition, sample_with
from rfdit.data.decode import SampleDecoder, decode_image
from rfdit.data.filters import Filters
from rfdit.data.latents.decoder import LatentDecoder
from rfdit.data.sample import RawSample, collate
from rfdit.data.skips import SkippedSampleError
from rfdit.data.stream.buckets import AspectBuckets
from rfdit.data.stream.datamodule import StreamDataModule
from rfdit.data.tar.source import TarReader
from rfdit.micro import SIZES, fourier_features, sampled_values, sizes_of
from rfdit.randomness import SampleGenerator
from tests.support.data.latent_shards import IDENTITY, settings
from tests.support.data.shards import Files

CPU = torch.device("cpu")
FIELDS: dict[str, float | None] = dict.fromkeys(SIZES) | {"aesthetic": 6.0}
WriteShard = Callable[[str, Iterable[Files]], str]


def picture(
    height: int, width: int, score: float, *, key: str = "0", suffix: str = "png", **more: Any
) -> Files:
    """Columns and rows have their numbers as red and green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, suffix, **more)
    metadata = json.dumps({"aesthetic": score}).encode()
    return {"__key__": key, suffix: file.getvalue(), "txt": b"a photo", "json": metadata}


def decoded(raw: RawSample, size: tuple[int, int], **changes: Any) -> dict[str, float]:
    sample = SampleDecoder(micro=FIELDS, **changes)(raw, size)
    assert sample.micro is not None
    return dict(zip(FIELDS, sample.micro, strict=True))


@pytest.mark.parametrize(
    ("original", "target", "crop"),
    [
        ((40, 60), (20, 20), (0, 5)),
        ((60, 40), (20, 20), (5, 0)),
        ((32, 32), (16, 32), (8, 0)),
        ((8, 8), (16, 16), (0, 0)),
    ],
)
def test_sizes_and_crop(original: tuple[int, int], target: tuple[int, int], crop: tuple[int, int]) -> None:
    found = decoded(picture(*original, 5.5), target)
    assert tuple(found.values()) == (*original, *crop, *target, 5.5)


def test_the_crop_begins_where_the_numbers_say() -> None:
    """The red of the first column is the number of its column in the image."""
    raw = picture(50, 200, 0)
    found, image = decoded(raw, (50, 50)), decode_image(raw["png"], (50, 50))
    assert image[0, 25, 0] == found["crop_left"] == 75
    raw = picture(200, 50, 0)
    found, image = decoded(raw, (25, 25)), decode_image(raw["png"], (25, 25))
    assert abs(float(image[1, 12, 12]) - 2 * (found["crop_top"] + 12)) <= 2


def test_the_size_is_that_of_the_upright_image_before_any_reduction() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    raw = picture(400, 100, 0, suffix="jpeg", exif=exif)
    found = decoded({"jpg" if name == "jpeg" else name: value for name, value in raw.items()}, (16, 16))
    assert (found["original_height"], found["original_width"]) == (100, 400)
    assert (found["crop_top"], found["crop_left"]) == (0, 24)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b'{"score": 5}', "missing_number.*there is no json.aesthetic; json has score"),
        (b'{"aesthetic": "good"}', "json.aesthetic is 'good', not a number"),
        (b'{"aesthetic": true}', "json.aesthetic is True, not a number"),
        (b'{"aesthetic": NaN}', "NaN|json.aesthetic is nan"),
        (b"{", "corrupt_metadata"),
    ],
)
def test_a_sample_without_the_number_is_skipped(metadata: bytes, message: str) -> None:
    with pytest.raises(SkippedSampleError, match=message):
        decoded(picture(8, 8, 0) | {"json": metadata}, (8, 8))


@pytest.fixture
def shards(write_shard: WriteShard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """Images of several shapes, and the folder of their latents in buckets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    shapes = [(16, 16), (8, 20), (20, 8), (30, 31), (9, 30)]
    images = write_shard("0.tar", [picture(*shapes[i % 5], i / 4, key=f"{i:02d}") for i in range(24)])
    buckets = {"_target_": "rfdit.data.stream.buckets.AspectBuckets", "resolution": 16, "step": 4}
    reader = {"_target_": "rfdit.data.tar.source.TarReader"}
    decoder = {"_target_": "rfdit.data.decode.SampleDecoder"}
    encode(
        settings(
            [images], tmp_path / "out", data__resolution=16, data__buckets=buckets, data__reader=reader,
            data__decoder=decoder,
        )
    )  # fmt: skip
    return images, tmp_path / "out"


def batches(shard: str, decoder: Any, number: int, **changes: Any) -> list[Batch]:
    module = StreamDataModule(
        shards=[shard], reader=TarReader(), decoder=decoder, filters=Filters(), resolution=16, batch_size=2,
        num_workers=0, seed=0, buckets=AspectBuckets(resolution=16, step=4), **changes,
    )  # fmt: skip
    stream = iter(module.train_dataloader())
    return [next(stream) for _ in range(number)]


def test_caches_and_flips_have_the_numbers_of_the_images(shards: tuple[str, Path]) -> None:
    images, out = shards
    live = batches(images, SampleDecoder(micro=FIELDS), 20)
    cached = batches(str(out / "0.tar"), LatentDecoder(autoencoder=IDENTITY, micro=FIELDS), 20)
    flipped = batches(images, SampleDecoder(micro=FIELDS), 20, flip=True)
    assert len({tuple(row.tolist()) for batch in live for row in batch.micro}) > 20
    for batch, other, mirrored in zip(live, cached, flipped, strict=True):
        assert batch.micro is not None
        assert batch.images is not None
        assert torch.equal(batch.micro, other.micro)
        assert torch.equal(batch.micro, mirrored.micro)
        height, width = batch.images.shape[2:]
        assert batch.micro[:, 4:6].tolist() == [[height, width]] * 2


def test_features_are_those_of_a_time() -> None:
    from rfdit.model.layers.embeddings import TimeEmbedding

    values = torch.tensor([[0.25], [512.0]])
    embedding = TimeEmbedding(width=8)
    captured: list[torch.Tensor] = []
    next(m for m in embedding.modules() if isinstance(m, torch.nn.Linear)).register_forward_pre_hook(
        lambda _, args: captured.append(args[0])
    )
    embedding(values[:, 0] / 1000)
    torch.testing.assert_close(captured[0], fourier_features(values), rtol=1e-4, atol=1e-4)
    two = fourier_features(torch.tensor([[3.0, 7.0]]))
    assert torch.equal(two[:, :256], fourier_features(torch.tensor([[3.0]])))
    assert torch.equal(two[:, 256:], fourier_features(torch.tensor([[7.0]])))


def batch_of(n: int) -> Batch:
    raw = picture(8, 20, 5.0)
    sample = SampleDecoder(micro=FIELDS)(raw, (8, 8))
    return replace(collate([sample] * n, torch.arange(n)), labels=torch.zeros(n, dtype=torch.long))


class Lengths(torch.nn.Module):
    width = pooled_width = length = 4

    def forward(self, captions: Any, *, device: torch.device) -> Condition:
        pooled = torch.tensor([[float(len(caption))] * 4 for caption in captions], device=device)
        return Condition(
            pooled=pooled, tokens=pooled[:, None].expand(-1, 4, -1), mask=torch.ones(len(pooled), 4).bool()
        )


def conditioners() -> list[Any]:
    return [
        LabelConditioner(num_classes=3, width=8, micro=FIELDS),
        TextConditioner(encoder=Lengths(), micro=FIELDS),
    ]


@pytest.mark.parametrize("kind", [0, 1], ids=["labels", "text"])
def test_numbers_are_added_to_the_pooled_vector_and_dropped_with_the_condition(kind: int) -> None:
    conditioner, batch = conditioners()[kind], batch_of(64)
    plain = conditioner.inputs(batch).inputs
    fresh = conditioner(conditioner.inputs(batch), device=CPU)
    inner = conditioner.encoder(plain, device=CPU).pooled if kind else conditioner.table(plain)
    assert torch.equal(fresh.pooled, inner)  # as without, until it is trained
    torch.nn.init.normal_(conditioner.micro.second.weight)
    cond = conditioner(conditioner.inputs(batch), device=CPU)
    assert batch.micro is not None
    torch.testing.assert_close(cond.pooled, inner + conditioner.micro(batch.micro))
    other = conditioner(replace(conditioner.inputs(batch), values=batch.micro + 1), device=CPU)
    assert not torch.allclose(other.pooled, cond.pooled)
    null = conditioner.null(device=CPU)
    generator = SampleGenerator(seed=0, keys=torch.arange(64))
    dropped = drop_condition(cond, null, probability=0.5, generator=generator).pooled
    rows = (dropped == null.pooled).all(dim=1)
    assert 16 < int(rows.sum()) < 48
    assert torch.equal(dropped[~rows], cond.pooled[~rows])
    cond.pooled.sum().backward()
    assert conditioner.micro.first.weight.grad.abs().sum() > 0


def test_without_fields_nothing_is_drawn_or_added() -> None:
    torch.manual_seed(0)
    plain = LabelConditioner(num_classes=3, width=8)
    after = torch.rand(1)
    torch.manual_seed(0)
    torch.nn.init.normal_(torch.nn.Embedding(4, 8).weight, std=0.02)
    assert torch.equal(torch.rand(1), after)
    assert list(plain.state_dict()) == ["table.weight"]


def test_numbers_of_sampling() -> None:
    assert sampled_values(FIELDS, {}, (64, 96)) == [64, 96, 0, 0, 64, 96, 6]
    assert sampled_values(FIELDS, {"aesthetic": 7, "crop_top": 3}, (64, 96)) == [64, 96, 3, 0, 64, 96, 7]
    conditioner = conditioners()[0]
    torch.nn.init.normal_(conditioner.micro.second.weight)
    conditioner.micro.image_size = (64, 96)
    sample_with(conditioner, {"aesthetic": 7.0})
    expected = conditioner.table(torch.tensor([1])) + conditioner.micro(
        torch.tensor([[64.0, 96, 0, 0, 64, 96, 7]])
    )
    torch.testing.assert_close(conditioner([1], device=CPU).pooled, expected)
    with pytest.raises(
        ValueError, match=r"^micro\.aestetic is not a field with which the model was trained; it has o"
    ):
        sample_with(conditioner, {"aestetic": 7.0})
    with pytest.raises(
        ValueError, match=r"micro\.aesthetic has no effect: the model was trained without micro"
    ):
        sample_with(LabelConditioner(num_classes=3, width=8), {"aesthetic": 7.0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"aesthetic": None}, r"conditioner\.micro\.aesthetic=null: null stands for the image's own number"),
        ({"crop_top": math.inf}, r"conditioner\.micro\.crop_top=inf must be finite"),
        ({}, r"conditioner\.micro has no fields; use micro=none"),
    ],
)
def test_fields_that_cannot_be_sampled_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelConditioner(num_classes=3, width=8, micro=fields)


def test_data_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set data\.decoder\.micro to the same fields"):
        conditioners()[1].inputs(replace(batch_of(2), micro=None))


def test_every_size_has_its_place() -> None:
    assert tuple(sizes_of((40, 60), (20, 20))) == SIZES
