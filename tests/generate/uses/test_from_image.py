"""Masks for inpainting, in the forms in which image editors save them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfdit.generate.request import SampleRequest
from rfdit.generate.uses.from_image import Inpaint, read_mask


def left_white(mode: str) -> Image.Image:
    """White in its left half, and black, or transparent white, in the right."""
    if mode == "I;16":  # 1500 is dark, and far above what 8 bits hold
        return Image.fromarray(np.repeat(np.uint16([[65535, 1500]]), 16, axis=1).repeat(32, axis=0))
    if mode == "P":
        return left_white("L").convert("P")
    white, other = {"RGBA": ((255,) * 4, (255, 255, 255, 0)), "LA": ((255, 255), (255, 0))}.get(
        mode, (255, 0)
    )
    image = Image.new(mode, (32, 32), other)
    image.paste(white, (0, 0, 16, 32))
    return image


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16"])
def test_a_mask_is_white_where_it_shows_white(mode: str, tmp_path: Path) -> None:
    left_white(mode).save(tmp_path / "mask.png")
    white = read_mask(str(tmp_path / "mask.png"), (32, 32), setting="use.mask")
    assert white[:, :16].all()
    assert not white[:, 16:].any()


def test_a_mask_whose_white_part_is_cropped_off_is_refused(tmp_path: Path) -> None:
    image = Image.new("L", (64, 32), 0)
    image.paste(255, (0, 0, 8, 32))
    image.save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"mask\.png is all black, once its edges are cropped"):
        read_mask(str(tmp_path / "mask.png"), (32, 32), setting="use.mask")


def test_a_mask_that_keeps_nothing_warns(tmp_path: Path) -> None:
    file = str(tmp_path / "white.png")
    Image.new("L", (32, 32), 255).save(file)
    with pytest.warns(UserWarning, match="white everywhere, so that nothing of use.image is kept"):
        Inpaint(image=file, mask=file).sheet(SampleRequest(inputs=["a"], captions=["a"]))
