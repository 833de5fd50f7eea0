"""The module aadl_lab."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

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
