"""Random numbers keyed by sample, not by process.

A `torch.Generator` gives row i of a batch the next numbers of its stream, so noise depends on batch
size, rank and everything drawn before. Here a number is a hash of (seed, purpose, sample key, index):
the same sample gets the same noise on one device or sixty-four, before or after a resume, and there
remains nothing to save. The hash is SplitMix64's finaliser (Steele et al., 2014),
vectorised in int64 arithmetic, which wraps modulo 2^64 on every device.
"""

import math
import zlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
START = "image"  # purpose of the noise from which sampling starts


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as an unsigned integer."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; that of int64 is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64: every output bit depends on every input bit."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


class SampleGenerator:
    """Draws random numbers for samples, those of each sample from its own key.

    seed: the seed of the run; (b,) where samples have seeds of their own.
    keys: (b,), one integer per sample: its position in the stream, or the number of its image.
    purpose: separates draws, so that a new one never shifts the others; see `fork`.
    recorded: the generator of the images that the samples are, where a record says which they are.
    """

    def __init__(
        self,
        *,
        seed: int | Int[Tensor, "b"],
        keys: Int[Tensor, "b"],
        purpose: str = "",
        recorded: "SampleGenerator | None" = None,
    ) -> None:
        self.seed, self.keys, self.purpose, self.recorded = seed, keys, purpose, recorded
        checksum = zlib.crc32(purpose.encode())
        if isinstance(seed, Tensor):
            salt = seed.long() * _signed(GOLDEN) + checksum
        else:
            # Filled on the device: copying a number to it would wait for everything queued there.
            value = _signed(seed * GOLDEN + checksum)
            salt = torch.full((), value, dtype=torch.int64, device=keys.device)
        # The salt is mixed once more than the key, so that a seed and a key are not interchangeable.
        self._state = _mix(_mix(keys.long() * _signed(GOLDEN)) + _mix(_mix(salt)))

    def fork(self, purpose: str) -> "SampleGenerator":
        """An independent generator for the same samples and another purpose."""
        name = f"{self.purpose}/{purpose}"
        return SampleGenerator(seed=self.seed, keys=self.keys, purpose=name, recorded=self.recorded)

    def _bits(self, n: int) -> Int[Tensor, "b n"]:
        index = torch.arange(1, n + 1, device=self.keys.device)
        return _mix(self._state[:, None] + _mix(index * _signed(GOLDEN)))

    def uniform(self, *shape: int) -> Float[Tensor, "b ..."]:
        """Uniform on (0, 1), float32, of shape (b, *shape)."""
        bits = self._bits(math.prod(shape))
        # (k + 1/2) / 2^23 is exact in float32, so neither 0 nor 1 is ever drawn.
        return ((_shift_right(bits, 41) + 0.5) * 2**-23).float().view(-1, *shape)

    def normal(self, *shape: int) -> Float[Tensor, "b ..."]:
        """Standard normal, float32, of shape (b, *shape), by the Box-Muller transform."""
        n = math.prod(shape)
        bits = self._bits((n + 1) // 2)
        radius = torch.sqrt(-2 * torch.log(((_shift_right(bits, 32) + 1) * 2**-32).float()))
        angle = ((bits & 0xFFFFFFFF) * (2 * math.pi * 2**-32)).float()
        pair = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return pair[:, :n].reshape(-1, *shape)


def permutation(n: int, *, seed: int, purpose: str) -> Int[Tensor, "n"]:
    """A permutation of 0 to n - 1 that depends on (seed, purpose) alone, on every platform."""
    generator = SampleGenerator(seed=seed, keys=torch.arange(n), purpose=purpose)
    return generator._bits(1)[:, 0].argsort(stable=True)


def randrange(n: int, *, seed: int, purpose: str) -> int:
    """An integer from 0 to n - 1 that depends on (seed, purpose) alone."""
    generator = SampleGenerator(seed=seed, keys=torch.zeros(1, dtype=torch.int64), purpose=purpose)
    return int(generator._bits(1)) % n
