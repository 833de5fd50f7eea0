"""Time of each op on a GPU as a share of what copying as many bytes would take.

    python benchmarks/cuda_kernels.py --json research/results/cuda.json [--op push_secant]

A share of 1 is the speed of a device-to-device copy of the same number of bytes, measured in the
same run. TSQR stands beside ``torch.linalg.qr`` of the same matrix. What is there in the file is
kept, but for what is measured anew: so each op may have a process of its own, and one that fails
spoils no other. With ``--device cpu --sizes 10000`` it can be tried anywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from records import compact, write
from torch import Tensor

from aadl_ext import ops

SIZES = (1_000_000, 25_600_000, 200_000_000)
DEPTHS = (5, 10, 20, 32)
CALLS = 20  # between two events
CYCLES = 2e9  # of the device's clock a second, about


def milliseconds(device: torch.device, call: Callable[[], object], repeats: int = 5) -> float:
    """Time of a call on the device, median of some series.

    A call costs the host more time than many kernels take. So the device is kept busy until a whole
    series of calls is queued, and the events round it see nothing but the series.
    """
    if device.type == "cpu":
        call()
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    wait = 0.0  # that the host needs to queue a series, seconds
    for _ in range(repeats + 1):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(2 * wait * CYCLES))
        begin = time.perf_counter()
        start.record()
        for _ in range(CALLS):
            call()
        stop.record()
        wait = time.perf_counter() - begin
        stop.synchronize()
        times.append(start.elapsed_time(stop) / CALLS)
    return median(times[1:])  # the first had no head start


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a millisecond."""
    size = 500_000_000 if device.type == "cuda" else 5_000_000
    source = torch.empty(size, device=device)
    target = torch.empty_like(source)
    return 8 * size / milliseconds(device, lambda: target.copy_(source))


def cases(
    device: torch.device, size: int, depth: int, storage: torch.dtype
) -> Iterator[tuple[str, int, Any]]:
    """Name, bytes moved, and call of each op."""
    vectors = list(torch.randn(6, size, device=device))
    rows = torch.randn(2, depth, size, device=device, dtype=storage)
    systems = torch.zeros(1, depth + 1, depth + 1, dtype=torch.float64, device=device)
    gamma = torch.randn(1, depth, dtype=torch.float64, device=device)
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


def cases_of_vectors(
    device: torch.device, size: int, storage: torch.dtype
) -> Iterator[tuple[str, int, Any]]:
    """The same for ops whose time does not depend on the depth; tensors are of this dtype, too."""
    vectors = list(torch.randn(7, size, device=device))
    rows = torch.randn(3, 1, size, device=device, dtype=storage)
    long = torch.randn(size, device=device, dtype=storage)
    tensors = list(long.split(size // 160 + 1))  # about as many as a ResNet-50 has
    no = torch.tensor(False, device=device)

    def add_sample() -> Tensor:
        point, anchor, gradient, direction = vectors[3:]
        lists = (point.split(size // 160 + 1), anchor, gradient.split(size // 160 + 1))
        return ops.add_sample_(vectors[:3], *lists, sign=1.0, direction=direction)

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


OPS = (
    *("push_secant", "extrapolate_", "window_statistics", "cross_products", "tsqr"),
    *("add_sample_", "push_block", "gather", "scatter_", "squared_norm", "linalg.qr"),
)


class Report:
    """Prints each figure and writes it at once, beside those of other ops."""

    def __init__(self, path: Path | None, device: torch.device, op: str | None) -> None:
        self.path, self.device, self.op, self.failed = path, device, op, False
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, for a try"
        self.bandwidth = copy_bandwidth(device)
        print(f"{name}, torch {torch.__version__}: a copy moves {self.bandwidth / 1e9:.3f} TB/s")
        kept = json.loads(path.read_text())["figures"] if path and path.exists() else []
        self.record: dict[str, Any] = {
            "device": name,
            "torch": torch.__version__,
            "figures": [x for x in kept if op is not None and x["op"].split(",")[0] != op],
        }

    def note(self, **figures: Any) -> None:
        """Keep it."""
        self.record["figures"].append({**figures, "copy_bytes_per_ms": self.bandwidth})
        if self.path:
            write(self.path, compact(self.record))

    def wants(self, name: str) -> bool:
        """Whether it is asked for."""
        return self.op is None or name.split(",", maxsplit=1)[0] == self.op

    def time(self, name: str, call: Callable[[], object], repeats: int = 5) -> float | None:
        """Milliseconds of a call; None if it fails, which is told."""
        try:
            return milliseconds(self.device, call, repeats)
        except Exception as error:  # the other cases may still run
            print(f"{name}: failed: {error!r}", flush=True)
            self.failed = True
            return None

    def measure(self, size: int, depth: int | None, storage: torch.dtype, given: Any) -> None:
        """All cases that are asked for."""
        for name, moved, call in given:
            found = self.time(name, call) if self.wants(name) else None
            if found is not None:
                share = moved / self.bandwidth / found
                at = f"{storage} N={size:<11} m={depth or '':<3}"
                print(f"{name:18} {at} {found:9.3f} ms {share:.2f}", flush=True)
                where = {"op": name, "storage": str(storage), "size": size, "depth": depth}
                self.note(**where, milliseconds=found, share=share)


def main() -> int:
    """Print a table and write the figures; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--op", choices=OPS, help="this one alone")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    device = options.device
    report = Report(options.json, device, options.op)
    for storage in (torch.float32, torch.bfloat16):
        for size in options.sizes:
            report.measure(size, None, storage, cases_of_vectors(device, size, storage))
            for depth in DEPTHS:
                if device.type == "cuda":
                    torch.cuda.empty_cache()  # what was freed counts as free then
                    if 3 * depth * size * storage.itemsize > torch.cuda.mem_get_info()[0]:
                        print(f"no memory for {storage} N={size} m={depth}")
                        continue
                report.measure(size, depth, storage, cases(device, size, depth, storage))
    for depth in DEPTHS if report.wants("linalg.qr") else ():
        matrix = torch.randn(min(5_000_000, 10 * max(options.sizes)), depth, device=device)
        ours = report.time("tsqr", partial(ops.tsqr, matrix))
        theirs = report.time("linalg.qr", partial(torch.linalg.qr, matrix, mode="r"), 1)
        if ours is not None and theirs is not None:
            at = f"{len(matrix)} x {depth}"
            print(f"tsqr of {at}: {ours:.3f} ms, torch.linalg.qr {theirs:.3f} ms", flush=True)
            note = {"op": "linalg.qr", "size": len(matrix), "depth": depth}
            report.note(**note, milliseconds=theirs, tsqr=ours)
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
