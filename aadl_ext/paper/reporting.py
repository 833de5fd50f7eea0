"""Table and plot of an experiment's results, which are plain records (see harness.py)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..demo.report import draw_band, mean_and_interval

COLOURS = ("blue", "green", "red", "purple", "orange", "brown", "pink", "olive", "cyan", "gray")

Record = dict[str, Any]


def report(
    results: Record, methods: list[str], picture: Path, scale: str = "log", as_json: bool = False
) -> None:
    """Draw the plot as ``picture`` and print the table of some methods, or a line of JSON."""
    plot(results, methods, picture, scale)
    rows = summary(results, methods)
    if as_json:
        print(json.dumps(_plain({"title": results["title"], "plot": str(picture), "rows": rows})))
    else:
        show(results["title"], rows, methods[0])


def figures(results: Record) -> list[str]:
    """Names of what was watched."""
    return list(results["runs"][0]["curves"])


def of(results: Record, method: str) -> list[Record]:
    """The runs of a method, by seed."""
    return [record for record in results["runs"] if record["method"] == method]


def final(run: Record, figure: str) -> float | None:
    """A figure at the end of a run; None where the run was lost."""
    value: float | None = run["final"][figure]
    return value


def best(run: Record, figure: str) -> float | None:
    """The smallest value on the way, as far as a run was looked at."""
    return min((value for value in run["curves"][figure] if value is not None), default=None)


def ratio(
    results: Record,
    method: str,
    base: str,
    figure: str,
    pick: Callable[[Record, str], float | None] = final,
) -> tuple[float, float, float]:
    """Geometric mean over common seeds of a figure / that of ``base``, and its 95 % interval.

    NaN where a run was lost, or where a figure is zero.
    """
    others = {run["seed"]: pick(run, figure) for run in of(results, base)}
    runs = [run for run in of(results, method) if run["seed"] in others]
    pairs = [(pick(run, figure), others[run["seed"]]) for run in runs]
    if not pairs or not all(value for pair in pairs for value in pair):
        return math.nan, math.nan, math.nan
    logarithms = np.log(_numbers(pairs))
    mean, half = mean_and_interval(logarithms[:, :1] - logarithms[:, 1:])
    return tuple(math.exp(x) for x in (mean[0], mean[0] - half[0], mean[0] + half[0]))  # type: ignore[return-value]


def summary(results: Record, methods: list[str]) -> list[Record]:
    """A row for each method that has runs: of each figure at the end ``[mean, half of its 95 %
    interval, median]``; of the first the ratio to the first method with its interval, and at its
    best on the way the median and that ratio. NaN where a run was lost.
    """
    rows = []
    first = figures(results)[0]
    for method in methods:
        runs = of(results, method)
        if not runs:
            continue
        ends = {name: _spread([run["final"][name] for run in runs]) for name in figures(results)}
        counted = {
            name: sum(run["stats"].get(name, 0) for run in runs)
            for name in ("accepted", "jumps", "averaged", "steps")
        }
        rows.append(
            {
                "method": method,
                "final": ends,
                "ratio": ratio(results, method, methods[0], first, final),
                "best": float(np.median(_numbers([best(run, first) for run in runs]))),
                "best_ratio": ratio(results, method, methods[0], first, best),
                "seeds": len(runs),
                "lost": sum(run["final"][first] is None for run in runs),
                **counted,
                "seconds": float(np.median([run["seconds"] for run in runs])),
            }
        )
    return rows


def _spread(finals: list[float | None]) -> tuple[float, float, float]:
    values = _numbers(finals)
    mean, half = mean_and_interval(values[:, None])
    return float(mean[0]), float(half[0]), float(np.median(values))


def show(title: str, rows: list[Record], base: str) -> None:
    """Print a table of a summary, whose ratios are to ``base``."""
    from rich.console import Console
    from rich.table import Table

    watched = list(rows[0]["final"])
    table = Table(title=title)
    table.add_column("")
    for name in watched:
        table.add_column(f"{name}\nmean ± 95 % (median)", justify="right")
    table.add_column(f"{watched[0]}\n/ {base}", justify="right")
    table.add_column(f"at its best\n(median), / {base}", justify="right")
    for heading in ("seeds", "lost", "accepted of\nextrapolated", "averaged\nof steps", "s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row["method"], *_cells(row))
    Console(width=None if os.isatty(1) else 170).print(table)


def _cells(row: Record) -> list[str]:
    def interval(name: str) -> str:
        return "{:.3g} [{:.3g}, {:.3g}]".format(*row[name])

    def share(part: str, whole: str) -> str:
        return f"{row[part] / row[whole]:.0%}" if row[whole] else ""

    return [
        *("{:.3g} ± {:.1g} ({:.3g})".format(*end) for end in row["final"].values()),
        interval("ratio"),
        f"({row['best']:.3g}) {interval('best_ratio')}",
        str(row["seeds"]),
        str(row["lost"]),
        share("accepted", "jumps"),
        share("averaged", "steps"),
        f"{row['seconds']:.0f}",
    ]


def _plain(value: Any) -> Any:
    """The same without what JSON has no number for: None."""
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: Any) -> NDArray[np.float64]:
    return np.array(values, dtype=float)  # None becomes NaN


def plot(results: Record, methods: list[str], path: Path, scale: str = "log") -> None:
    """Draw a panel for each figure: mean and 95 % band of each method, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = figures(results)
    figure = Figure(figsize=(5.5 * len(names), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for method, colour in zip(methods, cycle(COLOURS), strict=False):
            if runs := of(results, method):
                curves = _numbers([run["curves"][name] for run in runs])
                draw_band(axes, results["at"], curves, method, f"tab:{colour}")
        axes.set(xlabel=results["unit"], ylabel=name, yscale=scale)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    seeds = {record["seed"] for record in results["runs"]}
    figure.suptitle(
        f"{results['title']}: mean and 95 % interval, {len(seeds)} seed(s)", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    _save_small(figure, path)


def _save_small(figure: Any, path: Path) -> None:
    """As PNG of few colours, a fifth of the bytes."""
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    with Image.open(buffer) as image:
        _few_colours(image).save(path, optimize=True)


def _few_colours(image: Any) -> Any:
    """The curves' colours, black, white and the 20 most common ones in place of all others."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    pixels = np.asarray(image.convert("RGB")).astype(int)
    curves = [to_rgb(f"C{index}") for index in range(10)] + [(0, 0, 0), (1, 1, 1)]
    colours, places, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    palette = np.concatenate([np.rint(255 * np.array(curves)), colours[np.argsort(-counts)[:20]]])
    distances = ((colours[:, None] - palette) ** 2).sum(axis=-1)
    made = Image.fromarray(distances.argmin(axis=1)[places].reshape(pixels.shape[:2]).astype("u1"))
    made.putpalette(palette.astype("u1").tobytes())
    return made
