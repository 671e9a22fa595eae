"""Pictures in rows, each with its caption."""

import math
import textwrap
from collections.abc import Sequence

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 128  # the least side of a picture on the sheet, in pixels
FONT = 12
MARGIN = 6


def to_pil(image: UInt8[Tensor, "3 H W"]) -> Image.Image:
    """One image as Pillow has it."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy(force=True))


def captioned_grid(
    images: UInt8[Tensor, "n 3 H W"], captions: Sequence[str], *, columns: int | None = None
) -> Image.Image:
    """A sheet of the images, row by row, captions below; small images are enlarged without smoothing.

    columns: how many in a row; about a square sheet by default.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = images.shape[-2:]
    zoom = max(1, math.ceil(TILE / min(height, width)))
    height, width = height * zoom, width * zoom
    font = ImageFont.load_default(FONT)
    wrapped = [textwrap.wrap(caption, max(8, int(width / (FONT * 0.52)))) or [""] for caption in captions]
    line = FONT + 3
    cell = height + line * max(len(lines) for lines in wrapped) + MARGIN
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, rows * (cell + MARGIN) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, lines) in enumerate(zip(images, wrapped)):
        x = MARGIN + i % columns * (width + MARGIN)
        y = MARGIN + i // columns * (cell + MARGIN)
        sheet.paste(to_pil(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
        for k, text in enumerate(lines):
            draw.text((x + 2, y + height + 2 + k * line), text, fill="black", font=font)
    return sheet
