"""The formats of images that are read, and their pixels as viewers show them.

These are upright, in sRGB, and on a background where they are transparent.
"""

import contextlib
import io
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from rfdit.data.skips import SkippedSampleError, SkipReason

# Pillow's name of each format that is read, and the suffixes of its files. Formats that Pillow hands to other
# programs (EPS to Ghostscript), vector graphics, videos and scientific data are not among them.
FORMATS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"), "PNG": ("png", "apng"), "WEBP": ("webp",), "AVIF": ("avif", "avifs"),
    "GIF": ("gif",), "BMP": ("bmp",), "DIB": ("dib",), "TIFF": ("tif", "tiff"),
    "JPEG2000": ("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"), "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "TGA": ("tga",), "QOI": ("qoi",), "PSD": ("psd",), "PCX": ("pcx",), "SGI": ("sgi",), "DDS": ("dds",),
    "ICO": ("ico",), "ICNS": ("icns",), "XBM": ("xbm",), "XPM": ("xpm",),
}  # fmt: skip
IMAGE_EXTENSIONS = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# The beginnings of formats that Pillow does not know, and of which one may take an image to be.
SIGNATURES = {"PDF": b"%PDF", "SVG": b"<svg"}
START = 32  # bytes by which a format is told

PROFILES = 32  # colour transforms that a process keeps
GRID = 9  # colours per channel at which a profile is compared with sRGB


def open_image(image: bytes | str | Path) -> ImageFile:
    """An image of one of `FORMATS`, opened and not decoded yet; every image that rfdit did not write is opened here.

    image: encoded bytes, or the path of the file.
    Raises SkippedSampleError for another format, which it names, and what Pillow raises for anything else.
    """
    start = image[:START] if isinstance(image, bytes) else _start(image)
    try:
        return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=_readable())
    except UnidentifiedImageError:
        if (name := _other_format(start)) is not None:
            raise SkippedSampleError(
                SkipReason.UNSUPPORTED_IMAGE,
                f"its format is {name}, and those that are read are {', '.join(FORMATS)}",
            ) from None
        if isinstance(image, bytes):  # of which Pillow would name the address
            raise UnidentifiedImageError("its bytes are not those of an image") from None
        raise


def _start(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(START)


@lru_cache(maxsize=1)
def _readable() -> list[str]:
    """The formats that the installed Pillow has; older ones lack AVIF."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def image_extension(data: bytes | bytearray) -> str | None:
    """The suffix of an image's format, told by its first bytes; None for a format that is not read."""
    start = bytes(data[:START])
    return next((FORMATS[name][0] for name in _readable() if _begins_as(name, start)), None)


def _other_format(start: bytes) -> str | None:
    """The format, by its first bytes, of a file that is not read; None if they tell nothing.

    No decoder of such a format is started.
    """
    for name, begins in SIGNATURES.items():
        if start.lstrip().startswith(begins):
            return name
    return next((name for name in Image.OPEN if name not in FORMATS and _begins_as(name, start)), None)


def _begins_as(name: str, start: bytes) -> bool:
    accept = Image.OPEN[name][1]
    with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # of a file of few bytes
        return accept is not None and accept(start) is True
    return False


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened image after its EXIF rotation, without decoding it."""
    # Pillow would decode a PNG to look for a tag behind its pixels, and swaps the sides of a TIFF itself.
    tagged = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
    rotated = False
    if tagged:
        with contextlib.suppress(Exception):  # as in `turn_upright`
            rotated = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (image.width, image.height) if rotated else (image.height, image.width)


def turn_upright(image: Image.Image) -> None:
    """Load an opened image and rotate it by its EXIF tag, if that can be read."""
    image.load()
    with contextlib.suppress(Exception):  # Pillow's parser raises many kinds of errors
        ImageOps.exif_transpose(image, in_place=True)


def to_srgb(image: Image.Image, *, background: str) -> Image.Image:
    """A loaded image of any mode as RGB in the colours of sRGB.

    More than 8 bits are rounded to 8, an ICC profile is applied unless it is broken or of another kind
    of pixels, and transparent pixels show the background.
    Raises SkippedSampleError for numbers whose black and white are not known.
    """
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    hidden = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(hidden, tuple) and max(hidden) > 255:
        # The transparent colour of a PNG with 16 bits, of which Pillow keeps the upper 8.
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    rgb = _in_srgb(image, profile)
    return rgb if alpha is None else Image.composite(rgb, Image.new("RGB", rgb.size, background), alpha)


def _eight_bits(image: Image.Image) -> Image.Image:
    """One channel of integers or floats as 8-bit grey, with alpha if one of its values is transparent.

    Integers of 16 bits are black at 0 and white at 65,535, and floats at 0 and 1. Files do not state
    the range of others.
    """
    values: np.ndarray = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    if image.mode == "F":
        white = 1
    elif image.mode.startswith("I;16"):
        white = 2 ** int(np.max(tags.get(ExifTags.Base.BitsPerSample, 16))) - 1
    elif image.format == "PPM":
        white = 2**16 - 1  # to which Pillow scales
    else:
        raise SkippedSampleError(SkipReason.UNSUPPORTED_IMAGE, "integers of unknown range")
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= white:  # false for NaN
        raise SkippedSampleError(SkipReason.UNSUPPORTED_IMAGE, f"values from {low:g} to {high:g}")
    grey = np.rint(values * np.float32(255 / white)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        grey = 255 - grey
    opaque = Image.fromarray(grey)
    hidden = image.info.get("transparency")
    if hidden is None:
        return opaque
    return Image.merge("LA", (opaque, Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))))


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Grey, RGB, CMYK or Lab pixels as sRGB, by their profile if there is one that fits."""
    transform = _transform(profile, image.mode) if profile or image.mode == "LAB" else None
    if transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


@lru_cache(maxsize=PROFILES)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if it changes nothing, or does not fit pixels of this mode."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        source = (
            ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if profile and mode != "LAB"
            else ImageCms.createProfile("LAB")
        )
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
        if mode != "RGB":
            return transform
        levels = np.linspace(0, 255, GRID).round().astype(np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(GRID, -1, 3)
        shown = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    # Most profiles are sRGB, and the others' rounding of it is not worth a pass over all pixels.
    return transform if np.abs(shown.astype(int) - colours).max() > 1 else None
