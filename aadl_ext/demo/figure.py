"""The demo's figure: a panel for each part, to be understood without the text around it."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from .compare import rows, sentences
from .parts import (
    ANDERSON,
    AVERAGE,
    BASE,
    DEFAULT,
    LINE_SEARCH,
    MOMENTUM,
    MOMENTUM_DEFAULT,
    Part,
    Run,
)

COLOURS = {
    BASE: "#444444",
    MOMENTUM: "#444444",
    DEFAULT: "#0072b2",
    MOMENTUM_DEFAULT: "#0072b2",
    LINE_SEARCH: "#e69f00",
    ANDERSON: "#009e73",
    AVERAGE: "#cc3311",
}
POINTS = 200  # of a mean curve


def draw(parts: list[Part], runs: list[Run], words: bool = True) -> Any:
    """A matplotlib figure; with what was found in ``words`` below, if no page says it."""
    from matplotlib.figure import Figure

    shown = [part for part in parts if any(run.part == part.name for run in runs)]
    figure = Figure(figsize=(5.2 * len(shown), 5.6 if words else 4.6), layout="constrained")
    seeds = len({run.seed for run in runs})
    figure.suptitle(
        f"Loss against gradient evaluations: lower and further left is better ({seeds} seeds; "
        "lines: geometric mean, bands: smallest to largest)",
        fontsize=10,
    )
    for axes, part in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _panel(axes, part, runs)
        if words:
            _caption(axes, part, runs)
    return figure


def _panel(axes: Any, part: Part, runs: list[Run]) -> None:
    for method in part.methods:
        own = [run for run in runs if (run.part, run.method) == (part.name, method)]
        if not own:
            continue
        at = np.linspace(max(r.evaluations[0] for r in own), own[0].evaluations[-1], POINTS)
        for name, style, band in (("train", "-", 0.18), ("valid", ":", 0.0)):
            curves = np.array([_log_curve(at, run.evaluations, getattr(run, name)) for run in own])
            label = method if name == "train" else None
            axes.plot(at, np.exp(curves.mean(0)), style, color=COLOURS[method], label=label)
            if band:
                low, high = np.exp(curves.min(0)), np.exp(curves.max(0))
                axes.fill_between(at, low, high, color=COLOURS[method], alpha=band, linewidth=0)
    axes.plot([], [], ":", color="gray", label=part.validation)
    axes.set(yscale="log", xlabel="gradient evaluations", ylabel="training loss")
    axes.set_title(part.title, fontsize=11, fontweight="bold")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, framealpha=0.9)


def _caption(axes: Any, part: Part, runs: list[Run]) -> None:
    said = "\n".join(fill(line, 78) for line in sentences(part, rows(part, runs)))
    axes.annotate(
        said, (0, -0.15), xycoords="axes fraction", va="top", fontsize=7.5, annotation_clip=False
    )


def _log_curve(at: Any, evaluations: list[int], losses: list[float]) -> Any:
    values = np.maximum(np.nan_to_num(losses, nan=np.inf, posinf=1e30), 1e-30)
    return np.interp(at, evaluations, np.log(values))


def save(figure: Any, path: Path) -> None:
    """As PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def as_svg(figure: Any) -> str:
    """To be put into a page."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
