"""From a shard's bytes to one sample: picture, caption, label."""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp")


class BadSample(Exception):
    """A sample that cannot be used; `reason` is what it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Sample:
    """One decoded sample. caption, label: None where the source is not asked for one."""

    key: str
    image: UInt8[Tensor, "3 H W"]
    caption: str | None
    label: int | None


class Decoder:
    """Decodes what webdataset groups from a tar: {"__key__": ..., "jpg": bytes, "txt": bytes, ...}.

    resolution: side, or (height, width), of the pictures; resized with antialiasing so that they
        just cover it, then cropped in the middle.
    caption_key: the member that holds the caption, or a field of the json member as `json.caption`.
    label_key: likewise for an integer label: `cls`, or `json.label`.
    max_pixels: larger pictures are refused before they are decoded.
    Raises BadSample with the reason: missing_image, corrupt_image, huge_image, missing_caption,
    missing_label.
    """

    def __init__(
        self,
        *,
        resolution: int | Sequence[int],
        caption_key: str | None = "txt",
        label_key: str | None = None,
        max_pixels: int = 100_000_000,
    ) -> None:
        height, width = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
        self.height, self.width = height, width
        self.caption_key, self.label_key, self.max_pixels = caption_key, label_key, max_pixels

    def __call__(self, member: Mapping[str, Any]) -> Sample:
        caption = None if self.caption_key is None else self._caption(member, self.caption_key)
        label = None if self.label_key is None else self._label(member, self.label_key)
        data = next((member[suffix] for suffix in IMAGE_SUFFIXES if suffix in member), None)
        if data is None:
            raise BadSample("missing_image")
        return Sample(member["__key__"], self._image(data), caption, label)

    def _image(self, data: bytes) -> UInt8[Tensor, "3 H W"]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's on large pictures: max_pixels decides
                file = Image.open(io.BytesIO(data))
                if file.width * file.height > self.max_pixels:
                    raise BadSample("huge_image")
                # JPEG decodes at a half, quarter or eighth of its size where that is still enough.
                file.draft("RGB", (2 * self.width, 2 * self.height))
                picture = to_rgb(ImageOps.exif_transpose(file))
                fitted = ImageOps.fit(
                    picture, (self.width, self.height), method=Image.Resampling.BICUBIC, centering=(0.5, 0.5)
                )
        except BadSample:
            raise
        except Exception as error:  # Pillow raises nearly every type on bytes that are no picture
            raise BadSample("corrupt_image") from error
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()

    @staticmethod
    def _caption(member: Mapping[str, Any], key: str) -> str:
        value = _field(member, key)
        if not isinstance(value, str) or not value.strip():
            raise BadSample("missing_caption")
        return value.strip()

    @staticmethod
    def _label(member: Mapping[str, Any], key: str) -> int:
        try:
            return int(str(_field(member, key)))
        except ValueError as error:
            raise BadSample("missing_label") from error


def _field(member: Mapping[str, Any], key: str) -> object:
    """A member's text, or a field of a json member; None if it is not there."""
    suffix, _, name = key.partition(".")
    data = member.get(suffix)
    if data is None:
        return None
    try:
        text = data.decode("utf-8")
        return json.loads(text).get(name) if name else text
    except (UnicodeDecodeError, ValueError, AttributeError):
        return None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB, transparency onto white."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
