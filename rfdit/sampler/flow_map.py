"""Steps by mean velocities, which are exact for any length."""

from dataclasses import replace

import torch
from torch import Tensor

from rfdit.batch import Condition, Latent, Time
from rfdit.protocols import VelocityNetwork, takes_durations
from rfdit.sampler.solvers import Euler, VelocityField


class MeanOverStep:
    """A velocity network that gives the mean velocity over the step to come.

    duration: that of the step, of shape ().
    """

    def __init__(self, network: VelocityNetwork) -> None:
        self.network = network
        self.duration = torch.zeros(())

    def __call__(self, z_t: Latent, t: Time, cond: Condition) -> Latent:
        return self.network(z_t, t, replace(cond, duration=self.duration.to(t).expand(len(t))))


class FlowMap:
    """z_r = z_t - (t - r) u(z_t, r, t), with the mean velocity u over the time from r to t: one evaluation per step.

    With u = (t - r)^-1 int_r^t v(z_s, s) ds, which a network learns (arXiv 2505.13447), a step of any length
    is that of the flow: there are as many steps as the network's errors ask for, often one. Euler's step has the
    velocity at t in its place.
    Raises ValueError for steps towards noise, over which networks learn no mean velocity.
    """

    mean_velocities = True

    def __init__(self) -> None:
        self._over_step: MeanOverStep | None = None

    def reading(self, network: VelocityNetwork) -> tuple["FlowMap", VelocityNetwork]:
        """The solver for one network, and the network to guide in place of it; ValueError for one without durations."""
        if not takes_durations(network):
            raise ValueError(
                "sampler.solver=FlowMap needs a model of mean velocities (model.durations=true), and this one knows "
                "velocities at single times; use sampler=euler or heun"
            )
        other = FlowMap()
        other._over_step = MeanOverStep(network)
        return other, other._over_step

    def alone(self) -> Euler:
        """Steps of as many evaluations, to count them."""
        return Euler()

    def step(self, field: VelocityField, z: Latent, t: Tensor, t_next: Tensor) -> Latent:
        if t_next > t:
            raise ValueError(
                "sampler.solver=FlowMap goes from noise to data alone; use a model of velocities at single times with "
                "sampler=euler or heun for the way back"
            )
        assert self._over_step is not None, "`reading` gives the solver for a network"
        self._over_step.duration = t - t_next
        return z - (t - t_next) * field(z, t)
