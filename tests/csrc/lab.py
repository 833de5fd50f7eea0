"""The module aadl_lab, and NumPy arrays in the dtypes of its kernels."""

from __future__ import annotations

import importlib
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("AADL_LAB_PATH", HERE / "build" / "lab")).resolve()


def load() -> Any:
    """Import the module, or skip the tests of the file that asks for it."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        return importlib.import_module("aadl_lab")
    except ModuleNotFoundError:
        pytest.skip(
            f"aadl_lab is not built in {FOLDER}: cmake -B build/lab -G Ninja && "
            "cmake --build build/lab, or set AADL_LAB_PATH",
            allow_module_level=True,
        )


# (vectors, rows) that the kernels know; the bits of a bfloat16 are uint16 in NumPy.
PAIRS = [
    pytest.param("float32", "float32", id="float32"),
    pytest.param("float64", "float64", id="float64"),
    pytest.param("float64", "float32", id="float64-float32"),
    pytest.param("float32", "uint16", id="float32-bfloat16"),
    pytest.param("float32", "float16", id="float32-float16"),
]
WIDE_PAIRS = PAIRS[:3]  # those of a factor
# Around the limits of a slice (64), a chunk (256), a flush (1024) and a block (32768).
EDGES = [0, 1, 2, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 32767, 32768, 32769, 65537]
SEGMENTS = [
    [0, 0],
    [0, 1],
    [0, 0, 0],
    [0, 300, 300, 301, 1000],
    [0, 0, 40000, 40000],
    [0, 7, 32775, 32775, 65543, 66000],
    list(range(0, 70001, 70)),
]


def store(values: np.ndarray, storage: str) -> np.ndarray:
    """Round to the storage dtype."""
    if storage == "uint16":
        rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)
    return values.astype(storage)


def wide(rows: np.ndarray) -> np.ndarray:
    """Stored values as float64."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return rows.astype(np.float64)


def spacing(storage: str) -> float:
    """Relative distance of neighbours."""
    return 2.0**-7 if storage == "uint16" else float(np.finfo(storage).eps)


def unaligned(array: np.ndarray, entries: int) -> np.ndarray:
    """A copy whose rows start `entries` after an aligned place, and lie further apart.

    With 0 a plain copy, past whose end an address sanitizer sees every access.
    """
    if entries == 0:
        return array.copy()
    *rows, size = array.shape
    room = np.zeros((*rows, size + 64 + 3), array.dtype)
    base = (-room.ctypes.data % 64) // array.itemsize + entries
    view = room[..., base : base + size]
    view[...] = array
    return view


def segments(offsets: list[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(offsets)]


def same_bits(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
