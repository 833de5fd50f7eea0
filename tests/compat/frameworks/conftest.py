"""Writes down what `make compat` found, for `table.py`: to the file `AADL_COMPAT_RESULTS`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

RESULTS: dict[str, Any] = {}

# timm imports torchvision. One that is built for CUDA lacks its own ops beside a torch for the CPU
# alone; its import asks for the names of two, which no optimizer calls.
TORCHVISION = Path(sys.prefix, "torchvision")
if TORCHVISION.is_dir():
    sys.path.append(str(TORCHVISION))
    for name in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", schema)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome == "skipped":
        test, _, case = report.nodeid.rpartition("::")[2].rstrip("]").partition("[")
        found = {"outcome": report.outcome, **dict(report.user_properties)}
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            found["reason"] = report.longrepr[2].removeprefix("Skipped: ")
        RESULTS.setdefault(test, {})[case] = found


def pytest_sessionfinish() -> None:
    if path := os.environ.get("AADL_COMPAT_RESULTS"):
        Path(path).write_text(json.dumps(RESULTS, indent=1, sort_keys=True) + "\n")
