"""How noise becomes latents."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float32
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.flow import shift_time
from rfdit.protocols import Backbone
from rfdit.randomness import SampleGenerator
from rfdit.sampler.grids import TimeGrid, UniformGrid
from rfdit.sampler.guidance import Guidance
from rfdit.sampler.solvers import Solver, StochasticSolver

UNIFORM = UniformGrid()


class Sampler:
    """Integrates from noise to data; training, evaluation and `sample.py` share it.

    steps: N steps, on the N + 1 times of the grid. shift: moves these towards noise, as in training.
    evaluations: velocities computed in the last call; a guided one counts once.
    """

    def __init__(
        self,
        *,
        solver: Solver | StochasticSolver,
        guidance: Guidance,
        steps: int,
        shift: float = 1.0,
        grid: TimeGrid = UNIFORM,
    ) -> None:
        if steps < 1:
            raise ValueError(f"sampler.steps={steps} must be at least 1")
        if shift <= 0:
            raise ValueError(f"sampler.shift={shift} must be positive")
        self.solver, self.guidance = solver, guidance
        self.steps, self.shift, self.grid = steps, shift, grid
        self.evaluations = 0

    def times(self, device: torch.device, latent_size: tuple[int, int] | None = None) -> Float32[Tensor, "n"]:
        """The N + 1 grid points, from exactly 1 down to exactly 0.

        latent_size: (height, width) of what is sampled; grids that depend on it raise ValueError without.
        """
        return shift_time(self.grid(self.steps, latent_size), self.shift).float().to(device)

    @torch.no_grad()
    def __call__(
        self,
        backbone: Backbone,
        noise: Latent,
        cond: Condition,
        null: Condition,
        *,
        start: float = 1.0,
        generator: SampleGenerator | None = None,
        on_step: Callable[[int, Latent], None] | None = None,
    ) -> Latent:
        """Latents (b, c, h, w) at t = 0.

        cond, null: what to follow and what to move away from, one row per sample.
        start: the time of `noise`, which then is data in part; all steps are taken from there.
        generator: of the samples, for stochastic solvers; others draw nothing.
        on_step: called with (steps done, latents so far) after each step.
        Raises ValueError for a start that is not above 0 and at most 1.
        """
        if not 0 < start <= 1:
            raise ValueError(f"start={start} must be above 0 and at most 1")
        guided = self.guidance(backbone, cond, null)
        self.evaluations = 0

        def field(z: Latent, t: Tensor) -> Latent:
            self.evaluations += 1
            return guided(z, t).float()

        # Scalars on the CPU go with tensors on any device, and looking at them does not wait for it.
        times = start * self.times(torch.device("cpu"), (noise.shape[-2], noise.shape[-1]))
        z = noise.float()
        for i, (t, t_next) in enumerate(pairwise(times)):
            if isinstance(self.solver, StochasticSolver):
                z = self.solver.noisy_step(field, z, t, t_next, _step_noise(generator, i, z))
            else:
                z = self.solver.step(field, z, t, t_next)
            if on_step is not None:
                on_step(i + 1, z)
        return z


def _step_noise(generator: SampleGenerator | None, step: int, like: Latent) -> Latent:
    """Each sample's noise of a step: its own, whatever the batch it is made in."""
    if generator is None:
        raise ValueError("sampler.solver draws noise in each step; call the sampler with a generator")
    return generator.fork(f"step {step}").normal(*like.shape[1:])
