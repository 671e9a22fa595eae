"""python docs/figures/diffusions.py: the figures of docs/learn/diffusions.md."""

import math

import matplotlib.pyplot as plt
import torch
from mixture import noise, of_class, ring
from style import BLUE, GREEN, GREY, ORANGE, save

from rfdit.sampler import Euler, NoGuidance, Sampler

ABAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)  # DDPM's linear betas
STEPS = torch.arange(1000, dtype=torch.float64) / 999
COSINE = (torch.cos((STEPS + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2


def plane() -> None:
    """Every method mixes data and noise, alpha z0 + sigma z1, along its own curve; rays have one SNR."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.3))
    angle = torch.linspace(0, math.pi / 2, 100)
    left.plot(angle.cos(), angle.sin(), color=BLUE, label="variance preserving")
    left.plot([1, 0], [0, 1], color=ORANGE, label="straight path")
    left.plot([1, 1], [0, 1.5], color=GREEN, label="EDM: alpha = 1")
    for t in (0.2, 0.35, 0.5, 0.58):
        left.plot([0, 1.02], [0, 1.02 * t / (1 - t)], color=GREY, lw=0.8, ls="--")
        norm = math.hypot(1 - t, t)
        left.scatter([1 - t, (1 - t) / norm, 1], [t, t / norm, t / (1 - t)], s=14, color=GREY, zorder=3)
    left.set(xlabel="alpha, the share of data", ylabel="sigma, that of noise", xlim=(0, 1.15), ylim=(0, 1.5))
    left.set(title="one noise level is one ray")
    left.legend(fontsize=8, loc="upper left")
    for abar, name in ((ABAR, "linear betas"), (COSINE, "cosine schedule")):
        alpha, sigma = abar.sqrt(), (1 - abar).clamp(min=0).sqrt()
        right.plot(STEPS * 999, sigma / (alpha + sigma), label=f"DDPM, {name}")
    right.plot(STEPS * 999, STEPS, color=GREY, ls="--", lw=1, label="equal steps of t")
    right.set(xlabel="timestep of DDPM", ylabel="t", title="timesteps as times of the straight path")
    right.legend(fontsize=8)
    save(figure, "diffusions_plane")


def trajectories() -> None:
    """The same twelve solutions in the coordinates of the straight path, of DDPM and of EDM."""
    field, n = ring(), 12
    states = [noise(n, 7)]
    sampler = Sampler(solver=Euler(), guidance=NoGuidance(), steps=400)
    sampler(field, states[0], of_class(-1, n), of_class(-1, n), on_step=lambda _, z: states.append(z))
    t = sampler.times(torch.device("cpu"))[:, None]
    z = torch.stack(states).flatten(2)[..., 0]
    norm = (t**2 + (1 - t) ** 2).sqrt()
    figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.6))
    axes[0].plot(t, z)
    axes[0].set(title="straight path: z", xlabel="t", xlim=(1, 0))
    axes[1].plot(2 / math.pi * torch.atan2(t, 1 - t), z / norm)
    axes[1].set(title="variance preserving: x = z / |(1-t, t)|", xlabel="angle / 90°", xlim=(1, 0))
    inside = t[:, 0] < 0.95
    axes[2].plot((t / (1 - t))[inside], (z / (1 - t))[inside])
    axes[2].set(title="EDM: x = z / (1 - t)", xlabel="sigma = t / (1 - t)", xlim=(19, 0))
    for ax in axes:
        for line, colour in zip(ax.lines, 3 * [BLUE, ORANGE, GREEN, GREY]):
            line.set(color=colour, lw=1)
        ax.title.set_fontsize(8.5)
    save(figure, "diffusions_trajectories")


if __name__ == "__main__":
    plane()
    trajectories()
