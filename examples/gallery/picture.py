"""Shared by the gallery: ``--quick`` for tests, ``--out FILE.svg`` for the picture."""

from __future__ import annotations

import argparse
from pathlib import Path

_parser = argparse.ArgumentParser()
_parser.add_argument("--quick", action="store_true", help="few steps, as the tests run it")
_parser.add_argument("--out", type=Path, metavar="FILE.svg", help="draw the curves")
options = _parser.parse_args()


def steps(usual: int, quick: int) -> int:
    """How many to train."""
    return quick if options.quick else usual


def draw(curves: dict[str, list[float]], ylabel: str = "loss", xlabel: str = "step") -> None:
    """Curves by name, on a logarithmic axis, if a picture is asked for."""
    for name, values in curves.items():
        print(f"{name}: {values[-1]:.3g} at the end")
    if options.out is None:
        return
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "aadl_ext"  # equal curves give equal files
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(values, label=name, linewidth=1.2)
    axes.set(yscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(options.out, metadata={"Date": None})
