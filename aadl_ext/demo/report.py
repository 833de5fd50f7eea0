"""Files and statistics that the demo and the paper's experiments share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write(path: Path, text: str) -> None:
    """Write all of ``text``; an interrupted write leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def mean_and_interval(values: NDArray[np.float64]) -> tuple[Any, Any]:
    """Mean over the first axis and half the width of its 95 % interval (Student's t)."""
    from scipy import stats

    count = len(values)
    if count < 2:
        return values.mean(axis=0), np.zeros_like(values[0])
    error = values.std(axis=0, ddof=1) / np.sqrt(count)
    return values.mean(axis=0), stats.t.ppf(0.975, count - 1) * error


def draw_band(axes: Any, at: Any, curves: NDArray[np.float64], label: str, colour: str) -> None:
    """Draw mean and 95 % interval of ``curves`` [runs, points] over ``at`` [points]."""
    mean, half = mean_and_interval(curves)
    axes.plot(at, mean, color=colour, label=label, linewidth=1.2)
    # The interval may reach below zero, which a logarithmic axis cannot show.
    low = np.maximum(mean - half, curves.min(axis=0))
    axes.fill_between(at, low, mean + half, color=colour, alpha=0.2)
