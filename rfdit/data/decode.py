"""Decoding of one webdataset sample: its bytes to pixels, caption and label."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from rfdit.data.numbers import LARGEST_LABEL, whole_number
from rfdit.data.pixels import IMAGE_EXTENSIONS, open_image, to_srgb, turn_upright, upright_size
from rfdit.data.sample import MAX_SAMPLE, RawSample, Sample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.micro import SIZES, Fields, in_order, sizes_of
from rfdit.storage.text import decode_text, parse_json

# 200 MB when decoded; a small file can claim to be far larger.
MAX_PIXELS = 64 * 1024 * 1024
MAX_SIDE = 65_535  # JPEG's own limit; decoders take memory for each row, however short
# JPEG's cheap reduction while decoding stops at this multiple of the final size; a proper filter does the rest.
DRAFT_MARGIN = 2


@dataclass(frozen=True, kw_only=True)
class SampleDecoder:
    """Decodes a sample: the image, resized and centre-cropped, its caption and its label.

    caption_key: the file extension of the caption ("txt"), a field of a JSON file ("json.caption"),
        or None for no captions. Of a list of captions the first that is not blank is taken.
    label_key: the same for the class number, such as "cls" or "json.label".
    draw_caption: keep a list of captions, of which the stream draws one each time.
    micro: fields of micro-conditioning; see `find_micro`.

    A call raises SkippedSampleError with the reason for a sample that cannot be used.
    """

    caption_key: str | None = "txt"
    label_key: str | None = None
    draw_caption: bool = False
    micro: Fields | None = None

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Sample:
        return self.decode(raw, image_bytes(raw), size)

    def decode(self, raw: RawSample, found: bytes | None, size: tuple[int, int]) -> Sample:
        """The sample with this encoded image; None is a sample without one."""
        # The cheap parts first: a sample without a caption need not be decoded.
        captions = [] if self.caption_key is None else find_captions(raw, self.caption_key)
        label = None if self.label_key is None else find_label(raw, self.label_key)
        if found is None:
            raise SkippedSampleError(SkipReason.MISSING_IMAGE, f"its files are {listed_files(raw)}")
        micro = None if self.micro is None else find_micro(raw, self.micro, lambda: measured(found), size)
        image = decode_image(found, size)
        return Sample(
            micro=micro,
            image=image,
            key=cast(str, raw["__key__"]),
            caption=captions[0] if captions else None,
            captions=captions if self.draw_caption else (),
            label=label,
        )


def image_bytes(raw: RawSample) -> bytes | None:
    """A sample's encoded image, if it has one."""
    found = next((raw[name] for name in IMAGE_EXTENSIONS if name in raw), None)
    return cast(bytes | None, found)


def read_image(path: str | bytes) -> bytes:
    """The bytes of an image's file; raises SkippedSampleError if it cannot be read, or has more than `MAX_SAMPLE`."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_SAMPLE:
                raise SkippedSampleError(SkipReason.SAMPLE_TOO_LARGE, os.fsdecode(path))
            return file.read()
    except OSError as error:  # removed since it was listed, or a broken link
        raise SkippedSampleError(SkipReason.MISSING_IMAGE, str(error)) from error


def image_size(image: bytes | str) -> tuple[int, int] | None:
    """As `measured`, but None for an image that cannot be measured."""
    try:
        return measured(image)
    except SkippedSampleError:
        return None


def measured(image: bytes | str) -> tuple[int, int]:
    """(height, width) of the decoded image, read from its header.

    image: encoded bytes, or the path of the file. Raises SkippedSampleError if that cannot be read.
    """
    try:
        with open_image(image) as header:
            return upright_size(header)
    except SkippedSampleError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise SkippedSampleError(SkipReason.MISSING_IMAGE, str(error)) from error
    except Image.DecompressionBombError as error:
        raise SkippedSampleError(SkipReason.IMAGE_TOO_LARGE, str(error)) from error
    except Exception as error:  # as in decode_rgb
        raise SkippedSampleError(SkipReason.CORRUPT_IMAGE, str(error)) from error


def decode_image(data: bytes, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """Decode an image to RGB, and resize its centre, antialiased, to `size` = (height, width).

    Transparent parts are put on white. Raises SkippedSampleError as `decode_rgb`.
    """
    height, width = size
    # Square, because the EXIF tag may still swap the sides.
    rgb = decode_rgb(data, background="white", draft=DRAFT_MARGIN * max(size))
    fitted = ImageOps.fit(rgb, (width, height), method=Image.Resampling.BICUBIC)
    # In numpy: torch would start its threads for this small copy.
    return torch.from_numpy(np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1)))


def decode_rgb(data: bytes, *, background: str, draft: int | None = None) -> Image.Image:
    """Decode an image to what viewers show: rotated by its EXIF tag, in sRGB, 8 bits.

    background: name of the colour behind transparent parts.
    draft: least length of both sides in pixels; a JPEG is decoded at a fraction of its size above that.

    Raises SkippedSampleError for bytes that are not an image, are damaged, too large, or of a format that is
    not in `FORMATS`, and for numbers whose black and white are not known.
    """
    try:
        with open_image(data) as image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise SkippedSampleError(SkipReason.IMAGE_TOO_LARGE, f"{image.width}x{image.height}")
            if draft is not None:
                image.draft(None, (draft, draft))  # only JPEG does anything here
            turn_upright(image)
            return to_srgb(image, background=background)
    except SkippedSampleError:
        raise
    except Image.DecompressionBombError as error:
        raise SkippedSampleError(SkipReason.IMAGE_TOO_LARGE, str(error)) from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors
        raise SkippedSampleError(SkipReason.CORRUPT_IMAGE, str(error)) from error


def find_metadata(raw: RawSample) -> dict[str, Any]:
    """A sample's JSON object; empty if it has none, or a damaged one."""
    try:
        found = parse_json(raw.get("json", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def find_caption(raw: RawSample, key: str) -> str:
    """The first of `find_captions`."""
    return find_captions(raw, key)[0]


def find_captions(raw: RawSample, key: str) -> list[str]:
    """The captions at a key that are not blank; raises SkippedSampleError if there is none that can be used."""
    value = _field(raw, key, SkipReason.MISSING_CAPTION)
    texts = _texts(value)
    if texts is None:
        raise SkippedSampleError(SkipReason.CAPTION_NOT_TEXT, f"{key} is {_brief(value)}")
    if not texts:
        raise SkippedSampleError(SkipReason.EMPTY_CAPTION, key)
    return texts


def caption_text(value: object) -> str | None:
    """A caption without surrounding white space, from text or a list of texts, whose first that is not blank is taken.

    Empty if all are blank; None for a value without any text.
    """
    texts = _texts(value)
    return None if texts is None else next(iter(texts), "")


def _texts(value: object) -> list[str] | None:
    """The texts that are not blank, of a text or a list; None for a value without any text."""
    values = value if isinstance(value, list) else [value]
    texts = [text.strip() for text in values if isinstance(text, str)]
    return None if values and not texts else [text for text in texts if text]


def find_label(raw: RawSample, key: str) -> int:
    """The class number at a key, as in `SampleDecoder`.

    Raises SkippedSampleError if there is none, or it is not a whole number (see `rfdit.data.numbers`).
    """
    value = _field(raw, key, SkipReason.MISSING_LABEL)
    number = whole_number(value, least=-LARGEST_LABEL, most=LARGEST_LABEL)
    if number is None:
        raise SkippedSampleError(SkipReason.LABEL_NOT_A_CLASS, f"{key} is {_brief(value)}")
    return number


def find_micro(
    raw: RawSample, fields: Fields, original: Callable[[], tuple[int, int]], size: tuple[int, int]
) -> tuple[float, ...]:
    """The numbers of the fields, in order: sizes in pixels, and numbers of the sample's JSON by their names.

    original: measures the image before it was resized. size: (height, width) to which it is resized and cropped.
    Raises SkippedSampleError for a sample whose JSON lacks a number.
    """
    known = sizes_of(original(), size) if not fields.keys().isdisjoint(SIZES) else {}
    for name in fields.keys() - known.keys():
        value = _field(raw, f"json.{name}", SkipReason.MISSING_NUMBER)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SkippedSampleError(
                SkipReason.MISSING_NUMBER, f"json.{name} is {_brief(value)}, not a number"
            )
        known[name] = float(value)
    return in_order(list(fields), known)


def _field(raw: RawSample, key: str, missing: SkipReason) -> object:
    """The text of the file `extension`, or the JSON field `extension.name.name`.

    Raises SkippedSampleError with the reason `missing`, naming what there is instead, if it does not exist.
    """
    parts = key.split(".")
    # webdataset's extensions may have dots: KEY.caption.txt.
    known = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in raw), 0)
    if not known:
        raise SkippedSampleError(missing, f"there is no {key}; its files are {listed_files(raw)}")
    path, fields = ".".join(parts[:known]), parts[known:]
    data = raw[path]
    try:
        text = decode_text(data) if isinstance(data, bytes) else data
    except ValueError as error:
        raise SkippedSampleError(SkipReason.NOT_UTF8, f"{path} {error}") from None
    if not fields:
        return text
    try:
        value = parse_json(text)
    except ValueError as error:
        raise SkippedSampleError(SkipReason.CORRUPT_METADATA, f"{path} {error}") from None
    for field in fields:
        if not isinstance(value, dict) or field not in value:
            there = (
                f"has {', '.join(value) or 'no field'}" if isinstance(value, dict) else f"is {_brief(value)}"
            )
            raise SkippedSampleError(missing, f"there is no {key}; {path} {there}")
        value, path = value[field], f"{path}.{field}"
    if value is None:
        raise SkippedSampleError(missing, f"{path} is null")
    return value


def listed_files(raw: RawSample) -> str:
    """The names of a sample's files without its key."""
    return ", ".join(name for name in raw if not name.startswith("__")) or "none"


def _brief(value: object) -> str:
    """A value of a JSON file in words: a list and an object by its kind, anything else as it is, shortened."""
    kinds: dict[type, str] = {list: "a list", dict: "an object"}
    return kinds.get(type(value), repr(value)[:40])
