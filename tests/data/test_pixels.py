"""Images of every depth, orientation, transparency and colour profile decode to what viewers show."""

import ast
import io
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import rfdit
from rfdit.data.decode import decode_image, image_size, measured
from rfdit.data.pixels import FORMATS, IMAGE_EXTENSIONS, image_extension
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.generate.uses.from_image import size_of

RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The same primaries under each other's names, so that red is shown as green.
SWAPPED = SRGB.replace(b"rXYZ", b"TEMP").replace(b"gXYZ", b"rXYZ").replace(b"TEMP", b"gXYZ")


def encoded(image: Image.Image | np.ndarray, form: str = "png", **options: object) -> bytes:
    data = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(data, form, **options)
    return data.getvalue()


def tiff(values: np.ndarray, bits: int, *, white_is_zero: bool = False) -> bytes:
    """A grey TIFF of integers with a number of bits that Pillow does not write, or whose white is zero."""
    if bits == 12:
        first, second = values.reshape(-1, 2).T.astype(np.uint32)
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
        pixels = packed.astype(np.uint8).tobytes()
    else:
        pixels = values.astype("<u2").tobytes()
    height, width = values.shape
    tags = [
        (256, width), (257, height), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 8),
        (277, 1), (278, height), (279, len(pixels)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory + bytes(4)


def ppm(maximum: int) -> bytes:
    return b"P5 64 64 %d\n" % maximum + (RAMP * maximum).round().astype(">u2").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded((RAMP * 65535).astype(np.uint16), "png"), id="16-bit PNG"),
        pytest.param(encoded((RAMP * 65535).astype(np.uint16), "tiff"), id="16-bit TIFF"),
        pytest.param(encoded((RAMP * 65535).astype(np.uint16), "jpeg2000"), id="16-bit JPEG 2000"),
        pytest.param(tiff((RAMP * 4095).round(), 12), id="12-bit TIFF"),
        pytest.param(tiff((1 - RAMP) * 65535, 16, white_is_zero=True), id="TIFF whose white is zero"),
        pytest.param(encoded(RAMP, "tiff"), id="floats from 0 to 1"),
        pytest.param(ppm(1000), id="portable grey map of 1,000 levels"),
        pytest.param(ppm(65535), id="portable grey map of 16 bits"),
    ],
)
def test_deep_grey_keeps_its_range(data: bytes) -> None:
    row = decode_image(data, (64, 64))[0, 32].tolist()
    assert row == pytest.approx((RAMP[0] * 255).tolist(), abs=1)


@pytest.mark.parametrize(
    "values",
    [RAMP * 65535, RAMP - 0.5, np.where(RAMP < 0.5, RAMP, np.nan), (RAMP * 65535).astype(np.int32)],
    ids=["floats to 65,535", "negative floats", "NaN", "integers of 32 bits"],
)
def test_numbers_of_unknown_range_are_skipped(values: np.ndarray) -> None:
    with pytest.raises(SkippedSampleError) as error:
        decode_image(encoded(values, "tiff"), (64, 64))
    assert error.value.reason == SkipReason.UNSUPPORTED_IMAGE


def corner_hidden(mode: str, visible: object, hidden: object, **options: object) -> bytes:
    """A PNG of one colour, of which another is transparent in the left half."""
    image = Image.new(mode, (16, 16), visible)  # type: ignore[arg-type]
    image.paste(hidden, (0, 0, 8, 16))  # type: ignore[arg-type]
    return encoded(image, **options)


@pytest.mark.parametrize(
    "data",
    [
        corner_hidden("LA", (200, 255), (9, 0)),
        corner_hidden("RGBA", (200, 200, 200, 255), (9, 0, 0, 0)),
        corner_hidden("L", 200, 9, transparency=9),
        corner_hidden("RGB", (200, 200, 200), (9, 8, 7), transparency=(9, 8, 7)),
        encoded(
            np.repeat(np.uint16([[9], [200 * 257]]), (8, 8), axis=0).T.repeat(16, axis=0), transparency=9
        ),
    ],
    ids=[
        "grey and alpha",
        "RGB and alpha",
        "a transparent grey",
        "a transparent colour",
        "a transparent grey of 16 bits",
    ],
)
def test_transparent_pixels_are_white(data: bytes) -> None:
    row = decode_image(data, (16, 16))[:, 8]
    assert row[:, 4].tolist() == [255] * 3
    assert row[:, 12].tolist() == [200] * 3


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_images_are_turned_by_their_exif_tag_in_every_format(form: str, orientation: int) -> None:
    stored = Image.new("RGB", (32, 16), "blue")
    stored.paste("red", (0, 0, 16, 16))  # the left becomes the right, or the top
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, form, exif=exif)
    size = (16, 32) if orientation == 3 else (32, 16)
    assert image_size(data) == size
    red, _, _ = decode_image(data, size)
    there, elsewhere = (red[:, 20:], red[:, :12]) if orientation == 3 else (red[:12], red[20:])
    assert there.min() > 200 > 50 > elsewhere.max()


def test_a_damaged_exif_tag_is_ignored() -> None:
    data = encoded(Image.new("RGB", (32, 16), "red"), "jpeg", exif=b"Exif\0\0 not a directory")
    assert image_size(data) == (16, 32)
    assert decode_image(data, (16, 32))[0].min() > 200


@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGB", "png"), ("RGB", "jpeg"), ("RGB", "webp"), ("RGB", "tiff"), ("P", "png"), ("RGBA", "png")],
)
def test_colours_are_converted_from_their_profile(mode: str, form: str) -> None:
    data = encoded(Image.new("RGB", (8, 8), "red").convert(mode), form, icc_profile=SWAPPED)
    red, green, _ = decode_image(data, (8, 8)).float().mean(dim=(1, 2)).tolist()
    assert red < 50
    assert green > 200


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("RGB", SRGB), ("RGB", SWAPPED[:300]), ("RGB", b"no profile"), ("L", SWAPPED), ("CMYK", SWAPPED)],
    ids=["sRGB", "cut off", "no profile", "of RGB for grey", "of RGB for CMYK"],
)
def test_profiles_that_change_nothing_or_do_not_fit_leave_pixels_as_they_are(
    mode: str, profile: bytes
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    with_profile, without = (
        decode_image(encoded(image, "tiff", **options), (16, 16))
        for options in ({"icc_profile": profile}, {})
    )
    assert with_profile.equal(without)


def test_lab_is_shown_in_its_colours() -> None:
    lab = ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    image = ImageCms.applyTransform(Image.new("RGB", (8, 8), (200, 100, 50)), to_lab)
    assert image is not None
    assert decode_image(encoded(image, "tiff"), (8, 8))[:, 0, 0].tolist() == pytest.approx(
        [200, 100, 50], abs=3
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def test_one_list_states_formats_and_suffixes() -> None:
    registered = Image.registered_extensions()
    assert {registered[f".{suffix}"] for suffix in IMAGE_EXTENSIONS} == set(FORMATS)
    assert all(registered[f".{suffix}"] == name for name, suffixes in FORMATS.items() for suffix in suffixes)


def test_every_format_of_the_list_is_read() -> None:
    Image.init()
    written = FORMATS.keys() & Image.SAVE.keys()
    assert len(written) > 12
    for form in written:
        mode = {"XPM": "P", "XBM": "1"}.get(form, "RGB")
        assert image_size(encoded(Image.new(mode, (16, 16)), form)) is not None, form


def test_a_photo_with_a_second_one_inside_is_a_jpeg() -> None:
    photo = Image.new("RGB", (16, 8), "red")
    data = encoded(photo, "mpo", save_all=True, append_images=[photo])
    assert decode_image(data, (8, 16)).float().mean(dim=(1, 2)).round().tolist()[0] > 250


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (EPS, "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(99), "WMF"),
    ],
)
def test_another_format_is_not_opened_and_named(
    data: bytes, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    for other in Image.OPEN.keys() - FORMATS.keys():
        accept = Image.OPEN[other][1]
        monkeypatch.setitem(Image.OPEN, other, (partial(pytest.fail, f"{other} was opened"), accept))
    path = tmp_path / "image.jpg"  # whatever the name says
    path.write_bytes(data)
    for image in (data, str(path)):
        with pytest.raises(
            SkippedSampleError, match=f"unsupported_image: its format is {name}, and those"
        ) as e:
            measured(image)
        assert e.value.reason == SkipReason.UNSUPPORTED_IMAGE
    with pytest.raises(SkippedSampleError, match=f"its format is {name}"):
        decode_image(data, (8, 8))
    with pytest.raises(ValueError, match=rf"use\.image=.*image\.jpg cannot be read as an image: .*{name}"):
        size_of(str(path), setting="use.image")


def test_every_opening_of_an_image_states_its_formats() -> None:
    package = Path(rfdit.__file__).parent
    calls = [
        node
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
    ]
    assert len(calls) >= 2
    assert all("formats" in [keyword.arg for keyword in call.keywords] for call in calls)


def test_the_kinds_of_images_are_told_by_their_bytes() -> None:
    grey, colour = Image.new("1", (32, 32)), Image.new("RGB", (32, 32))
    written = [
        "jpeg", "png", "webp", "gif", "bmp", "dib", "tiff", "jpeg2000", "ppm", "pcx", "sgi", "dds", "ico", "xbm",
    ]  # fmt: skip
    for form in written:
        data = encoded(grey if form == "xbm" else colour, form)
        assert image_extension(data) == FORMATS[form.upper()][0], form
    assert image_extension(b"<html>") is image_extension(b"RIFF1234WAVE") is image_extension(b"") is None


def test_an_empty_file_is_called_what_it_is() -> None:
    with pytest.raises(SkippedSampleError, match="corrupt_image: its bytes are not those of an image"):
        decode_image(b"", (8, 8))
