"""The ops on a GPU beyond the cases of tests/ops: in graphs, on long vectors, past the kernels."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from on_cuda import DEVICE, skip_without_gpu
from torch import Tensor

from aadl_ext import ops

skip_without_gpu()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def accelerated_step(buffers: dict[str, Any]) -> None:
    """The ops of a step of the paper's iteration."""
    rows = buffers["rows"]
    ops.gather(buffers["tensors"], buffers["after"])
    ops.push_secant(
        buffers["before"], buffers["after"], rates=[0.1], offsets=buffers["bounds"],
        residual=buffers["residual"], last_point=buffers["point"],
        last_residual=buffers["last"], step_rows=rows[0], residual_rows=rows[1], slot=1,
        systems=buffers["systems"],
    )  # fmt: skip
    solution = ops.solve_secants(buffers["systems"], factored=False)
    ops.extrapolate_(
        buffers["out"], buffers["before"], buffers["after"], 0.5, rows[0], solution.gamma,
        buffers["bounds"],
    )  # fmt: skip
    ops.window_statistics([buffers["before"], buffers["after"], buffers["out"]], buffers["mean"])
    ops.scatter_(buffers["tensors"], buffers["mean"])


def buffers_of_a_step(size: int) -> dict[str, Any]:
    shapes = [(100,), (0,), (size - 100,)]
    offsets = [0, *accumulate(s[0] for s in shapes)]
    flat = normal(size, seed=20).to(DEVICE)
    names = ("before", "after", "residual", "point", "last", "out", "mean")
    buffers: dict[str, Any] = {n: normal(size, seed=i).to(DEVICE) for i, n in enumerate(names)}
    buffers["tensors"] = [flat[a:b].clone() for a, b in pairwise(offsets)]
    buffers["rows"] = normal(2, 4, size, seed=9, dtype=torch.bfloat16).to(DEVICE)
    buffers["systems"] = torch.zeros(1, 5, 5, dtype=torch.float64, device=DEVICE)
    buffers["bounds"] = [0, size]
    return buffers


@pytest.mark.skipif(DEVICE != "cuda", reason="graphs are of CUDA")
def test_a_step_is_captured_in_a_graph_and_replayed() -> None:
    eager, captured = buffers_of_a_step(70_001), buffers_of_a_step(70_001)
    for _ in range(3):
        accelerated_step(eager)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        accelerated_step(captured)
    side.synchronize()
    captured = buffers_of_a_step(70_001)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        accelerated_step(captured)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for name, value in eager.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, captured[name]), name


@pytest.mark.skipif(
    DEVICE != "cuda" or torch.cuda.get_device_properties(0).total_memory < 60 << 30,
    reason="needs a GPU with 60 GiB",
)
def test_vectors_beyond_two_to_the_31_entries() -> None:
    size = 2**31 + 4099
    point, out = torch.zeros(size, device=DEVICE), torch.empty(size, device=DEVICE)
    rows = torch.zeros(2, size, device=DEVICE, dtype=torch.bfloat16)
    point[-1], rows[:, -2] = 3, 1
    gamma = torch.tensor([[1.0, 2.0]], device=DEVICE, dtype=torch.float64)
    largest = ops.extrapolate_(out, point, point, 1.0, rows, gamma, [0, size])
    assert out[-3:].tolist() == [0, -3, 3]
    assert float(largest) == 3
    assert float(ops.squared_norm([out])) == 18
    assert float(ops.window_statistics([point, out], rows.new_empty(size, dtype=torch.float32)))
    dots = ops.cross_products(rows, [out], [0, size])
    assert dots.flatten().tolist() == [-3, -3]


@pytest.mark.parametrize("count", [256, 257])
def test_windows_of_any_length_are_averaged(count: int) -> None:
    window = [x.to(DEVICE) for x in normal(count, 1000)]
    out = torch.empty(1000, device=DEVICE)
    max_std = ops.window_statistics(window, out)
    torch.testing.assert_close(out, torch.stack(window).mean(dim=0), rtol=1e-5, atol=1e-6)
    expected = torch.stack(window).double().std(dim=0, correction=0).amax()
    torch.testing.assert_close(max_std.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("columns", [40, 41])
def test_matrices_of_any_width_are_factored(columns: int) -> None:
    matrix = normal(500, columns, dtype=torch.float64).to(DEVICE)
    factor = ops.tsqr(matrix)
    torch.testing.assert_close(factor.T @ factor, matrix.T @ matrix)
