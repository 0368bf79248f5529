"""What the plots of all pages share: how they are drawn, and files that stay the same."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "yujian"  # the same figures make the same file

OWN_COLOUR = "#0f766e"
"""Of this service."""


def name_axes(axes: Axes, text: str, size: int) -> None:
    """Name a plot, and leave out the lines that frame it."""
    axes.set_title(text, loc="left", fontsize=size)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, target: Path) -> None:
    """Write an SVG, and forget the figure."""
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
