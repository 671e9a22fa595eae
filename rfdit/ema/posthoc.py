"""An average of any length from snapshots of others: least squares on their profiles.

Karras et al., arXiv 2312.02696, sec. 3 and appendix C: a weighted sum of stored averages is an
average whose profile is the weighted sum of theirs, so the wanted profile is fitted by them.
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

from rfdit.checksum import crc32_of_tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PowerProfile:
    """p(t) = (power + 1) t^power / end^(power + 1) for t from 0 to end, in steps."""

    power: float
    end: float


@dataclass(frozen=True)
class Fit:
    """coefficients: (n,) of the profiles.

    error: the norm of what they miss of the wanted profile, relative to its own.
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


def fit(stored: Sequence[PowerProfile], wanted: PowerProfile) -> Fit:
    """The combination of stored profiles that is nearest to the wanted one in the mean square.

    The coefficients sum to one, which the paper's least squares alone do not see to: without that,
    what all averages have in common would be scaled, and outweigh what they differ in.
    """
    products = inner_products(stored, stored)
    # Scaled to norm one, so that early snapshots, whose profiles are short and high, count no more.
    norms, norm = np.sqrt(np.diag(products)), np.sqrt(inner_products([wanted], [wanted])[0, 0])
    gram = products / norms[:, None] / norms
    target = inner_products(stored, [wanted])[:, 0] / norms / norm
    # The last unknown is the Lagrange multiplier of the sum.
    ones = (norm / norms)[:, None]
    system = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])
    scaled = np.linalg.lstsq(system, np.append(target, 1.0), rcond=None)[0][:-1]
    squared = 1 - 2 * scaled @ target + scaled @ gram @ scaled
    return Fit(scaled * norm / norms, float(np.sqrt(max(squared, 0.0))))


def combine(files: Sequence[Path], coefficients: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    """Name and float32 weighted sum of each tensor of the snapshots, summed in float64.

    Raises ValueError for snapshots of different networks, for one that is not finite, and in the end for
    one that is not what was written.
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
            if snapshot.metadata().get("crc32", str(crc)) != str(crc):  # older ones do not say
                raise ValueError(f"{file} is damaged: its weights are not what was written; move it away")
