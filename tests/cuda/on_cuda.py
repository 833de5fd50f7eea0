"""Trainings on a GPU; where there is none, or no kernels for it, tests that ask are skipped.

``AADL_TEST_DEVICE=cpu`` runs on the CPU what can run there, to try the tests themselves.
"""

from __future__ import annotations

import os

import pytest
import torch
from training import MakeOptimizer, Method, Training

from aadl_ext import accelerate
from aadl_ext.ops import library

DEVICE = os.environ.get("AADL_TEST_DEVICE", "cuda")


def skip_without_gpu() -> None:
    """Skip a whole file."""
    if DEVICE != "cuda":
        return
    if not torch.cuda.is_available():
        pytest.skip("no GPU", allow_module_level=True)
    if library.cuda_missing is not None:
        pytest.skip(f"no CUDA kernels: {library.cuda_missing}", allow_module_level=True)


class TrainingOn(Training):
    """The same training on a device."""

    def __init__(
        self,
        device: str,
        make: MakeOptimizer,
        options: Method | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(make, None, dtype)
        self.model.to(device)  # the optimizer has the same parameters as before
        self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)
        if options is not None:
            accelerate(self.optimizer, options)
