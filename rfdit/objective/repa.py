"""REPA: states of a block that agree with the features of a frozen vision network (arXiv 2410.06940)."""

from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from rfdit.batch import Batch
from rfdit.limits import Count, Fraction, NotNegative

SMALL = 1e-6  # added to a standard deviation that is divided by


@runtime_checkable
class PatchFeatures(Protocol):
    """A frozen network that gives a vector for each patch of an image.

    width: length of a vector. name: what it is, for messages.
    """

    name: str
    width: int

    def __call__(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b f rows columns"]:
        """Features of clean images, float32, on their device, without gradients."""
        ...


@runtime_checkable
class Projector(Protocol):
    """The trained layers between a block's states and the features."""

    def __call__(self, width: int, features: int) -> nn.Module:
        """A new module, (b, width, rows, columns) -> (b, features, rows, columns)."""
        ...


class MLPProjector:
    """Three linear layers with SiLU between them, for each token alone (REPA).

    hidden: width of the two layers within.
    """

    def __init__(self, *, hidden: Count = 2048) -> None:
        self.hidden = hidden

    def __call__(self, width: int, features: int) -> nn.Module:
        sizes = [width, self.hidden, self.hidden, features]
        first, second, third = (nn.Conv2d(a, b, 1) for a, b in pairwise(sizes))
        return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), third)


class ConvolutionProjector:
    """One 3 x 3 convolution on the grid of tokens, which sees a token's neighbours (iREPA, arXiv 2512.10794)."""

    def __call__(self, width: int, features: int) -> nn.Module:
        return nn.Conv2d(width, features, 3, padding=1)


class REPA(nn.Module):
    """-coefficient E[cos(h(x), y)]: x the states after a block, h the projector, y features of the clean image.

    The cosine is that of each token, and the mean is over tokens and samples. Features on another grid than the
    tokens' are interpolated bilinearly. The projector is trained with the network, and is not needed afterwards.

    teacher: the frozen network. width: that of the model's tokens. projector: makes h.
    block: number of the block, from 1. The paper has 8 of 28 blocks in XL, and 4 of 12 in B.
    coefficient: the paper's lambda.
    spatial_norm: gamma of iREPA's y <- (y - gamma mean(y)) / std(y) over the tokens of an image; None leaves y alone.
    stop_step: the step from which on the network is trained without; None never stops. The agreement helps at first
        and hinders later (arXiv 2505.16792).
    """

    def __init__(
        self,
        *,
        teacher: PatchFeatures,
        width: Count,
        projector: Projector,
        block: Count = 4,
        coefficient: NotNegative = 0.5,
        spatial_norm: Fraction | None = None,
        stop_step: Count | None = None,
    ) -> None:
        super().__init__()
        self.teacher, self.block, self.coefficient = teacher, block, coefficient
        self.spatial_norm, self.stop_step = spatial_norm, stop_step
        self.projector = projector(width, teacher.width)

    def is_over(self, step: int) -> bool:
        """True from `stop_step` on."""
        return self.stop_step is not None and step >= self.stop_step

    def forward(
        self, x: Float[Tensor, "b n d"], batch: Batch | None, *, grid: tuple[int, int]
    ) -> Float[Tensor, "b"]:
        """The mean cosine of each sample, negated, float32; 0 without a batch, as `Auxiliary` says.

        grid: rows and columns of the tokens.
        """
        h = self.projector(rearrange(x, "b (rows columns) d -> b d rows columns", rows=grid[0])).float()
        if batch is None:
            return 0 * h.mean((1, 2, 3))
        y = self.features(batch)
        if y.shape[-2:] != grid:
            y = F.interpolate(y, grid, mode="bilinear", align_corners=False)
        if self.spatial_norm is not None:
            y = y - self.spatial_norm * y.mean((2, 3), keepdim=True)
            y = y / (y.std((2, 3), keepdim=True) + SMALL)
        with torch.autocast(x.device.type, enabled=False):
            return -F.cosine_similarity(h, y.float(), dim=1).mean((1, 2))

    def features(self, batch: Batch) -> Float[Tensor, "b f rows columns"]:
        """The teacher's features of a batch, float32: the cached ones, or those of its images.

        Raises ValueError if it has neither.
        """
        if batch.features is not None:
            return batch.features.float()
        if batch.images is None:
            raise ValueError(
                "auxiliary reads the images of a batch, or features of them, and these cached latents have neither; "
                "encode again with auxiliary/teacher=..., train from images, such as data=laion, or give auxiliary=null"
            )
        return self.teacher(batch.images)
