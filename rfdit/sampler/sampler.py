"""How noise becomes latents."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.flow import shift_time
from rfdit.protocols import Backbone
from rfdit.sampler.guidance import Guidance
from rfdit.sampler.solvers import Solver


class Sampler:
    """Integrates from noise to data; training, evaluation and `sample.py` share it.

    steps: N steps, on N + 1 times. shift: moves the times towards noise, as in training.
    evaluations: velocities computed in the last call; a guided one counts once.
    """

    def __init__(self, *, solver: Solver, guidance: Guidance, steps: int, shift: float = 1.0) -> None:
        if steps < 1:
            raise ValueError(f"sampler.steps={steps} must be at least 1")
        self.solver, self.guidance, self.steps, self.shift = solver, guidance, steps, shift
        self.evaluations = 0

    def times(self, device: torch.device) -> Tensor:
        """The N + 1 grid points, from exactly 1 down to exactly 0."""
        uniform = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return shift_time(uniform, self.shift).float().to(device)

    @torch.no_grad()
    def __call__(
        self,
        backbone: Backbone,
        noise: Latent,
        cond: Condition,
        null: Condition,
        *,
        on_step: Callable[[int, Latent], None] | None = None,
    ) -> Latent:
        """Latents (b, c, h, w) at t = 0.

        cond, null: what to follow and what to move away from, one row per sample.
        on_step: called with (steps done, latents so far) after each step.
        """
        guided = self.guidance(backbone, cond, null)
        self.evaluations = 0

        def field(z: Latent, t: Tensor) -> Latent:
            self.evaluations += 1
            return guided(z, t).float()

        z, times = noise.float(), self.times(noise.device)
        for i, (t, t_next) in enumerate(pairwise(times)):
            z = self.solver.step(field, z, t, t_next)
            if on_step is not None:
                on_step(i + 1, z)
        return z
