"""From the bytes of one webdataset sample to pixels, caption and label."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from rfdit.data.sample import RawSample, Sample
from rfdit.data.skips import SkippedSampleError, SkipReason

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
# Decoded at once these are 200 MB; a small file can claim to be far larger.
MAX_PIXELS = 64 * 1024 * 1024
# JPEG's cheap reduction while decoding stops at this multiple of the wanted size; a proper filter does the rest.
DRAFT_MARGIN = 2


@dataclass(frozen=True, kw_only=True)
class SampleDecoder:
    """Decodes samples: image resized and centre-cropped, caption and label found.

    caption_key: the file extension of the caption ("txt"), a field of a JSON file ("json.caption"),
        or None for no captions.
    label_key: likewise, such as "cls" or "json.label".

    Calling it raises SkippedSampleError with the reason for a sample that cannot be used.
    """

    caption_key: str | None = "txt"
    label_key: str | None = None

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Sample:
        # The cheap parts first: a sample without its caption is not worth decoding.
        caption = None if self.caption_key is None else find_caption(raw, self.caption_key)
        label = None if self.label_key is None else find_label(raw, self.label_key)
        found = image_bytes(raw)
        if found is None:
            raise SkippedSampleError(SkipReason.MISSING_IMAGE)
        image = decode_image(found, size)
        return Sample(image=image, key=cast(str, raw["__key__"]), caption=caption, label=label)

    def check(self, shards: Sequence[str], size: tuple[int, int]) -> None:
        """Any shards may hold what it decodes."""


def image_bytes(raw: RawSample) -> bytes | None:
    """A sample's encoded image, if it has one."""
    found = next((raw[name] for name in IMAGE_EXTENSIONS if name in raw), None)
    return cast(bytes | None, found)


def image_size(image: bytes | str) -> tuple[int, int] | None:
    """(height, width) as the image will be decoded, from its header; None if that cannot be read.

    image: encoded, or the path of its file.
    """
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as header:
            # Pillow would decode a PNG to look for a tag behind its pixels.
            tagged = header.format != "PNG" or "exif" in header.info
            turned = tagged and header.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            return (header.width, header.height) if turned else (header.height, header.width)
    except Exception:  # as in decode_image
        return None


def decode_image(data: bytes, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """RGB bytes of an encoded image whose centre is resized, antialiased, to `size` = (height, width).

    The image is turned as its EXIF tag says; transparent parts are put on white.
    Raises SkippedSampleError for what is no image, is damaged, or is too large.
    """
    height, width = size
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise SkippedSampleError(SkipReason.IMAGE_TOO_LARGE, f"{image.width}x{image.height}")
            # Square, because the EXIF tag may still swap the sides. Only JPEG does anything here.
            image.draft(None, (DRAFT_MARGIN * max(size),) * 2)
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
        picture = ImageOps.fit(rgb, (width, height), method=Image.Resampling.BICUBIC)
    except SkippedSampleError:
        raise
    except Image.DecompressionBombError as error:
        raise SkippedSampleError(SkipReason.IMAGE_TOO_LARGE, str(error)) from error
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to
        raise SkippedSampleError(SkipReason.CORRUPT_IMAGE, str(error)) from error
    # In numpy: torch would start its threads for this little copy.
    return torch.from_numpy(np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; 16-bit grey keeps its high byte, where Pillow would clip."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def find_caption(raw: RawSample, key: str) -> str:
    """The caption at a key, as in `SampleDecoder`; raises SkippedSampleError if there is none."""
    value = _field(raw, key)
    if not isinstance(value, str):
        raise SkippedSampleError(SkipReason.MISSING_CAPTION, key)
    if not value.strip():
        raise SkippedSampleError(SkipReason.EMPTY_CAPTION, key)
    return value.strip()


def find_label(raw: RawSample, key: str) -> int:
    """The class at a key, likewise."""
    value = _field(raw, key)
    try:
        return int(cast(str, value))
    except (TypeError, ValueError) as error:
        raise SkippedSampleError(SkipReason.MISSING_LABEL, key) from error


def _field(raw: RawSample, key: str) -> object:
    """The text of the file `extension`, or the field that `extension.name.name` leads to; None if absent."""
    extension, *path = key.split(".")
    data = raw.get(extension)
    if data is None:
        return None
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(text) if path else text
    except ValueError as error:  # of UTF-8 and of JSON
        raise SkippedSampleError(SkipReason.CORRUPT_METADATA, key) from error
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
