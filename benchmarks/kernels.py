"""Each op against its PyTorch definition, LAPACK, and the time that its bytes take at the least.

"of floor" is floor / time, see ``aadl_ext.bench``, whose cases are measured here in many sizes.

    python benchmarks/kernels.py [--quick] [--threads N] [--out DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pictures import draw
from records import RESULTS, save
from tqdm import tqdm

from aadl_ext.bench import Case, cases, measure, normal, table

SIZES = [10_000, 1_000_000, 5_000_000, 25_600_000]
DEPTHS = [5, 10, 20, 32]
WINDOWS = [5, 10]
FIGURES = ("columns", "seconds", "floor", "definition", "read_rate", "write_rate")


def all_cases(size: int) -> Iterator[Case]:
    """All depths and windows, and what LAPACK needs for a factorisation."""
    for depth in DEPTHS:
        for case in cases(size, depth):
            if case.op not in ("window_statistics", "add_sample_"):
                yield case
        yield from lapack(size, depth)
    for window in WINDOWS:
        yield from (c for c in cases(size, 1, window) if c.op == "window_statistics")
    yield from (c for c in cases(size, 1) if c.op == "add_sample_")


def lapack(size: int, depth: int) -> Iterator[Case]:
    """R factor and least squares, as torch has them."""
    joined = normal(depth + 1, size).T
    factor = lambda: torch.linalg.qr(joined, mode="r")  # noqa: E731
    yield Case("linalg.qr", depth + 1, depth + 1, 0, factor, is_op=False)
    least = lambda: torch.linalg.lstsq(joined[:, :-1], joined[:, -1:])  # noqa: E731
    yield Case("linalg.lstsq", depth, depth + 1, 0, least, is_op=False)


def measure_all(sizes: list[int], budget: float) -> list[dict[str, Any]]:
    """All cases of all sizes."""
    return [
        measure(case, size, budget)
        for size in sizes
        for case in tqdm(all_cases(size), f"N = {size:.3g}")
    ]


def by_op(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each op and size, with lists of figures."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for one in measured:
        key = (one["op"], one["size"])
        row = rows.setdefault(key, {"op": one["op"], "size": one["size"]})
        for name in FIGURES:
            row.setdefault(name, []).append(one[name])
    return list(rows.values())


def plot(result: dict[str, Any], path: Path) -> None:
    """Share of the floor over columns, a panel for each size."""
    sizes = sorted({row["size"] for row in result["rows"]})
    figure = Figure(figsize=(4 * len(sizes), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for row in result["rows"]:
            if row["size"] == size:
                shares = [a / b for a, b in zip(row["floor"], row["seconds"], strict=True)]
                axes.plot(row["columns"], shares, "o-", label=row["op"])
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(yscale="log", xlabel="columns", title=f"N = {size:.3g}")
    figure.axes[0].set_ylabel("share of memory speed")
    figure.axes[-1].legend(fontsize=7)
    draw(figure, path)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes, budget = (SIZES[:2], 0.05) if options.quick else (SIZES, 0.5)
    measured = measure_all(sizes, budget)
    print(table(measured))
    result = {"rows": by_op(measured)}
    path = save(f"kernels_{options.threads}_threads", result, options.out)
    plot(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
