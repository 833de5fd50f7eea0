"""Shared by the examples: curves of residuals as a small PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

RESULTS = Path(__file__).resolve().parents[2] / "research" / "results"


def draw(name: str, title: str, curves: Mapping[str, Sequence[float]], **labels: str) -> Path:
    """Curves over evaluations of f, logarithmic, in few colours."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, values) in enumerate(curves.items()):
        axes.semilogy(range(1, len(values) + 1), values, f"C{index}", label=label)
    axes.set(
        title=title,
        xlabel=labels.get("x", "evaluations of f"),
        ylabel=labels.get("y", "|f(x) - x|"),
    )
    axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    path = RESULTS / f"fixed_points_{name}.png"
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(16).save(path, optimize=True)
    return path
