"""python docs/figures/overview.py: the figures of docs/learn/overview.md."""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from mixture import noise, of_class, ring
from style import BLUE, GREEN, GREY, ORANGE, PURPLE, save

from rfdit import flow
from rfdit.sampler import Euler, NoGuidance, Sampler

N = 60


def lines(ax: Axes, paths: torch.Tensor, title: str) -> None:
    """Paths (times, n, 2) from noise (orange) to data (blue)."""
    ax.plot(paths[..., 0], paths[..., 1], color=GREY, alpha=0.35, lw=0.9)
    ax.scatter(*paths[0].T, s=9, color=ORANGE, label="noise, t = 1", zorder=3)
    ax.scatter(*paths[-1].T, s=9, color=BLUE, label="data, t = 0", zorder=3)
    ax.set(title=title, aspect="equal", xticks=[], yticks=[], xlim=(-2.9, 2.9), ylim=(-2.9, 2.9))
    ax.grid(False)


def paths() -> None:
    """Random pairs, and the flow of the mean velocity of all pairs."""
    field, z1 = ring(), noise(N, 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6))
    times = torch.linspace(1, 0, 61)
    z0 = field.draw(N, 2)
    pairs = torch.stack([flow.interpolate(z0, z1, t.expand(N)).flatten(1) for t in times])
    lines(left, pairs, "training: straight lines between random pairs")
    states = [z1]
    sampler = Sampler(solver=Euler(), guidance=NoGuidance(), steps=60)
    sampler(field, z1, of_class(-1, N), of_class(-1, N), on_step=lambda _, z: states.append(z))
    lines(right, torch.stack(states).flatten(2), "sampling: the mean velocity at every point")
    right.legend(loc="upper right", fontsize=8)
    save(figure, "overview_paths")


def box(ax: Axes, x: float, y: float, text: str, colour: str, width: float = 1.7) -> None:
    ax.add_patch(
        FancyBboxPatch((x, y), width, 0.9, boxstyle="round,pad=0.03", fc=colour, ec=colour, alpha=0.25, lw=0)
    )
    ax.text(x + width / 2, y + 0.45, text, ha="center", va="center", fontsize=8.5)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY})
    ax.text((start[0] + end[0]) / 2, start[1] + 0.12, text, ha="center", fontsize=7.5)


def stack() -> None:
    """The parts of a latent Diffusion Transformer, training above and sampling below."""
    figure, ax = plt.subplots(figsize=(7.6, 3))
    ax.set(xlim=(-0.1, 12.3), ylim=(-0.2, 4.4))
    ax.axis("off")
    box(ax, 0, 3.2, "image", GREY)
    box(ax, 2.7, 3.2, "autoencoder:\nencode", PURPLE)
    box(ax, 5.4, 3.2, "z_t = z0 +\nt (z1 - z0)", ORANGE)
    box(ax, 8.1, 3.2, "DiT\nv(z_t, t, c)", BLUE)
    box(ax, 10.8, 3.2, "loss", GREEN, 1.4)
    box(ax, 5.4, 1.6, "noise z1,\ntime t", GREY)
    box(ax, 8.1, 1.6, "text encoder\nor label table", PURPLE)
    box(ax, 2.7, 0, "autoencoder:\ndecode", PURPLE)
    box(ax, 0, 0, "image", GREY)
    box(ax, 5.4, 0, "solver:\ndz = v dt", ORANGE)
    box(ax, 8.1, 0, "DiT\nv(z, t, c)", BLUE)
    for start, text in ((1.75, ""), (4.45, "z0"), (7.15, "z_t"), (9.85, "v")):
        arrow(ax, (start, 3.65), (start + 0.9, 3.65), text)
    for x in (6.25, 8.95):
        arrow(ax, (x, 2.55), (x, 3.15))
        arrow(ax, (x, 1.55), (x, 0.95))
    arrow(ax, (2.65, 0.45), (1.75, 0.45))
    arrow(ax, (5.35, 0.45), (4.45, 0.45), "z0")
    ax.annotate("", (8.05, 0.3), (7.15, 0.3), arrowprops={"arrowstyle": "->", "color": GREY})
    ax.annotate("", (7.15, 0.6), (8.05, 0.6), arrowprops={"arrowstyle": "->", "color": GREY})
    ax.text(7.6, 0.68, "v", ha="center", fontsize=7.5)
    ax.text(7.6, 0.02, "z, t", ha="center", fontsize=7.5)
    ax.text(11.5, 2.9, "training", ha="center", fontsize=8.5, style="italic")
    ax.text(11.5, 0.4, "sampling", ha="center", fontsize=8.5, style="italic")
    save(figure, "overview_stack")


if __name__ == "__main__":
    paths()
    stack()
