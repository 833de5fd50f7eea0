"""Summary and performance profiles (Dolan and More, 2002) of the runs of the convergence suite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pictures import draw
from rich.console import Console
from rich.table import Table

Record = dict[str, Any]

REGIMES: dict[str, Callable[[int], bool]] = {
    "full batch": lambda batch: batch == 0,
    "mini-batch 16 and up": lambda batch: batch >= 16,
    "batch 8": lambda batch: 0 < batch < 16,
}
TICKS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5]  # of the plot
NEVER = 5.0  # the ratio that stands for it
WORSE = 1.02  # a ratio above this is a loss


def figures(runs: list[Record], name: str) -> list[float]:
    """The ratios ``name`` of runs, sorted; what is not finite (None) is the worst."""
    return sorted(math.inf if run[name] is None else run[name] for run in runs if name in run)


def summarize(records: Iterable[Record], methods: list[str]) -> list[Record]:
    """A row for each regime and method that has runs."""
    rows: list[Record] = []
    everything = list(records)
    for regime, holds in REGIMES.items():
        for method in methods:
            runs = [r for r in everything if r["method"] == method and holds(r["batch"])]
            ratios = figures(runs, "ratio")
            if not ratios:
                continue
            validation = figures(runs, "validation_ratio")
            rows.append(
                {
                    "regime": regime,
                    "method": method,
                    "runs": len(ratios),
                    "median": median(ratios),
                    "90 %": ratios[math.ceil(0.9 * len(ratios)) - 1],
                    "worst": ratios[-1],
                    f"> {WORSE}": sum(ratio > WORSE for ratio in ratios),
                    "wall time": median(figures(runs, "wall_ratio")),
                    "final loss": median(figures(runs, "loss_ratio")),
                    "validation": median(validation) if validation else None,
                }
            )
    return rows


def show(rows: list[Record]) -> None:
    """A table for each regime."""
    for regime in dict.fromkeys(row["regime"] for row in rows):
        of_regime = [row for row in rows if row["regime"] == regime]
        headings = [name for name in of_regime[0] if name != "regime"]
        table = Table(title=f"{regime}: ratios to the base optimizer")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "method" else "right")
        for row in of_regime:
            table.add_row(*(_text(row[heading]) for heading in headings))
        Console(width=110).print(table)


def show_medians(records: Iterable[Record], methods: list[str], by: str) -> None:
    """Median ratio (and runs above 1.02 of all) of each method, a row for each value of ``by``."""
    everything = [record for record in records if "ratio" in record]
    for regime, holds in REGIMES.items():
        table = Table(by, *methods, title=f"{regime}: median ratio (runs above {WORSE} / runs)")
        runs = [r for r in everything if holds(r["batch"])]
        for value in dict.fromkeys(run[by] for run in runs):
            cells = []
            for method in methods:
                ratios = [r["ratio"] for r in runs if (r[by], r["method"]) == (value, method)]
                above = sum(ratio > WORSE for ratio in ratios)
                cells.append(f"{median(ratios):.2f} ({above}/{len(ratios)})" if ratios else "")
            table.add_row(str(value), *cells)
        Console(width=40 + 16 * len(methods)).print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot(records: Iterable[Record], methods: list[str], path: Path) -> None:
    """Fraction of runs with a ratio of at most tau, over tau, never 1 where some never arrive."""
    everything = list(records)
    seen = {
        name: holds for name, holds in REGIMES.items() if any(holds(r["batch"]) for r in everything)
    }
    figure = Figure(figsize=(4.4 * len(seen), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(seen), squeeze=False)[0]
    for axes, (regime, holds) in zip(panels, seen.items(), strict=True):
        for index, method in enumerate(methods):
            runs = [r for r in everything if r["method"] == method and holds(r["batch"])]
            ratios = figures(runs, "ratio")
            if not ratios:
                continue
            solved = [ratio for ratio in ratios if ratio < NEVER]
            shares = [(place + 1) / len(ratios) for place in range(len(solved))]
            axes.step(
                [0.01, *solved, 2 * NEVER],
                [0, *shares, len(solved) / len(ratios)],
                where="post",
                label=method,
                color=f"C{index % 10}",
                linestyle=":" if method in {"base", "null"} else ("-", "--")[index // 10 % 2],
                linewidth=1.3,
            )
        axes.axvline(1, color="grey", linewidth=0.8)
        axes.set(xscale="log", xlim=(0.05, NEVER), ylim=(0, 1.02), title=regime)
        axes.set(xlabel="gradient evaluations over those of base")
        axes.set_xticks(TICKS, labels=map(str, TICKS))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("fraction of runs")
    draw(figure, path)
