"""The loop that integrates a velocity field from noise to data."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float32
from torch import Tensor

from rfdit.batch import Condition, Latent
from rfdit.flow import shift_time
from rfdit.limits import Count, Positive
from rfdit.protocols import VelocityNetwork, takes_durations
from rfdit.randomness import SampleGenerator
from rfdit.sampler.guidance import (
    ChecksNetwork,
    Guidance,
    IsNetworkInput,
    check_unguided,
    follows_condition_alone,
    innermost,
)
from rfdit.sampler.solvers import ReadsNetwork, Solver, StochasticSolver, UsesMeanVelocities
from rfdit.sampler.time_grids import TimeGrid, UniformGrid

UNIFORM = UniformGrid()


class Sampler:
    """Integrates dz/dt = v from t = 1 (noise) to t = 0 (data); training, evaluation and `sample.py` share it.

    steps: the number N of steps, on the N + 1 times of the grid.
    shift: moves these times towards noise, as in training; see `shift_time`.
    evaluations: velocities computed in the last call; a guided one counts once.
    Raises ValueError for steps below 1, a shift that is not positive, and guidance of a solver that has none.
    """

    def __init__(
        self,
        *,
        solver: Solver | StochasticSolver,
        guidance: Guidance,
        steps: Count,
        shift: Positive = 1.0,
        grid: TimeGrid = UNIFORM,
    ) -> None:
        if steps < 1:
            raise ValueError(f"sampler.steps={steps} must be at least 1")
        if not 0 < shift < math.inf:
            raise ValueError(f"sampler.shift={shift} must be positive")
        self.solver, self.guidance = solver, guidance
        self.steps, self.shift, self.grid = steps, shift, grid
        self.evaluations = 0
        self._check_guidance()

    def check(self, network: VelocityNetwork) -> None:
        """Raises ValueError for a network that it does not sample from, or not with its guidance."""
        self._check_guidance()
        if isinstance(guidance := innermost(self.guidance), ChecksNetwork):
            guidance.check(network)
        if not (isinstance(guidance, IsNetworkInput) or follows_condition_alone(guidance)):
            check_unguided(network)
        if isinstance(self.solver, ReadsNetwork):
            self.solver.reading(network)
        if takes_durations(network) and not self._uses_mean_velocities:
            raise ValueError(
                f"sampler.solver={type(self.solver).__name__} asks for velocities at single times, and this model is "
                "one of mean velocities over steps (model.durations=true); use a sampler with the solver FlowMap"
            )

    def _check_guidance(self) -> None:
        if self._uses_mean_velocities and not follows_condition_alone(self.guidance):
            raise ValueError(
                f"guidance={type(self.guidance).__name__} is for velocities at single times, and mean velocities over "
                "steps are guided in training; use guidance=none"
            )

    @property
    def _uses_mean_velocities(self) -> bool:
        return isinstance(self.solver, UsesMeanVelocities) and self.solver.mean_velocities

    def times(self, device: torch.device, latent_size: tuple[int, int] | None = None) -> Float32[Tensor, "n"]:
        """The N + 1 times, from exactly 1 down to exactly 0.

        latent_size: (height, width) of a latent; grids that depend on it raise ValueError without it.
        """
        return shift_time(self.grid(self.steps, latent_size), self.shift).float().to(device)

    @torch.no_grad()
    def __call__(
        self,
        backbone: VelocityNetwork,
        noise: Latent,
        cond: Condition,
        null: Condition,
        *,
        start: float = 1.0,
        generator: SampleGenerator | None = None,
        on_step: Callable[[int, Latent], None] | None = None,
    ) -> Latent:
        """Latents (b, c, h, w) at t = 0.

        noise: (b, c, h, w) latents at time `start`. cond, null: the conditions to follow and to move
            away from, b rows each.
        start: below 1, `noise` is partly data; all N steps are taken from there.
        generator: randomness of the samples, for stochastic solvers; others draw nothing.
        on_step: called with (steps done, latents so far) after each step.
        Raises ValueError for a start outside (0, 1], for a stochastic solver without a generator, and as `check`
        does.
        """
        if not 0 < start <= 1:
            raise ValueError(f"start={start} must be above 0 and at most 1")
        self.check(backbone)
        solver, network = self.solver, backbone
        if isinstance(solver, ReadsNetwork):
            solver, network = solver.reading(backbone)
        guided = self.guidance(network, cond, null)
        self.evaluations = 0

        def field(z: Latent, t: Tensor) -> Latent:
            self.evaluations += 1
            return guided(z, t).float()

        # Scalars on the CPU combine with tensors on any device, and reading them does not wait for it.
        times = start * self.times(torch.device("cpu"), (noise.shape[-2], noise.shape[-1]))
        z = noise.float()
        for i, (t, t_next) in enumerate(pairwise(times)):
            if isinstance(solver, StochasticSolver):
                z = solver.noisy_step(field, z, t, t_next, _step_noise(generator, i, z))
            else:
                z = solver.step(field, z, t, t_next)
            if on_step is not None:
                on_step(i + 1, z)
        return z


def _step_noise(generator: SampleGenerator | None, step: int, like: Latent) -> Latent:
    """The noise of a step, drawn for each sample by itself and so independent of the batch."""
    if generator is None:
        raise ValueError("sampler.solver draws noise in each step; call the sampler with a generator")
    return generator.fork(f"step {step}").normal(*like.shape[1:])
