"""Fixed points on a GPU: what the CPU finds, and the host waits at checks only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from on_cuda import DEVICE, skip_without_gpu
from torch import Tensor

from aadl_ext import AndersonMixing, FixedPoint, fixed_point

skip_without_gpu()

METHODS = [AndersonMixing(), AndersonMixing(relaxation=0.5, safeguard=("residual", "limits"))]


def solve(device: str, method: AndersonMixing, max_steps: int, **options: Any) -> FixedPoint:
    torch.manual_seed(0)
    rates = torch.linspace(0.1, 0.9, 40, dtype=torch.float64)[:, None].to(device)
    b = torch.randn(40, 300, dtype=torch.float64).to(device)

    def f(x: Tensor) -> Tensor:
        return b + rates * torch.tanh(x + x.roll(1, 1) / 2)

    x0 = torch.zeros_like(b)
    return fixed_point(
        f, x0, tol=1e-9, gradient=None, method=method, max_steps=max_steps, **options
    )


@pytest.mark.parametrize("method", METHODS)
def test_solutions_are_those_of_the_cpu(method: AndersonMixing) -> None:
    found, expected = (solve(device, method, 200, check_every=4) for device in (DEVICE, "cpu"))
    assert found.reason == expected.reason == ["converged"] * 40
    torch.testing.assert_close(found.solution.cpu(), expected.solution, rtol=1e-7, atol=1e-7)


@pytest.mark.skipif(DEVICE != "cuda", reason="of CUDA")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("method", METHODS)
def test_steps_wait_for_nothing(method: AndersonMixing) -> None:
    solve("cuda", method, 9, check_every=10)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        solve_on_device(method)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE != "cuda", reason="graphs are of CUDA")
@pytest.mark.parametrize("method", [*METHODS, AndersonMixing(4, frequency=3, restart_each_nth=12)])
@pytest.mark.parametrize("max_steps", [35, 200])
def test_replayed_steps_are_the_eager_ones_bit_for_bit(
    method: AndersonMixing, max_steps: int
) -> None:
    """Samples that end are solved on in a graph, so the host is not to leave them out either."""
    eager = solve("cuda", method, max_steps, check_every=max_steps + 1)
    replayed = solve("cuda", method, max_steps, capture=True)
    assert torch.equal(replayed.solution, eager.solution)
    assert torch.equal(replayed.steps, eager.steps)
    assert replayed.reason == eager.reason


def solve_on_device(method: AndersonMixing) -> None:
    x0 = torch.zeros(40, 300, dtype=torch.float64, device="cuda")
    options = {"method": method, "max_steps": 9, "check_every": 10, "gradient": None}
    fixed_point(lambda x: torch.cos(x) / 2 + 1, x0, **options)
