"""Each op against its PyTorch definition, LAPACK, and the time that its bytes take at the least.

The floor of an op is what it must read at the read rate, plus what it must write at the write
rate, both measured right after it, for the speed of a machine changes; "of floor" is floor / time
(1 is memory speed; small sizes may exceed it, because caches are faster).

    python benchmarks/kernels.py [--quick] [--threads N] [--out DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pictures import draw
from records import RESULTS, save
from rich.console import Console
from rich.table import Table
from timing import median_seconds, memory_rates
from torch import Tensor
from tqdm import tqdm

from aadl_ext import ops
from aadl_ext.ops.library import definitions_only
from aadl_ext.parameters import zeros

SIZES = [10_000, 1_000_000, 5_000_000, 25_600_000]
DEPTHS = [5, 10, 20, 32]
WINDOWS = [5, 10]
BYTES = 4
FIGURES = ("columns", "seconds", "floor", "definition", "read_rate", "write_rate")

Case = tuple[str, int, int, int, Callable[[], object], bool]


def cases(size: int) -> Iterator[Case]:
    """Name, columns, vectors read and written, the call, whether it is an op."""
    size = -(-size // 64) * 64
    vectors, bounds = normal(5, size), [0, size]
    for depth in DEPTHS:
        rows, steps = normal(depth, size), normal(depth, size)
        named = {
            "rates": [0.1], "offsets": bounds, "residual": vectors[4], "last_point": vectors[2],
            "last_residual": vectors[3], "step_rows": steps, "residual_rows": rows, "slot": 0,
            "systems": torch.zeros(1, depth + 1, depth + 1, dtype=torch.float64),
        }  # fmt: skip
        yield (
            "push_secant", depth, 4 + depth - 1, 3,
            lambda named=named: ops.push_secant(*vectors[:2], **named),
            True,
        )  # fmt: skip
        weights = torch.full((1, depth), 1e-3, dtype=torch.float64)
        point = (vectors[4], *vectors[:2], 0.5, rows, weights, bounds)
        yield (
            "extrapolate_", depth, 2 + depth, 1,
            lambda point=point: ops.extrapolate_(*point),
            True,
        )  # fmt: skip
        yield from factorisations(rows, vectors[0])
    for count in WINDOWS:
        window = list(normal(count, size))
        yield (
            "window_statistics", count, count, 1,
            lambda window=window: ops.window_statistics(window, vectors[4]),
            True,
        )  # fmt: skip
    sums = list(normal(3, size))
    sample = {"sign": -1.0, "direction": vectors[3]}
    yield (
        "add_sample_", 3, 7, 3,
        lambda: ops.add_sample_(sums, *vectors[:3], **sample),
        True,
    )  # fmt: skip


def normal(count: int, size: int) -> Tensor:
    """Random rows, in the memory that an accelerator would use."""
    return zeros((count, size), torch.float32, torch.device("cpu")).normal_()


def factorisations(rows: Tensor, column: Tensor) -> Iterator[Case]:
    """TSQR and float64 Gram matrix of [R | r] beside what LAPACK needs for the same."""
    depth, matrix = len(rows), rows.T
    factor = lambda: ops.tsqr(matrix, append=column)  # noqa: E731
    yield "tsqr", depth + 1, depth + 1, 0, factor, True
    joined = torch.cat([rows, column[None]]).T
    vectors, bounds = list(joined.T), [0, len(column)]
    yield (
        "gram", depth + 1, depth + 1, 0,
        lambda: ops.cross_products(joined.T, vectors, bounds),
        True,
    )  # fmt: skip
    yield "linalg.qr", depth + 1, depth + 1, 0, lambda: torch.linalg.qr(joined, mode="r"), False
    least = lambda: torch.linalg.lstsq(matrix, column[:, None])  # noqa: E731
    yield "linalg.lstsq", depth, depth + 1, 0, least, False


def measure(sizes: list[int], budget: float) -> dict[str, Any]:
    """All cases of all sizes, a row for each op and size; times in seconds."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for size in sizes:
        for name, columns, reads, writes, call, is_op in tqdm(cases(size), f"N = {size:.3g}"):
            seconds = median_seconds(call, budget)
            read, write = memory_rates(budget / 5)
            with definitions_only():
                slow = median_seconds(call, budget, least=1) if is_op else None
            floor = size * BYTES * (reads / read + writes / write)
            row = rows.setdefault((name, size), {"op": name, "size": size})
            figures = (columns, seconds, floor, slow, read, write)
            for key, value in zip(FIGURES, figures, strict=True):
                row.setdefault(key, []).append(value)
    return {"rows": list(rows.values())}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    rows = result["rows"]
    rates = [median(r for row in rows for r in row[f"{way}_rate"]) for way in ("read", "write")]
    title = "read {:.1f} GB/s, write {:.1f} GB/s (medians)".format(*(rate / 1e9 for rate in rates))
    table = Table(
        "op", "N", "columns", "ms", "floor ms", "of floor", "definition / op", title=title
    )
    for row in rows:
        figures = (row[key] for key in FIGURES[:4])
        for columns, seconds, floor, definition in zip(*figures, strict=True):
            table.add_row(
                row["op"],
                f"{row['size']:.3g}",
                str(columns),
                f"{1e3 * seconds:.3g}",
                f"{1e3 * floor:.3g}",
                f"{floor / seconds:.2f}",
                "" if definition is None else f"{definition / seconds:.1f}",
            )
    Console(width=100).print(table)


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
    result = measure(SIZES[:2] if options.quick else SIZES, 0.05 if options.quick else 0.5)
    show(result)
    path = save(f"kernels_{options.threads}_threads", result, options.out)
    plot(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
