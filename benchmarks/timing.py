"""Shared by the benchmarks: median times, the memory limits of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


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
    read = 4 * entries / median_seconds(lambda: torch.dot(x[:half], x[half:]), budget)
    write = 4 * entries / median_seconds(x.zero_, budget)
    return read, write
