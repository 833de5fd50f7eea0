"""How fast the kernels are here, against what the memory of this machine allows.

The floor of an op is what it must read at the read rate, plus what it must write at the write
rate, both measured right after it, for the speed of a machine changes; floor / time is 1 at memory
speed, and may exceed it where caches hold the vectors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops
from .buffers import zeros
from .ops.library import definitions_only

BYTES = 4  # of an entry
WINDOW = 5


class Case(NamedTuple):
    """A call that can be timed."""

    op: str
    columns: int
    reads: int  #: vectors read at the least
    writes: int
    call: Callable[[], object]
    is_op: bool = True  #: of this package: it has a definition to compare with


def median_seconds(call: Callable[[], object], budget: float, least: int = 3) -> float:
    """Median time of ``call`` after one warm-up, over as many calls as fit into ``budget``."""
    call()
    times: list[float] = []
    while len(times) < least or sum(times) < budget:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if len(times) >= 2000:
            break
    return median(times)


def memory_rates(budget: float, entries: int = 1 << 26) -> tuple[float, float]:
    """Bytes per second of reading (a dot product) and of writing past the caches (memset)."""
    x = torch.ones(entries)
    half = entries // 2
    read = BYTES * entries / median_seconds(lambda: torch.dot(x[:half], x[half:]), budget)
    write = BYTES * entries / median_seconds(x.zero_, budget)
    return read, write


def normal(count: int, size: int) -> Tensor:
    """Random rows, in the memory that an accelerator would use."""
    return zeros((count, size), torch.float32, torch.device("cpu")).normal_()


def cases(size: int, depth: int, window: int = WINDOW) -> Iterator[Case]:
    """The passes over memory that a step is made of, on ``size`` entries and ``depth`` rows."""
    size = -(-size // 64) * 64
    vectors, bounds = normal(5, size), [0, size]
    rows, steps = normal(depth, size), normal(depth, size)
    named: dict[str, Any] = {
        "rates": [0.1], "offsets": bounds, "residual": vectors[4], "last_point": vectors[2],
        "last_residual": vectors[3], "step_rows": steps, "residual_rows": rows, "slot": 0,
        "systems": torch.zeros(1, depth + 1, depth + 1, dtype=torch.float64),
    }  # fmt: skip
    push = lambda: ops.push_secant(*vectors[:2], **named)  # noqa: E731
    yield Case("push_secant", depth, 4 + depth - 1, 3, push)
    weights = torch.full((1, depth), 1e-3, dtype=torch.float64)
    point = (vectors[4], *vectors[:2], 0.5, rows, weights, bounds)
    yield Case("extrapolate_", depth, 2 + depth, 1, lambda: ops.extrapolate_(*point))
    matrix, column = rows.T, vectors[0]
    factor = lambda: ops.tsqr(matrix, append=column)  # noqa: E731
    yield Case("tsqr", depth + 1, depth + 1, 0, factor)
    columns = [*rows, column]
    joined = torch.stack(columns).T
    gram = lambda: ops.cross_products(joined.T, columns, bounds)  # noqa: E731
    yield Case("gram", depth + 1, depth + 1, 0, gram)
    iterates = list(normal(window, size))
    statistics = lambda: ops.window_statistics(iterates, vectors[4])  # noqa: E731
    yield Case("window_statistics", window, window, 1, statistics)
    sums = list(normal(3, size))
    lists = ([vectors[0]], vectors[1], [vectors[2]])
    add = lambda: ops.add_sample_(sums, *lists, sign=-1.0, direction=vectors[3])  # noqa: E731
    yield Case("add_sample_", 3, 7, 3, add)


def measure(case: Case, size: int, budget: float) -> dict[str, Any]:
    """Seconds of a call, of its floor and of its definition; rates in bytes per second."""
    seconds = median_seconds(case.call, budget)
    read, write = memory_rates(budget / 5)
    with definitions_only():
        definition = median_seconds(case.call, budget, least=1) if case.is_op else None
    return {
        "op": case.op,
        "size": size,
        "columns": case.columns,
        "seconds": seconds,
        "floor": size * BYTES * (case.reads / read + case.writes / write),
        "definition": definition,
        "read_rate": read,
        "write_rate": write,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Of what :func:`measure` gave, as text."""
    read, write = (median(row[f"{way}_rate"] for row in rows) for way in ("read", "write"))
    lines = [
        f"{torch.get_num_threads()} threads; memory reads {read / 1e9:.1f} GB/s and writes "
        f"{write / 1e9:.1f} GB/s",
        f"{'op':<18}{'entries':>9}{'columns':>9}{'ms':>9}{'floor':>9}{'of floor':>10}"
        f"{'definition / op':>17}",
    ]
    for row in rows:
        gain = "" if row["definition"] is None else f"{row['definition'] / row['seconds']:.1f}"
        lines.append(
            f"{row['op']:<18}{row['size']:>9.3g}{row['columns']:>9}{1e3 * row['seconds']:>9.3f}"
            f"{1e3 * row['floor']:>9.3f}{row['floor'] / row['seconds']:>10.2f}{gain:>17}"
        )
    return "\n".join(lines)


def bench(size: int, depth: int, budget: float) -> list[dict[str, Any]]:
    """All ops on one size."""
    return [measure(case, size, budget) for case in cases(size, depth)]
