"""An average of any length from snapshots of others, by least squares on their profiles.

A weighted sum of stored averages is an average whose profile is the weighted sum of theirs, so the
desired profile is fitted by them (Karras et al., arXiv 2312.02696, sec. 3 and appendix C).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from rfdit.storage.checksum import crc32_of_tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PowerProfile:
    """p(t) = (power + 1) t^power / end^(power + 1) for t from 0 to end, in steps."""

    power: float
    end: float


@dataclass(frozen=True)
class Fit:
    """A profile as a combination of others.

    coefficients: (n,). error: norm of the residual, relative to that of the profile.
    """

    coefficients: Array
    error: float


def inner_products(a: Sequence[PowerProfile], b: Sequence[PowerProfile]) -> Array:
    """(len(a), len(b)) integrals of p_a(t) p_b(t) over all t (appendix C)."""
    power_a, end_a = (np.array(v)[:, None] for v in ([p.power for p in a], [p.end for p in a]))
    power_b, end_b = (np.array(v)[None, :] for v in ([p.power for p in b], [p.end for p in b]))
    # Ratios of ends, since the powers of steps themselves would overflow in long runs.
    first, last = np.minimum(end_a, end_b), np.maximum(end_a, end_b)
    scale = (power_a + 1) * (power_b + 1) / (power_a + power_b + 1) / last
    return np.asarray(scale * (first / end_a) ** power_a * (first / end_b) ** power_b, dtype=np.float64)


def fit(stored: Sequence[PowerProfile], target: PowerProfile) -> Fit:
    """The combination of stored profiles that is nearest to `target` in the mean square.

    The coefficients sum to one, unlike those of the paper's plain least squares: otherwise the part that
    all averages have in common would be scaled, and outweigh their differences.
    """
    products = inner_products(stored, stored)
    # Scaled to norm one, so that early snapshots, whose profiles are short and high, count no more.
    norms, norm = np.sqrt(np.diag(products)), np.sqrt(inner_products([target], [target])[0, 0])
    gram = products / norms[:, None] / norms
    products_with_target = inner_products(stored, [target])[:, 0] / norms / norm
    # The last unknown is the Lagrange multiplier of the sum.
    ones = (norm / norms)[:, None]
    system = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])
    scaled = np.linalg.lstsq(system, np.append(products_with_target, 1.0), rcond=None)[0][:-1]
    squared = 1 - 2 * scaled @ products_with_target + scaled @ gram @ scaled
    return Fit(scaled * norm / norms, float(np.sqrt(max(squared, 0.0))))


def combine(files: Sequence[Path], coefficients: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    """Name and weighted sum of each tensor of the snapshots, float32, summed in float64.

    Raises ValueError for snapshots of different networks, for values that are not finite, and, after the
    last tensor, for a snapshot that does not match its checksum.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        names = set(opened[0].keys())
        for file, other in zip(files, opened):
            if set(other.keys()) != names:
                raise ValueError(f"{file} and {files[0]} are snapshots of different networks")
        sums = [0] * len(files)
        for name in sorted(names):
            total = torch.zeros(opened[0].get_slice(name).get_shape(), dtype=torch.float64)
            for i, (file, snapshot, coefficient) in enumerate(zip(files, opened, coefficients)):
                value = snapshot.get_tensor(name)
                sums[i] = crc32_of_tensor(value, sums[i])
                if not torch.isfinite(value).all():
                    raise ValueError(
                        f"{file} is not finite in {name}; its weights are beyond float16's 65504, or it is damaged"
                    )
                total.add_(value.double(), alpha=coefficient)
            yield name, total.float()
        for file, snapshot, crc in zip(files, opened, sums):
            if snapshot.metadata()["crc32"] != str(crc):
                raise ValueError(f"{file} is damaged: its weights do not match their checksum; move it away")
