"""python docs/figures/foundations.py: the figures of docs/learn/foundations.md."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from style import BLUE, GREEN, GREY, ORANGE, PURPLE, save

from rfdit.data.shapes.scenes import parse, render
from rfdit.model.layers.embeddings import sincos_positions, sinusoid


def tokens() -> None:
    """An image, its patches, and the row of tokens; then what tells the tokens apart."""
    image = render(parse("a large red circle"), resolution=32)
    figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.6), width_ratios=[1, 1, 1])
    axes[0].imshow(image, interpolation="none")
    axes[0].set(title="an image, 32 x 32", xticks=[], yticks=[])
    gap = np.full((43, 43, 4), 0, dtype=np.uint8)
    for row in range(4):
        for column in range(4):
            patch = image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            gap[11 * row : 11 * row + 8, 11 * column : 11 * column + 8, :3] = patch
            gap[11 * row : 11 * row + 8, 11 * column : 11 * column + 8, 3] = 255
    axes[1].imshow(gap[:41, :41], interpolation="none")
    axes[1].set(title="patch=p8: 16 tokens", xticks=[], yticks=[])
    positions = sincos_positions(4, 4, 96)
    axes[2].imshow((positions @ positions[5]).view(4, 4), cmap="viridis", interpolation="none")
    axes[2].set(title="likeness to position 5", xticks=[], yticks=[])
    for ax in axes:
        ax.grid(False)
        for side in ax.spines.values():
            side.set_visible(False)
    save(figure, "foundations_tokens")


def time_embedding() -> None:
    """The sinusoids of the time, and how alike the embeddings of two times are."""
    t = torch.linspace(0, 1, 400)
    embedded = sinusoid(1000 * t, 256)
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.6))
    left.imshow(embedded[:, :128].T, aspect="auto", cmap="RdBu", interpolation="none", extent=(0, 1, 127, 0))
    left.set(title="cos(1000 t w_i): fast above, slow below", xlabel="t", ylabel="i")
    left.grid(False)
    for at, colour in ((0.1, BLUE), (0.5, ORANGE), (0.9, GREEN)):
        here = sinusoid(1000 * torch.tensor([at]), 256)[0]
        right.plot(t, embedded @ here / 128, color=colour, label=f"t' = {at}")
    right.set(title="likeness of Emb(t) and Emb(t')", xlabel="t", ylim=(0, 1.3))
    right.legend(ncols=3, loc="upper center", fontsize=8)
    save(figure, "foundations_time")


def block() -> None:
    """One DiT block: where shift, scale and gate act."""
    figure, ax = plt.subplots(figsize=(7.4, 2.5))
    ax.set(xlim=(-0.3, 13), ylim=(-0.6, 3.6))
    ax.axis("off")
    ax.annotate("", (13, 2.7), (-0.2, 2.7), arrowprops={"arrowstyle": "->", "color": GREY})
    ax.text(-0.2, 2.85, "x", fontsize=10)
    for half, name in enumerate(("attention", "MLP")):
        x = 0.3 + 6.4 * half
        ax.plot([x, x, x + 0.15], [2.7, 1.35, 1.35], color=GREY, lw=1)
        for i, text in enumerate(("norm", "x (1 + scale)\n+ shift", name, "x gate")):
            left, from_condition = x + 0.15 + 1.45 * i, i in (1, 3)
            colour = ORANGE if from_condition else BLUE if i == 2 else GREY
            ax.add_patch(Rectangle((left, 0.9), 1.25, 0.9, fc=colour, alpha=0.25))
            ax.text(left + 0.625, 1.35, text, ha="center", va="center", fontsize=7.5)
            if i < 3:
                ax.plot([left + 1.25, left + 1.45], [1.35, 1.35], color=GREY, lw=1)
            if from_condition:
                arrow = {"arrowstyle": "->", "color": PURPLE}
                ax.annotate("", (left + 0.625, 0.88), (6.4, -0.1), arrowprops=arrow)
        ax.annotate(
            "", (x + 6, 2.68), (x + 6, 1.35), arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 0}
        )
        ax.plot([x + 5.75, x + 6], [1.35, 1.35], color=GREY, lw=1)
        ax.text(x + 6, 2.85, "+", ha="center", fontsize=11)
    ax.text(
        6.4,
        -0.45,
        "y = Emb(t) + condition, through SiLU and one linear layer that starts at zero",
        ha="center",
    )
    save(figure, "foundations_block")


def attention() -> None:
    """Which tokens attend to which: without a caption, with cross-attention beside it, and jointly."""
    figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.7))
    image, text, padding = 9, 4, 2
    n = image + text + padding
    titles = ("DiT: image tokens only", "cross-attention: image to both", "MMDiT: both to both")
    for which, ax in enumerate(axes):
        grid = np.zeros((n, n, 4))
        grid[:image, :image] = to_rgba(BLUE, 0.7)
        if which >= 1:
            grid[:image, image : image + text] = to_rgba(ORANGE, 0.7)
        if which == 2:
            grid[image:, :image] = to_rgba(GREEN, 0.7)
            grid[image:, image : image + text] = to_rgba(PURPLE, 0.7)
        ax.imshow(grid, interpolation="none")
        ax.set(
            title=titles[which],
            xticks=[4, 10.5, 13.5],
            xticklabels=["image", "caption", "pad"],
            yticks=[4, 11.5],
        )
        ax.set_yticklabels(["image", "caption"], rotation=90, va="center")
        ax.title.set_fontsize(8.5)
        ax.tick_params(length=0)
        ax.axhline(image - 0.5, color=GREY, lw=0.8)
        ax.axvline(image - 0.5, color=GREY, lw=0.8)
        ax.grid(False)
    axes[0].set_ylabel("queries")
    figure.supxlabel("keys and values", fontsize=9)
    save(figure, "foundations_attention")


if __name__ == "__main__":
    tokens()
    time_embedding()
    block()
    attention()
