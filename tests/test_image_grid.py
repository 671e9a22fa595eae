"""A sheet shows each image in its place, in its colours."""

import numpy as np
import pytest
import torch

from rfdit.image_grid import FONT, MARGIN, captioned_grid, labelled_grid


def test_images_keep_place_and_colour() -> None:
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


def test_large_images_are_not_enlarged() -> None:
    sheet = captioned_grid(torch.zeros(1, 3, 256, 256, dtype=torch.uint8), ["x"])
    assert sheet.width == 256 + 2 * MARGIN


def test_long_captions_make_room() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    short, long = captioned_grid(image, ["x"]), captioned_grid(image, ["word " * 30])
    assert long.height > short.height + 5 * FONT


def test_a_table_has_every_image_in_its_row_and_column() -> None:
    greys = torch.tensor([10, 50, 90, 130, 170, 210], dtype=torch.uint8)
    images = greys[:, None, None, None].expand(6, 3, 64, 160)
    table = labelled_grid(images, rows=["upper " * 4, "lower"], columns=["one", "two", "three"])
    sheet = np.asarray(table)
    # 128 is the least side, so images are enlarged twice; from the right and lower edge, nothing but margins.
    y = [sheet.shape[0] - MARGIN - 64 - 128 - MARGIN, sheet.shape[0] - MARGIN - 64]
    x = [sheet.shape[1] - MARGIN - 160 - k * (320 + MARGIN) for k in (2, 1, 0)]
    assert [[int(sheet[row, column, 0]) for column in x] for row in y] == [[10, 50, 90], [130, 170, 210]]
    left = x[0] - 160
    assert sheet[:, : left - 1].min() < 100  # the rows' labels
    assert sheet[: y[0] - 64, left:].min() < 100  # the columns'


def test_a_table_has_no_holes() -> None:
    with pytest.raises(ValueError, match="3 images do not fill 2 rows of 2"):
        labelled_grid(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), rows=["a", "b"], columns=["c", "d"])
