"""Predictions of a network, the meanings of its output: velocity, data, noise, or EDM's mixture of both.

At one (z_t, t) each follows from each other by a linear formula, so a network of any prediction is a
velocity network behind a wrapper, which objectives, samplers, guidances and metrics use as they use any
other. Its weights keep the names that they have without the wrapper.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from rfdit import flow
from rfdit.batch import Condition, Latent, Time
from rfdit.flow import per_sample
from rfdit.limits import OpenFraction, Positive
from rfdit.model.vp_schedule import VPSchedule, norm
from rfdit.protocols import Backbone, RemarksOnSize

# Where a module has its layers and weights.
REGISTRIES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


@runtime_checkable
class Prediction(Protocol):
    """The meaning of a network's output."""

    def __call__(self, network: Backbone) -> Backbone:
        """The velocity network that a network with this output is."""
        ...


@runtime_checkable
class Formula(Protocol):
    """The formulas of a prediction other than velocity.

    learned_variance: the output has as many channels again, which parametrise a variance.
    """

    learned_variance: bool

    def inputs(self, z_t: Latent, t: Time) -> tuple[Latent, Time]:
        """What the network is given, whose times lie in [0, 1]."""
        ...

    def velocity(self, output: Latent, z_t: Latent, t: Time) -> Latent:
        """The velocity that an output stands for."""
        ...

    def quantity(self, z0: Latent, z1: Latent, t: Time) -> Latent:
        """The quantity whose expectation, given z_t, the output is."""
        ...


class VelocityPrediction:
    """The velocity itself, v = z1 - z0: the network as it is."""

    def __call__(self, network: Backbone) -> Backbone:
        return network


class DataPrediction:
    """The data x, with v = (z_t - x) / max(t, t_min) (JiT, arXiv 2511.13720).

    t_min: below it the velocity is smaller than that of the flow, in training and sampling alike, so that
        errors of x are not divided by numbers close to zero.
    """

    learned_variance = False

    def __init__(self, *, t_min: OpenFraction = 0.05) -> None:
        if not 0 < t_min < 1:
            raise ValueError(f"prediction.t_min={t_min} must lie between 0 and 1")
        self.t_min = t_min

    def __call__(self, network: Backbone) -> Backbone:
        return PredictingNetwork(network=network, prediction=self)

    def inputs(self, z_t: Latent, t: Time) -> tuple[Latent, Time]:
        return z_t, t

    def velocity(self, output: Latent, z_t: Latent, t: Time) -> Latent:
        return (z_t - output) / per_sample(t.clamp(min=self.t_min), z_t)

    def quantity(self, z0: Latent, z1: Latent, t: Time) -> Latent:
        return z0


class NoisePrediction:
    """The noise z1 of a variance-preserving diffusion, DDPM's epsilon: v = (epsilon - z_t) / (1 - t).

    The network sees x = z_t / sqrt((1 - t)^2 + t^2), of unit variance where the data has it, and the
    timestep of the schedule over its number, so that a sinusoid of 1000 t is one of DDPM's timestep.

    Beyond the schedule's last timestep, t = 0.994, where 1 - t goes to zero, it sees x at this timestep, and
    the velocity is that of x there.

    schedule: the timesteps. learned_variance: the network has twice the latent's channels, the second half
        of which parametrise the variance of DDPM's reverse steps (arXiv 2102.09672, eq. 15); `sampler=ddpm`
        uses them.
    """

    def __init__(self, *, schedule: VPSchedule, learned_variance: bool = False) -> None:
        self.schedule, self.learned_variance = schedule, learned_variance

    def __call__(self, network: Backbone) -> Backbone:
        return PredictingNetwork(network=network, prediction=self)

    def inputs(self, z_t: Latent, t: Time) -> tuple[Latent, Time]:
        return z_t / per_sample(norm(t), z_t), self.schedule.timestep(t) / self.schedule.timesteps

    def velocity(self, output: Latent, z_t: Latent, t: Time) -> Latent:
        level = t.clamp(max=self.schedule.end)
        return (output - z_t * per_sample(norm(level) / norm(t), z_t)) / per_sample(1 - level, z_t)

    def quantity(self, z0: Latent, z1: Latent, t: Time) -> Latent:
        return z1


class EDMPrediction:
    """EDM's F (arXiv 2206.00364, eq. 7), in the coordinates of the flow, where sigma = t / (1 - t).

    With S = t^2 + (1 - t)^2 s^2 and s = sigma_data, the network sees z_t / sqrt(S), of unit variance, and

        F = (t z0 / s - (1 - t) s z1) / sqrt(S)                   of unit variance
        v = ((t - (1 - t) s^2) z_t - s sqrt(S) F) / S

    The network is told t where EDM tells it ln(sigma) / 4, of which t is a function.
    sigma_data: standard deviation of the latents.
    """

    learned_variance = False

    def __init__(self, *, sigma_data: Positive = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, network: Backbone) -> Backbone:
        return PredictingNetwork(network=network, prediction=self)

    def inputs(self, z_t: Latent, t: Time) -> tuple[Latent, Time]:
        return z_t / per_sample(self._variance(t).sqrt(), z_t), t

    def velocity(self, output: Latent, z_t: Latent, t: Time) -> Latent:
        s, variance = self.sigma_data, self._variance(t)
        skip, out = (t - (1 - t) * s**2) / variance, s / variance.sqrt()
        return per_sample(skip, z_t) * z_t - per_sample(out, z_t) * output

    def quantity(self, z0: Latent, z1: Latent, t: Time) -> Latent:
        s, std = self.sigma_data, self._variance(t).sqrt()
        return per_sample(t / s / std, z0) * z0 - per_sample((1 - t) * s / std, z0) * z1

    def _variance(self, t: Time) -> Time:
        return t.square() + (1 - t).square() * self.sigma_data**2


class CosineVelocityPrediction:
    """The velocity of the cosine path, u = dx/ds for x = cos(pi s / 2) z0 + sin(pi s / 2) z1.

    SiT's "GVP" and REPA's "cosine"; up to pi / 2 the v-prediction of Salimans and Ho (arXiv 2202.00512). With
    angle = arctan(t / (1 - t)), x = z_t / sqrt((1 - t)^2 + t^2) and s = 2 angle / pi,

        v = (sin(angle) - cos(angle)) x + (2 / pi) (sin(angle) + cos(angle)) u
    """

    learned_variance = False

    def __call__(self, network: Backbone) -> Backbone:
        return PredictingNetwork(network=network, prediction=self)

    def inputs(self, z_t: Latent, t: Time) -> tuple[Latent, Time]:
        return z_t / per_sample(norm(t), z_t), 2 / math.pi * torch.atan2(t, 1 - t)

    def velocity(self, output: Latent, z_t: Latent, t: Time) -> Latent:
        length = norm(
            t
        )  # cos(angle) = (1 - t) / length, sin(angle) = t / length, and their sum is 1 / length
        x = z_t / per_sample(length, z_t)
        return per_sample((2 * t - 1) / length, z_t) * x + per_sample(2 / math.pi / length, z_t) * output

    def quantity(self, z0: Latent, z1: Latent, t: Time) -> Latent:
        length = norm(t)
        return math.pi / 2 * (per_sample((1 - t) / length, z0) * z1 - per_sample(t / length, z0) * z0)


class PredictingNetwork(nn.Module):
    """The velocity network that a network of another prediction is.

    It has the network's own layers and parameters, in the same registries and so under the same names: a
    state dict, a pattern of names or a shard is that of the network.

    network: the other. prediction: its formulas.
    """

    blocks: nn.ModuleList  # among the registered modules

    def __init__(self, *, network: Backbone, prediction: Formula) -> None:
        super().__init__()
        self._network = (network,)  # a tuple, since a submodule would prefix the names
        self.prediction = prediction
        vars(self).update({name: vars(network)[name] for name in REGISTRIES})
        self.patch_size, self.width = network.patch_size, network.width
        for name, value in vars(network).items():  # `inputs` of muP, and other capabilities
            if name not in vars(self) and not hasattr(type(self), name):
                setattr(self, name, value)
        if isinstance(network, RemarksOnSize):
            self.size_remark = network.size_remark

    @property
    def network(self) -> Backbone:
        """The network whose output is the prediction."""
        return self._network[0]

    def train(self, mode: bool = True) -> "PredictingNetwork":
        vars(self._network[0])["training"] = mode
        return super().train(mode)

    def forward(
        self, z_t: Latent, t: Time, cond: Condition, *, with_variance: bool = False
    ) -> Latent | tuple[Latent, Latent]:
        """with_variance: return the output's second half of channels as well."""
        output = self.network(*self.prediction.inputs(z_t, t), cond).float()
        channels = z_t.shape[1]
        expected = channels * (2 if self.prediction.learned_variance else 1)
        if output.shape[1] != expected:
            raise ValueError(
                f"model gives {output.shape[1]} channels for latents of {channels}, and prediction.learned_variance="
                f"{str(self.prediction.learned_variance).lower()} needs {expected}; set model.out_channels"
            )
        v = self.prediction.velocity(output[:, :channels], z_t.float(), t)
        return (v, output[:, channels:]) if with_variance else v

    def target(self, z0: Latent, z1: Latent, t: Time) -> Latent:
        """The velocity of the exact output: z1 - z0, or what a clamp makes of it."""
        return self.prediction.velocity(self.prediction.quantity(z0, z1, t), flow.interpolate(z0, z1, t), t)
