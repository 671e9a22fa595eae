"""python docs/figures/training.py: the figures of docs/learn/training.md."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from style import save

from rfdit import flow
from rfdit.objective import CosMapTime, LogitNormalTime, ModeTime, UniformTime
from rfdit.randomness import SampleGenerator


def densities() -> None:
    """The densities of t that the options of the group time draw from, and what a shift makes of one."""
    generator = SampleGenerator(seed=0, keys=torch.arange(1_000_000))
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.7), sharey=True)
    bins = np.linspace(0, 1, 81)

    def draw(ax: plt.Axes, t: torch.Tensor, label: str) -> None:
        heights, _ = np.histogram(t.numpy(), bins=bins, density=True)
        ax.plot((bins[1:] + bins[:-1]) / 2, heights, label=label)

    for label, time in (
        ("uniform", UniformTime()),
        ("logit_normal", LogitNormalTime()),
        ("mode", ModeTime()),
        ("cosmap", CosMapTime()),
    ):
        draw(left, time(generator), f"time={label}")
    for shift in (0.5, 1, 3):
        draw(right, flow.shift_time(LogitNormalTime()(generator), shift), f"objective.shift={shift}")
    left.set(title="the group time", xlabel="t", ylabel="density")
    right.set(title="logit_normal, shifted", xlabel="t")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    save(figure, "training_densities")


def floor() -> None:
    """The loss that no network can go below, for Gaussian data of several widths."""
    t = torch.linspace(0, 1, 201)
    figure, ax = plt.subplots(figsize=(5, 2.8))
    for std in (1.0, 0.5, 0.2, 0.05):
        variance = (1 - t) ** 2 * std**2 + t**2
        ax.plot(t, std**2 / variance, label=f"s = {std}")
    ax.set(
        xlabel="t",
        ylabel="E |v* - v|², per number",
        title="the floor of the loss, data N(0, s²)",
        yscale="log",
    )
    ax.legend()
    save(figure, "training_floor")


if __name__ == "__main__":
    densities()
    floor()
