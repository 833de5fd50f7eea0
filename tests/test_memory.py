"""How much memory an accelerated step takes beyond the buffers that ``stats`` counts."""

from __future__ import annotations

import gc
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

from aadl_ext import Anderson, Averaging, accelerate, get_accelerator
from aadl_ext.parameters import Layout, Room

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(which: str) -> int:
    """Bytes in memory now ("VmRSS") or at the most since the last reset ("VmHWM")."""
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(which))
    return 1024 * int(line.split()[1])


@pytest.mark.parametrize("average", [None, Averaging(window=3)])
@pytest.mark.parametrize("solver", ["gram", "tsqr"])
def test_a_step_needs_no_temporaries_of_the_size_of_the_history(
    solver: str, average: Averaging | None
) -> None:
    if not CLEAR.exists():
        pytest.skip("the peak of resident memory is read from Linux's /proc")
    entries, depth = 4_000_000, 6
    vector = 4 * entries
    parameter = torch.nn.Parameter(torch.randn(entries))
    optimizer = SGD([parameter], lr=0.1)
    method = Anderson(history_depth=depth, solver=solver, safeguard=None, average=average)
    accelerate(optimizer, method)
    parameter.grad = torch.randn(entries)
    for _ in range(depth + 4):  # until every buffer has been touched
        parameter.grad.normal_()
        optimizer.step()
    held = get_accelerator(optimizer).stats.bytes_held
    # Rows, two residuals and four working vectors, and the iterates of the window.
    assert held <= (2 * depth + 6 + (3 if average else 0)) * vector * 1.01 + 1e5
    gc.collect()
    CLEAR.write_text("5")
    before = resident("VmRSS")
    optimizer.step()
    assert get_accelerator(optimizer).stats.extrapolations > 0
    assert get_accelerator(optimizer).stats.bytes_held == held
    assert resident("VmHWM") - before <= 2 * vector


SOLVED_AGAIN = """
import resource, torch
from aadl_ext import fixed_point
torch.set_num_threads(1)
d, b = torch.rand(1, 1 << 20), torch.randn(1, 1 << 20)
def f(x):
    return torch.addcmul(b, d, torch.tanh((x + x.roll(1, -1)) / 2))
def solve():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    found = fixed_point(f, torch.zeros_like(b), tol=0.0, max_steps=10, gradient=None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4):  # until the heap is as large as it will be
    solve()
print(solve())
"""


@pytest.mark.thorough  # imports torch anew: no other test has taught malloc
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_temporaries_of_f_do_not_come_as_new_pages_at_every_evaluation() -> None:
    command = [sys.executable, "-c", SOLVED_AGAIN]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 5 * 1024  # those of four temporaries would be 40 times 1024


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
def test_point_and_gradient_of_a_step_come_on_huge_pages() -> None:
    layout = Layout.build([{"params": [torch.nn.Parameter(torch.zeros(1 << 24))]}], "all", None)
    room = Room(layout)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for vector in (room.point, room.gradient):
        vector.zero_()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 5000  # those of 4 KiB would be 32 times 1024
