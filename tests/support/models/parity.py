"""Two velocity networks held against each other: at some times, and over a whole sampled trajectory."""

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
STEPS = 20


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def trajectory(velocity: Velocity, noise: Tensor) -> Tensor:
    """The end of so many Euler steps from t = 1 to 0."""
    z = noise
    for i in range(STEPS):
        z = z - velocity(z, torch.full((len(z),), 1 - i / STEPS)) / STEPS
    return z


def check_parity(name: str, ours: Velocity, theirs: Velocity, z: Tensor, t: Tensor) -> None:
    """Asserts that both are the same to 1e-5, and prints by how much they differ (`pytest -s`)."""
    with torch.no_grad():
        once = difference(ours(z, t), theirs(z, t))
        whole = difference(trajectory(ours, z), trajectory(theirs, z))
    print(f"{name}: forward {once:.1e}, trajectory {whole:.1e}")
    assert max(once, whole) <= 1e-5
