"""Every CUDA kernel once, with one thread of the host for each of the GPU: for ThreadSanitizer.

Other builds skip it: there the threads of a kernel are fibers, which cannot race.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import lab
import pytest
from test_cuda_on_host import sanitizer

if sanitizer() != "thread":
    pytest.skip("needs a lab with -DAADL_SANITIZE=thread", allow_module_level=True)

CALLS = {
    "lists": "test_cuda_on_host_lists.test_pieces_of_any_length_are_copied_and_rounded"
    "('float32', 'uint16', 0); "
    "test_cuda_on_host_lists.test_squared_norm_is_as_accurate_as_float64(False, 'float32', 0, 0)",
    "push": "args = test_cuda_on_host_push.inputs(2100, 3, 'float32', 'float32'); "
    "test_cuda_on_host_push.check(args, [0, 5, 2100], slot=1)",
    "rejected push": "test_cuda_on_host_push.test_after_a_step_that_is_not_finite_products_stay"
    "_and_the_row_is_zero(1, float('nan'), False, 'float32', 'float32')",
    "extrapolate": "test_cuda_on_host_streaming.check_extrapolation(2100, ('float32', 'float32'))",
    "window": "test_cuda_on_host_streaming.check_window(2100, 3, 'float32')",
    "sample": "test_cuda_on_host_streaming.check_sample(2100, 'float32')",
    "products": "rows = test_cuda_on_host_streaming.several(5, 1100, ['float32'], 0); "
    "test_cuda_on_host_streaming.check_products(rows, rows, [0, 1100])",
    "tsqr of few columns": "test_cuda_on_host_dense.check([0, 1100])",
    "tsqr of many columns": "test_cuda_on_host_dense.check([0, 600], count=12)",
    "least squares": "rows, r = small_problems.matrix(50, 7); test_solve_secants.on_cuda("
    "small_problems.system_of(rows, r, factored=False), factored=False)",
    "subspace": "test_cuda_on_host_dense.step_of(test_cuda_on_host_dense.products(6), 1.0)",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_no_races(call: str) -> None:
    modules = ", ".join(sorted(set(re.findall(r"\b([a-z]\w+)\.", call))))
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}; {call}"],
        cwd=Path(__file__).parent,
        env={**os.environ, "AADL_LAB_PATH": str(lab.FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "WARNING: ThreadSanitizer" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
