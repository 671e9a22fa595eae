"""Every form of images, captions and labels, and the handling of bad ones."""

import codecs
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from rfdit.data import decode
from rfdit.data.decode import SampleDecoder, decode_image, find_caption, find_label, find_metadata
from rfdit.data.filters import Filters
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.tar.source import TarReader


def encode(image: Image.Image, form: str = "png", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def stripes(width: int, height: int) -> Image.Image:
    """Green in the middle square, red on the near sides and blue on the far ones."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    pixels[:top, :, 0] = pixels[:, :left, 0] = 255
    pixels[top + side :, :, 2] = pixels[:, left + side :, 2] = 255
    pixels[top : top + side, left : left + side, 1] = 255
    return Image.fromarray(pixels)


def plain(image: UInt8[Tensor, "3 H W"]) -> list[int]:
    """The colour of an image that has only one."""
    assert (image.amax((1, 2)) - image.amin((1, 2))).max() <= 2
    return image[:, 0, 0].tolist()


def reason(data: bytes) -> SkipReason:
    with pytest.raises(SkippedSampleError) as error:
        decode_image(data, (8, 8))
    return error.value.reason


@pytest.mark.parametrize(("width", "height"), [(300, 100), (100, 300), (64, 64), (10, 30)])
def test_the_middle_is_kept(width: int, height: int) -> None:
    image = decode_image(encode(stripes(width, height)), (64, 64))
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.uint8
    # Off the border, where the filter reaches over the edge of the crop.
    assert plain(image[:, 8:-8, 8:-8]) == [0, 255, 0]


def test_height_and_width_may_differ() -> None:
    image = decode_image(encode(stripes(400, 100)), (32, 64))
    assert image.shape == (3, 32, 64)
    assert image[:, 16, 32].tolist() == [0, 255, 0]
    assert image[:, 16, 1].tolist() == [255, 0, 0]
    assert image[:, 16, -2].tolist() == [0, 0, 255]


def test_resizing_is_antialiased() -> None:
    checks = np.indices((256, 256)).sum(0) % 2 * 255
    image = decode_image(encode(Image.fromarray(checks.astype(np.uint8))), (32, 32))
    assert (image.float() - 127.5).abs().max() < 3


def test_an_image_of_the_right_size_is_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = decode_image(encode(Image.fromarray(pixels)), (16, 16))
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [32, 600])
def test_exif_orientation_is_respected(orientation: int, side: int) -> None:
    """An image with a red top, stored as by a camera held that way; large enough for JPEG's draft mode."""
    upright = Image.new("RGB", (side, side), "blue")
    upright.paste("red", (0, 0, side, side // 2))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that the tag takes back
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(stored, "jpeg", exif=exif, quality=95), (16, 16))
    assert image[0, 2].min() > 200
    assert image[2, -3].min() > 200


def test_large_jpegs_decode_nearly_as_their_full_size_would() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((1200, 1200))
    jpeg = encode(smooth, "jpeg", quality=95)
    with Image.open(io.BytesIO(jpeg)) as full:
        expected = np.asarray(full.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    got = decode_image(jpeg, (64, 64)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - expected).max() <= 6


@pytest.mark.parametrize(
    ("mode", "form", "colour", "expected"),
    [
        ("L", "png", 90, [90, 90, 90]),
        ("L", "jpeg", 90, [90, 90, 90]),
        ("LA", "png", (0, 0), [255, 255, 255]),
        ("RGBA", "png", (255, 0, 0, 255), [255, 0, 0]),
        ("RGBA", "png", (0, 0, 0, 0), [255, 255, 255]),
        ("RGBA", "webp", (0, 0, 0, 0), [255, 255, 255]),
        ("CMYK", "jpeg", (0, 255, 255, 0), [254, 0, 0]),
        ("1", "png", 1, [255, 255, 255]),
        ("I;16", "png", 128 * 256, [128, 128, 128]),
    ],
)
def test_every_mode_becomes_rgb(mode: str, form: str, colour: object, expected: list[int]) -> None:
    data = encode(Image.new(mode, (32, 32), colour), form)
    assert plain(decode_image(data, (8, 8))) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_become_rgb(transparent: bool) -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    data = encode(image, transparency=1) if transparent else encode(image)
    assert plain(decode_image(data, (8, 8))) == ([255, 255, 255] if transparent else [10, 200, 30])


def test_damaged_images_are_told_from_too_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = encode(stripes(200, 200), "jpeg")
    assert reason(jpeg[: len(jpeg) // 2]) == SkipReason.CORRUPT_IMAGE
    assert reason(b"<html>not found</html>") == SkipReason.CORRUPT_IMAGE
    assert reason(b"") == SkipReason.CORRUPT_IMAGE
    # A row of 8 pixels costs as much as one of hundreds.
    assert reason(encode(Image.new("1", (8, 65_536)))) == SkipReason.IMAGE_TOO_LARGE
    monkeypatch.setattr(decode, "MAX_PIXELS", 100 * 100)
    assert reason(jpeg) == SkipReason.IMAGE_TOO_LARGE
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 50)  # Pillow's own guard, far beyond ours
    assert reason(jpeg) == SkipReason.IMAGE_TOO_LARGE


def decoded(**files: bytes) -> tuple[str | None, int | None]:
    """Caption and label that are looked for in a sample's JSON file."""
    sample = SampleDecoder(caption_key="json.caption", label_key="json.about.label")(
        {"__key__": "0", "png": encode(stripes(8, 8)), **files}, (8, 8)
    )
    return sample.caption, sample.label


def test_captions_and_labels_come_from_where_the_keys_say() -> None:
    files = {"__key__": "7", "png": encode(stripes(8, 8)), "txt": b" a cat\n", "cls": b"3"}
    sample = SampleDecoder()(files, (8, 8))
    assert (sample.key, sample.caption, sample.label) == ("7", "a cat", None)
    sample = SampleDecoder(caption_key=None, label_key="cls")(files, (8, 8))
    assert (sample.caption, sample.label) == (None, 3)
    about = {"caption": "ein Hündchen", "about": {"label": 5}}
    assert decoded(json=json.dumps(about).encode()) == ("ein Hündchen", 5)
    sample = SampleDecoder(caption_key="long.txt")(files | {"long.txt": b"a grey cat"}, (8, 8))
    assert sample.caption == "a grey cat"


def test_a_byte_order_mark_is_not_part_of_a_caption_or_label() -> None:
    assert find_caption({"txt": codecs.BOM_UTF8 + b"a cat\r\n"}, "txt") == "a cat"
    assert find_caption({"txt": "a cat".encode("utf-16")}, "txt") == "a cat"
    assert find_caption({"json": codecs.BOM_UTF8 + b'{"caption": "a cat"}'}, "json.caption") == "a cat"
    assert find_metadata({"json": codecs.BOM_UTF8 + b'{"caption": "a cat"}'}) == {"caption": "a cat"}
    assert find_label({"cls": codecs.BOM_UTF8 + b"3\r\n"}, "cls") == 3


def test_a_list_of_captions_gives_the_first_that_is_not_blank() -> None:
    assert decoded(json=b'{"caption": [null, "", " a cat ", "a grey cat"], "about": {"label": 5.0}}') == (
        "a cat",
        5,
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, SkipReason.MISSING_CAPTION),
        ({"json": b"{}"}, SkipReason.MISSING_CAPTION),
        ({"json": b"[]"}, SkipReason.MISSING_CAPTION),
        ({"json": b'{"caption": null}'}, SkipReason.MISSING_CAPTION),
        ({"json": b'{"caption": "  "}'}, SkipReason.EMPTY_CAPTION),
        ({"json": b'{"caption": []}'}, SkipReason.EMPTY_CAPTION),
        ({"json": b'{"caption": 7}'}, SkipReason.CAPTION_NOT_TEXT),
        ({"json": b'{"caption": [{"text": "b"}]}'}, SkipReason.CAPTION_NOT_TEXT),
        ({"json": b'{"caption": '}, SkipReason.CORRUPT_METADATA),
        ({"json": b"[" * 200_000}, SkipReason.CORRUPT_METADATA),
        ({"json": b'{"caption": "\xff"}'}, SkipReason.NOT_UTF8),
        ({"json": b'{"caption": "a"}'}, SkipReason.MISSING_LABEL),
        *(
            ({"json": b'{"caption": "a", "about": {"label": %s}}' % label}, SkipReason.LABEL_NOT_A_CLASS)
            for label in (b'"cat"', b"3.5", b"true", b"[3]", b"Infinity", b"NaN", b"1e308", b'"12abc"')
        ),
    ],
)
def test_what_is_wrong_with_a_field_is_named(files: dict[str, bytes], expected: SkipReason) -> None:
    with pytest.raises(SkippedSampleError) as error:
        decoded(**files)
    assert error.value.reason == expected
    assert pickle.loads(pickle.dumps(error.value)).reason == expected  # workers send it


@pytest.mark.parametrize(
    ("key", "detail"),
    [
        ("text", "there is no text; its files are png, json"),
        ("json.title", "there is no json.title; json has caption, about"),
        ("json.about.title", "there is no json.about.title; json.about has label"),
        ("json.caption.title", "there is no json.caption.title; json.caption is 'a'"),
    ],
)
def test_a_key_that_does_not_exist_is_told_with_those_that_do(key: str, detail: str) -> None:
    raw = {"__key__": "0", "png": b"", "json": b'{"caption": "a", "about": {"label": 5}}'}
    with pytest.raises(SkippedSampleError, match=f"^missing_caption: {detail}$"):
        find_caption(raw, key)


def test_a_sample_without_an_image_is_named() -> None:
    with pytest.raises(SkippedSampleError) as error:
        SampleDecoder()({"__key__": "0", "txt": b"a cat"}, (8, 8))
    assert error.value.reason == SkipReason.MISSING_IMAGE


def test_a_real_photo(assets: Path, tmp_path: Path) -> None:
    shards = [str(assets / "data/cc12m/cc12m-train-0000.tar")]
    raw = next(iter(TarReader(cache=str(tmp_path))(shards, filters=Filters()).samples([0])))
    assert not isinstance(raw, SkippedSampleError)
    sample = SampleDecoder()(raw, (256, 256))
    assert sample.caption == "Red Square is a city square in Moscow, Russia."
    assert sample.image.shape == (3, 256, 256)
    assert sample.image.float().std() > 20
