"""A sheet shows each picture in its place, in its colours."""

import numpy as np
import torch

from rfdit.grid import FONT, MARGIN, captioned_grid


def test_pictures_keep_place_and_colour() -> None:
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(3, 3, 32, 32)
    sheet = np.asarray(captioned_grid(images, ["red", "green", "blue"], columns=2))
    tile, cell = 128, 128 + FONT + 3 + MARGIN
    centres = [
        (MARGIN + 64, MARGIN + 64),
        (MARGIN + 64, 2 * MARGIN + tile + 64),
        (2 * MARGIN + cell + 64, MARGIN + 64),
    ]
    for (y, x), colour in zip(centres, colours):
        assert sheet[y, x].tolist() == colour.tolist()
    caption = sheet[MARGIN + tile + 2 : MARGIN + tile + FONT + 3, MARGIN : MARGIN + tile]
    assert caption.min() < 100  # something is written there


def test_large_pictures_are_not_enlarged() -> None:
    sheet = captioned_grid(torch.zeros(1, 3, 256, 256, dtype=torch.uint8), ["x"])
    assert sheet.width == 256 + 2 * MARGIN


def test_long_captions_make_room() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    short, long = captioned_grid(image, ["x"]), captioned_grid(image, ["word " * 30])
    assert long.height > short.height + 5 * FONT
