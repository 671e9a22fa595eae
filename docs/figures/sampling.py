"""python docs/figures/sampling.py: the figures of docs/learn/sampling.md."""

import matplotlib.pyplot as plt
import torch
from mixture import clusters, noise, of_class, ring
from style import BLUE, COLOURS, GREY, ORANGE, save

from rfdit.randomness import SampleGenerator
from rfdit.sampler import (
    RK4,
    ClassifierFree,
    Euler,
    EulerMaruyama,
    Heun,
    Midpoint,
    NoGuidance,
    Sampler,
    SigmaDiffusion,
)
from rfdit.sampler.time_grids import LastStepGrid


def steps() -> None:
    """The same noise through 2, 4 and 32 steps of Euler's method."""
    field, z1 = ring(), noise(40, 1)
    null = of_class(-1, 40)
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.7))
    for ax, count in zip(axes, (2, 4, 32)):
        states = [z1]
        sampler = Sampler(solver=Euler(), guidance=NoGuidance(), steps=count)
        sampler(field, z1, null, null, on_step=lambda _, z, states=states: states.append(z))
        path = torch.stack(states).flatten(2)
        ax.plot(path[..., 0], path[..., 1], "-", color=GREY, alpha=0.4, lw=0.8)
        ax.scatter(*path[0].T, s=7, color=ORANGE)
        ax.scatter(*path[-1].T, s=7, color=BLUE)
        ax.set(title=f"{count} steps", aspect="equal", xticks=[], yticks=[], xlim=(-3, 3), ylim=(-3, 3))
        ax.grid(False)
    save(figure, "sampling_steps")


def errors() -> None:
    """The distance from the exact end of the path over the number of evaluations."""
    field, z1, null = ring(std=0.4), noise(500, 3).double(), of_class(-1, 500)
    field.means = field.means.double()
    exact = Sampler(solver=RK4(), guidance=NoGuidance(), steps=400)(field, z1, null, null)
    figure, ax = plt.subplots(figsize=(5, 3))
    for solver, each, name in (
        (Euler(), 1, "euler"),
        (Midpoint(), 2, "midpoint"),
        (Heun(), 2, "heun"),
        (RK4(), 4, "rk4"),
    ):
        counts = [n for n in (2, 4, 8, 16, 32, 64, 128) if n * each <= 128]
        distances = []
        for count in counts:
            end = Sampler(solver=solver, guidance=NoGuidance(), steps=count)(field, z1, null, null)
            distances.append((end - exact).flatten(1).norm(dim=1).mean())
        ax.loglog([n * each for n in counts], distances, "o-", ms=3, label=f"sampler={name}")
    ax.set(
        xlabel="NFE: evaluations of the network", ylabel="mean distance from the exact end", ylim=(1e-5, 2)
    )
    ax.legend()
    save(figure, "sampling_errors")


def guidance() -> None:
    """Samples of one of two overlapping classes, at three scales."""
    field, n = clusters(), 600
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.4), sharex=True, sharey=True)
    other = field.draw(3000, 5).flatten(1)
    for ax, scale in zip(axes, (1, 2, 6)):
        sampler = Sampler(solver=Heun(), guidance=ClassifierFree(scale=scale), steps=60)
        images = sampler(field, noise(n, 4), of_class(0, n), of_class(-1, n)).flatten(1)
        ax.scatter(*other.T, s=1, color=GREY, alpha=0.25, lw=0, rasterized=True)
        ax.scatter(*images.T, s=3, color=BLUE, alpha=0.7, lw=0, rasterized=True)
        ax.set(
            title=f"CFG scale {scale}", aspect="equal", xticks=[], yticks=[], xlim=(-3.2, 4), ylim=(-2.6, 2.2)
        )
        ax.grid(False)
    save(figure, "sampling_guidance")


def paths() -> None:
    """One coordinate over time: the ODE's paths are smooth, the SDE's rough, and both end in the data."""
    field, n = ring(), 12
    z1, null = noise(n, 7), of_class(-1, n)
    keys = SampleGenerator(seed=0, keys=torch.arange(n))
    sde = EulerMaruyama(diffusion=SigmaDiffusion())
    samplers = {
        "ODE: sampler=euler": Sampler(solver=Euler(), guidance=NoGuidance(), steps=200),
        "SDE: sampler=sde": Sampler(solver=sde, guidance=NoGuidance(), steps=200, grid=LastStepGrid()),
    }
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.6), sharey=True)
    for ax, (title, sampler) in zip(axes, samplers.items()):
        states = [z1]
        sampler(field, z1, null, null, generator=keys, on_step=lambda _, z, states=states: states.append(z))
        paths = torch.stack(states).flatten(2)[..., 0]
        for i in range(n):
            ax.plot(sampler.times(torch.device("cpu")), paths[:, i], lw=0.9, color=COLOURS[i % len(COLOURS)])
        ax.set(title=title, xlabel="t", xlim=(1, 0))
    axes[0].set_ylabel("first coordinate")
    save(figure, "sampling_paths")


if __name__ == "__main__":
    steps()
    errors()
    guidance()
    paths()
