"""Time of each op on a GPU as a share of what copying as many bytes would take.

    python benchmarks/cuda_kernels.py --json research/results/cuda.json

A share of 1 is the speed of a device-to-device copy of the same number of bytes. TSQR stands
beside ``torch.linalg.qr`` of the same matrix. Times are medians of CUDA events.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from records import compact, write
from torch import Tensor

from aadl_ext import ops

DEVICE = "cuda"
SIZES = (1_000_000, 25_600_000, 200_000_000)
DEPTHS = (5, 10, 20, 32)


def milliseconds(call: Callable[[], object], repeats: int = 20) -> float:
    """Median time on the device."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return median(times)


def copy_bandwidth(size: int = 500_000_000) -> float:
    """Bytes read and written a millisecond."""
    source = torch.empty(size, device=DEVICE)
    target = torch.empty_like(source)
    return 8 * size / milliseconds(lambda: target.copy_(source))


def cases(size: int, depth: int, storage: torch.dtype) -> Iterator[tuple[str, int, Any]]:
    """Name, bytes moved, and call of each op."""
    vectors = list(torch.randn(6, size, device=DEVICE))
    rows = torch.randn(2, depth, size, device=DEVICE, dtype=storage)
    systems = torch.zeros(1, depth + 1, depth + 1, dtype=torch.float64, device=DEVICE)
    gamma = torch.randn(1, depth, dtype=torch.float64, device=DEVICE)
    entry, bounds = rows.element_size(), [0, size]

    def push() -> Tensor:
        return ops.push_secant(
            vectors[0], vectors[1], rates=[0.1], offsets=bounds, residual=vectors[2],
            last_point=vectors[3], last_residual=vectors[4], step_rows=rows[0],
            residual_rows=rows[1], slot=0, systems=systems,
        )  # fmt: skip

    def extrapolate() -> Tensor:
        return ops.extrapolate_(vectors[5], *vectors[:2], 0.5, rows[0], gamma, bounds)

    yield "push_secant", size * (20 + (depth + 1) * entry), push
    yield "extrapolate_", size * (12 + depth * entry), extrapolate
    window = [row for row in rows.flatten(0, 1) if row.dtype == torch.float32][:depth]
    if window:
        yield (
            "window_statistics",
            size * 4 * (len(window) + 1),
            lambda: ops.window_statistics(window, vectors[5]),
        )
    both = size * 2 * depth * entry
    yield "cross_products", both, lambda: ops.cross_products(rows[0], list(rows[1]), bounds)
    if entry > 2:  # the kernels have no others
        yield "tsqr", size * depth * entry, lambda: ops.tsqr(rows[0].mT)


def cases_of_vectors(size: int, storage: torch.dtype) -> Iterator[tuple[str, int, Any]]:
    """The same for ops whose time does not depend on the depth; tensors are of this dtype, too."""
    vectors = list(torch.randn(7, size, device=DEVICE))
    rows = torch.randn(3, 1, size, device=DEVICE, dtype=storage)
    long = torch.randn(size, device=DEVICE, dtype=storage)
    tensors = list(long.split(size // 160 + 1))  # about as many as a ResNet-50 has
    no = torch.tensor(False, device=DEVICE)

    def add_sample() -> Tensor:
        return ops.add_sample_(vectors[:3], *vectors[3:6], sign=1.0, direction=vectors[6])

    def push_block() -> None:
        ops.push_block(
            vectors[:3], 3, last_point=vectors[3], last_gradient=vectors[4], step_rows=rows[0],
            gradient_rows=rows[1], noise_rows=rows[2], slot=0, noise_slot=0,
        )  # fmt: skip

    entry = rows.element_size()
    yield "add_sample_", 40 * size, add_sample
    yield "push_block", size * (40 + 3 * entry), push_block
    yield "gather", size * (4 + entry), lambda: ops.gather(tensors, vectors[0])
    yield "gather, not", size * (4 + entry), lambda: ops.gather(tensors, vectors[0], when=no)
    yield "scatter_", size * (4 + entry), lambda: ops.scatter_(tensors, vectors[0])
    yield "squared_norm", size * entry, lambda: ops.squared_norm(tensors)


def main() -> None:
    """Print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bandwidth = copy_bandwidth()
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}: a copy moves {bandwidth / 1e9:.2f} TB/s")
    report: dict[str, Any] = {"device": device, "bytes_per_millisecond": bandwidth, "figures": []}

    def note(**figures: Any) -> None:
        report["figures"].append(figures)
        if options.json:
            write(options.json, compact(report))

    def measure(size: int, depth: int | None, storage: torch.dtype, given: Any) -> None:
        for name, moved, call in given:
            time = milliseconds(call)
            share = moved / bandwidth / time
            at = f"{storage} N={size:<11} m={depth or '':<3}"
            print(f"{name:18} {at} {time:9.3f} ms {share:.2f}", flush=True)
            where = {"op": name, "storage": str(storage), "size": size, "depth": depth}
            note(**where, milliseconds=time, share=share)

    for storage in (torch.float32, torch.bfloat16):
        for size in SIZES:
            measure(size, None, storage, cases_of_vectors(size, storage))
            for depth in DEPTHS:
                torch.cuda.empty_cache()  # what was freed counts as free then
                if 3 * depth * size * storage.itemsize > torch.cuda.mem_get_info()[0]:
                    print(f"no memory for {storage} N={size} m={depth}")
                    continue
                measure(size, depth, storage, cases(size, depth, storage))
    for depth in DEPTHS:
        matrix = torch.randn(5_000_000, depth, device=DEVICE)
        ours = milliseconds(partial(ops.tsqr, matrix))
        theirs = milliseconds(partial(torch.linalg.qr, matrix, mode="r"), 3)
        print(f"tsqr of 5e6 x {depth}: {ours:.3f} ms, torch.linalg.qr {theirs:.3f} ms", flush=True)
        note(op="linalg.qr", depth=depth, milliseconds=theirs, tsqr=ours)


if __name__ == "__main__":
    main()
