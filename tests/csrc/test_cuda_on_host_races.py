"""Every CUDA kernel once, with one thread of the host for each of the GPU: for ThreadSanitizer.

Other builds skip it: there the threads of a kernel are fibers, which cannot race.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lab
import pytest
from test_cuda_on_host import sanitizer

if sanitizer() != "thread":
    pytest.skip("needs a lab with -DAADL_SANITIZE=thread", allow_module_level=True)

OPS = Path(__file__).parents[1] / "ops"
sys.path.append(str(OPS))
from cases import CASES  # noqa: E402

CALLS = {name: f"op, make, _ = CASES[{name!r}]; op(**make(2100))" for name in CASES} | {
    "rejected push": "op, make, _ = CASES['push_secant']; x = make(2100); "
    "x['after'][7] = math.nan; op(**x)",
    "tsqr of many columns": "ops.tsqr(normal(12, 600, seed=0).T)",
    "least squares": "x = normal(50, 8, seed=0); "
    "ops.solve_secants((x.T @ x)[None], factored=False)",
    "subspace": "x = normal(6, 6, seed=0); x = (x @ x.T)[None]; "
    "ops.solve_subspace(x, x, x[:, 0], x, radius=x[:, 0, 0])",
    "quadratic": "x = normal(6, 6, seed=0); x = (x @ x.T)[None]; "
    "ops.fit_quadratic(x, x, x[:, 0], x, newest=2, count=6)",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_no_races(call: str) -> None:
    library = lab.FOLDER / "libaadl_cuda_on_host_for_torch.so"
    imports = "import math; from aadl_ext import ops; from cases import CASES, normal"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; {call}"],
        cwd=OPS,
        env={**os.environ, "AADL_EXT_NATIVE": str(library), "PYTHONPATH": str(OPS.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "WARNING: ThreadSanitizer" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
