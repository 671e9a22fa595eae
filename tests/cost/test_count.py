"""The papers' numbers: parameters and multiply-adds of every size and patch."""

import pytest
import torch

from rfdit.batch import Condition
from rfdit.conditioning import LabelConditioner
from rfdit.cost.count import count_macs, count_parameters
from rfdit.model import DiT
from tests.support.models.published import GMACS, PARAMETERS

SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}


def on_meta(size: str, patch: int) -> DiT:
    """A DiT for 4 x 32 x 32 latents without storage."""
    width, depth, num_heads = SIZES[size]
    with torch.device("meta"):
        return DiT(
            width=width, depth=depth, num_heads=num_heads, patch_size=patch, in_channels=4, input_size=32
        )


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_parameters(size: str, patch: int) -> None:
    """The counts include 1000 classes and null. The patch size changes the embedding, the output and the positions."""
    width = SIZES[size][0]
    with torch.device("meta"):
        labels = LabelConditioner(num_classes=1000, width=width)

    def ends(p: int) -> int:
        numbers = 4 * p * p
        return (numbers + 1) * width + (width + 1) * numbers + (32 // p) ** 2 * width

    counted = count_parameters(on_meta(size, patch)) + count_parameters(labels)
    assert counted == PARAMETERS[size] - ends(2) + ends(patch)


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_multiply_adds(size: str, patch: int) -> None:
    """The count is exactly that of the matrix products; the papers' counters add a few per normalised number.

    The papers' table is thus matched to one unit of its last digit.
    """
    d, depth, _ = SIZES[size]
    n, numbers = (32 // patch) ** 2, 4 * patch * patch  # tokens, and numbers in a patch
    blocks = depth * (12 * n * d * d + 2 * n * n * d)  # qkv, output, MLP; then scores and their sum
    modulation = (6 * depth + 2) * d * d
    ends = 2 * n * numbers * d + (256 + d) * d  # patches in and out, and the time MLP
    macs = count_macs(on_meta(size, patch), (4, 32, 32), Condition(pooled=torch.empty(1, d, device="meta")))
    assert macs == blocks + modulation + ends
    written = GMACS[size][patch]
    assert macs / 1e9 == pytest.approx(float(written), abs=10.0 ** -len(written.split(".")[1]))


def test_frozen_positions_are_counted_only_as_parameters() -> None:
    network = on_meta("s", 2)
    assert count_parameters(network) - count_parameters(network, trainable=True) == 256 * 384
