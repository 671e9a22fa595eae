"""A real photo."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rfdit.images import to_float


@pytest.fixture(scope="session")
def photo(assets: Path) -> Float[Tensor, "1 3 256 256"]:
    """The first CC12M photo, its short side scaled to 256 pixels, the middle cut out, in [-1, 1]."""
    with tarfile.open(assets / "data/cc12m/cc12m-train-0000.tar") as shard:
        name = next(name for name in shard.getnames() if name.endswith(".jpg"))
        member = shard.extractfile(name)
        assert member is not None
        image = Image.open(io.BytesIO(member.read())).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC)
    return to_float(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
