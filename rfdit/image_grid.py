"""Sheets of images: each with its caption, or in a table with labelled rows and columns."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rfdit.storage.atomic import write_atomically

TILE = 128  # smallest side of an image on the sheet, in pixels
FONT = 12
LINE = FONT + 3
MARGIN = 6
ROW_LABEL = 20  # characters per line of a row's label


def to_pil(image: UInt8[Tensor, "3 H W"]) -> Image.Image:
    """A tensor as an image of Pillow."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy(force=True))


def write_image(path: Path, image: Image.Image, **options: Any) -> None:
    """Write an image atomically, in the format of the path's suffix. options: of Pillow's `save`."""
    kind = Image.registered_extensions()[path.suffix]
    write_atomically(path, lambda file: image.save(file, format=kind, **options))


def captioned_grid(
    images: UInt8[Tensor, "n 3 H W"], captions: Sequence[str], *, columns: int | None = None
) -> Image.Image:
    """A sheet of images, row by row, with captions below; small images are enlarged without smoothing.

    columns: images per row; by default the sheet is about square.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = _shown_size(images)
    wrapped = [_wrapped(caption, width) for caption in captions]
    cell = height + LINE * max(len(lines) for lines in wrapped) + MARGIN
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, rows * (cell + MARGIN) + MARGIN), "white")
    for i, (image, lines) in enumerate(zip(images, wrapped)):
        x = MARGIN + i % columns * (width + MARGIN)
        y = MARGIN + i // columns * (cell + MARGIN)
        sheet.paste(_enlarged(image, (width, height)), (x, y))
        _write(sheet, lines, x + 2, y + height + 2)
    return sheet


def labelled_grid(
    images: UInt8[Tensor, "n 3 H W"], *, rows: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    """A table of images, row by row, with the labels of columns above and those of rows on the left.

    Raises ValueError unless there is one image per cell.
    """
    if len(images) != len(rows) * len(columns):
        raise ValueError(f"{len(images)} images do not fill {len(rows)} rows of {len(columns)}")
    height, width = _shown_size(images)
    left = [textwrap.wrap(label, ROW_LABEL) or [""] for label in rows]
    above = [_wrapped(label, width) for label in columns]
    font = ImageFont.load_default(FONT)
    label_width = math.ceil(max(font.getlength(line) for lines in left for line in lines))
    x0, y0 = 2 * MARGIN + label_width, MARGIN + LINE * max(map(len, above))
    cell = max(height, LINE * max(map(len, left)))
    size = (x0 + len(columns) * (width + MARGIN), y0 + len(rows) * (cell + MARGIN))
    sheet = Image.new("RGB", size, "white")
    for k, lines in enumerate(above):
        _write(sheet, lines, x0 + k * (width + MARGIN), MARGIN)
    for r, lines in enumerate(left):
        y = y0 + r * (cell + MARGIN)
        _write(sheet, lines, MARGIN, y)
        for k, image in enumerate(images[r * len(columns) : (r + 1) * len(columns)]):
            sheet.paste(_enlarged(image, (width, height)), (x0 + k * (width + MARGIN), y))
    return sheet


def _shown_size(images: UInt8[Tensor, "n 3 H W"]) -> tuple[int, int]:
    """(height, width) of each image on a sheet."""
    height, width = images.shape[-2:]
    zoom = max(1, math.ceil(TILE / min(height, width)))
    return height * zoom, width * zoom


def _enlarged(image: UInt8[Tensor, "3 H W"], size: tuple[int, int]) -> Image.Image:
    return to_pil(image).resize(size, Image.Resampling.NEAREST)


def _wrapped(text: str, width: int) -> list[str]:
    """At least one line, each about as wide as an image of `width` pixels."""
    return textwrap.wrap(text, max(8, int(width / (FONT * 0.52)))) or [""]


def _write(sheet: Image.Image, lines: Sequence[str], x: int, y: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for k, text in enumerate(lines):
        draw.text((x, y + k * LINE), text, fill="black", font=font)
