"""Pictures and masks that a user gives."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from rfdit.data.decode import decode_image, image_size
from rfdit.data.skips import SkippedSampleError

WHITE = 128  # from this grey on, a mask's pixel is white


def read_image(path: str, size: tuple[int, int], *, setting: str) -> UInt8[Tensor, "3 H W"]:
    """A picture whose centre is resized to `size` = (height, width), as training does with its data.

    Raises ValueError, naming `setting`, for a file that is missing or no image.
    """
    measure(path, setting=setting)
    try:
        return decode_image(Path(path).expanduser().read_bytes(), size)
    except SkippedSampleError as error:
        raise ValueError(f"{setting}={path} cannot be read as an image: {error}") from None


def read_mask(path: str, size: tuple[int, int], *, setting: str) -> Bool[Tensor, "H W"]:
    """True where a mask is white, its centre resized to `size` as `read_image` does with its picture.

    A pixel that has any white in it is white, so that a thin line does not get lost.
    Raises ValueError, naming `setting`, for a file that is missing or no image.
    """
    measure(path, setting=setting)
    try:
        with Image.open(Path(path).expanduser()) as image:
            grey = ImageOps.exif_transpose(image).convert("L")
    except OSError as error:
        raise ValueError(f"{setting}={path} cannot be read as an image: {error}") from None
    height, width = size
    white = Image.fromarray((np.asarray(grey) >= WHITE).astype(np.float32))
    share = ImageOps.fit(white, (width, height), method=Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(share) > 0)


def measure(path: str, *, setting: str) -> tuple[int, int]:
    """(height, width) of an image file; raises ValueError if it is missing or none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{setting}={path} is no file; give an image")
    size = image_size(str(file))
    if size is None:
        raise ValueError(f"{setting}={path} cannot be read as an image")
    return size
