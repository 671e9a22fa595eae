"""The look of all figures: no background and middle tones, so that they are read on light and dark pages alike.

`python docs/figures/NAME.py [FOLDER]` writes the figures of a page to docs/images/learn, or to another folder.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure

IMAGES = Path(__file__).parents[1] / "images/learn"
GREY = "#8a8a8a"
BLUE, ORANGE, GREEN, RED, PURPLE = COLOURS = "#4c8bd6", "#e08a2e", "#3fa66b", "#d65f5f", "#9a76c9"

plt.rcParams.update(
    {
        "axes.edgecolor": GREY,
        "axes.grid": True,
        "axes.labelcolor": GREY,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": GREY,
        "axes.titlesize": 10,
        "figure.constrained_layout.use": True,
        "figure.dpi": 110,
        "font.size": 9,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "legend.labelcolor": GREY,
        "lines.linewidth": 1.6,
        "savefig.transparent": True,
        "svg.hashsalt": "rfdit",
        "text.color": GREY,
        "xtick.color": GREY,
        "ytick.color": GREY,
    }
)


def save(figure: Figure, name: str) -> None:
    """Write NAME.svg."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, dpi=200)
    plt.close(figure)
