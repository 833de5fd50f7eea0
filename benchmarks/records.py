"""Shared by the benchmarks: results on disk, JSON with a line for each row."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import aadl_ext
from aadl_ext import ops

RESULTS = Path("research/results")


def geometric(ratios: list[float]) -> list[float]:
    """Geometric mean, and two standard errors below and above."""
    logs = [math.log(x) for x in ratios]
    error = 2 * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    mean = fmean(logs)
    return [math.exp(x) for x in (mean, mean - error, mean + error)]


def rounded(value: Any) -> Any:
    """The same with floats of five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(member) for key, member in value.items()}
    return [rounded(member) for member in value] if isinstance(value, list | tuple) else value


def compact(record: dict[str, Any]) -> str:
    """JSON with a line for each entry, and for each row of an entry that is a table."""
    entries = [f"{json.dumps(key)}: {_rows(value)}" for key, value in rounded(record).items()]
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _rows(value: Any) -> str:
    """Tables have nothing but dictionaries (or None) for rows."""
    if isinstance(value, dict) and _is_table(list(value.values())):
        rows = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in value.items()]
        return "{\n" + ",\n".join(rows) + "\n}"
    if isinstance(value, list) and _is_table(value):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    return json.dumps(value)


def _is_table(rows: list[Any]) -> bool:
    return any(rows) and all(row is None or isinstance(row, dict) for row in rows)


def write(path: Path, text: str) -> None:
    """All of it, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def save(name: str, record: dict[str, Any], folder: Path) -> Path:
    """Write a record with the versions and the machine that it was made with."""
    made_with = {
        "aadl_ext": aadl_ext.__version__,
        "torch": torch.__version__,
        "backends": ops.backends(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    path = folder / f"{name}.json"
    write(path, compact({"made_with": made_with, **record}))
    return path
