"""The ops on a GPU: right to rounding, the same bits each time, in graphs, on long vectors."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from on_cuda import DEVICE, skip_without_gpu
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from aadl_ext import ops

skip_without_gpu()

PAIRS = [
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("float64", "float64"),
    ("float64", "float32"),
]
SIZES = [pytest.param(5003, id="small"), pytest.param(3_000_017, id="large")]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@lru_cache(maxsize=1)  # making them takes longer than most ops
def everything(size: int, *pair: str) -> dict[str, Any]:
    """Arguments of every op, and of those that take a flag with both."""
    vector, storage = (getattr(torch, name) for name in pair)
    bounds = [0, 5, 5, size // 3, size]
    vectors = list(normal(8, size, dtype=vector))
    rings = list(normal(3, 6, size, seed=1, dtype=storage))
    systems = torch.zeros(4, 8, 8, dtype=torch.float64)
    shapes = [(3, 4), (0,), (size // 2,), (7, 5, 2, 2), ()]
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    tensors = [normal(*s, seed=i, dtype=dtypes[i % 4]) for i, s in enumerate(shapes)]
    tensors.append(normal(40, 30).T)
    matrix = rings[0] if storage.itemsize > 2 else rings[0].to(vector)  # a factor has no others
    system = torch.stack([normal(50, 5, seed=s, dtype=torch.float64) for s in range(3)])
    square = normal(2, 3, 4, 4, seed=3, dtype=torch.float64)
    cases = {
        "gather": (tensors, normal(size, dtype=vector)),
        "scatter_": (tensors, normal(size, dtype=vector)),
        "squared_norm": (tensors,),
        "push_secant": (
            *vectors[:2], [0.1, 0.2, 0.3, 0.4], bounds, *vectors[2:5], *rings[:2], 2, None, systems,
        ),
        "extrapolate_": (
            vectors[5], *vectors[:2], 0.3, rings[0], normal(4, 6, dtype=torch.float64), bounds,
        ),
        "window_statistics": (vectors[:5], vectors[6]),
        "tsqr": (matrix, vectors[0], bounds),
        "solve_secants": (system.mT @ system, False, 1e-8, 1e-7),
        "add_sample_": (*vectors[:6], -1.0, vectors[6]),
        "push_block": (*vectors[:3], 3, *vectors[3:5], *rings, 1, 0, None),
        "differs": (vectors[0], vectors[0].clone()),
        "cross_products": (rings[0], [*rings[1], vectors[0]], bounds),
        "solve_subspace": (
            square[0] @ square[0].mT, square[1], normal(3, 4, dtype=torch.float64),
            normal(3, 4, 2, dtype=torch.float64), torch.full((3,), 10.0, dtype=torch.float64),
            1e-4, 0.01, 4.0,
        ),
    }  # fmt: skip
    for flag in (False, True):
        for name in ("gather", "scatter_", "extrapolate_"):
            cases[f"{name} {flag}"] = (*cases[name], torch.tensor(flag))
        cases[f"push_secant {flag}"] = (*cases["push_secant"][:-2], torch.tensor(flag), systems)
        cases[f"push_block {flag}"] = (*cases["push_block"], torch.tensor(flag))
        cases[f"differs {flag}"] = (*vectors[flag : flag + 2],)
    cases["push_block"] += (None,)
    return {**cases, **verdicts()}


def verdicts() -> dict[str, Any]:
    """Arguments of the ops that judge, in the middle of a run."""
    state = ops.Verdicts.on(torch.device("cpu"))
    state.control.copy_(normal(len(state.control), seed=4).abs())
    for name in ("pending", "paired", "ready", "on_line"):
        getattr(state.when, name).fill_(True)
    figures, yes = normal(3, seed=5, dtype=torch.float64).abs(), torch.tensor(True)
    change, noise = figures[:2], normal(2, 3, seed=6, dtype=torch.float64).abs()
    return {
        "judge_gradient_": (*state.tensors, figures[0], None, 2.0, False),
        "judge_gradient_ moved": (*state.tensors, figures[0], yes, 2.0, True),
        "judge_residual_": (*state.tensors, figures, None, True, True, False),
        "arm_": (*state.tensors, yes, [yes, ~yes], [8, 10], True, True),
        "average_": (*state.tensors, figures[0].float(), 0.1, 5),
        "judge_slope_": (*state.tensors, figures[:2], True),
        "learn_": (*state.tensors, 10, change, noise, 0, 0),
    }


NAMES = list(everything(6, *PAIRS[0]))


def on(device: str, arguments: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.detach().clone().to(device), arguments)


def in_float64(arguments: Any) -> Any:
    """The same values, vectors and rows; what is computed from them is exact but for 1e-16."""
    return tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, arguments
    )


def run(name: str, arguments: Any) -> list[Tensor]:
    """Results and arguments, some of which the op has changed."""
    results = getattr(torch.ops.aadl_ext, name.split(maxsplit=1)[0])(*arguments)
    return [leaf for leaf in tree_leaves((results, arguments)) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("size", SIZES)
def test_a_gpu_computes_what_float64_gives_and_repeats_it(
    name: str, size: int, pair: tuple[str, str]
) -> None:
    arguments = everything(size, *pair)[name]
    exact = run(name, on("cpu", in_float64(arguments)))
    found, again = (run(name, on(DEVICE, arguments)) for _ in range(2))
    narrow = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3}
    for one, two, right in zip(found, again, exact, strict=True):
        assert one.device.type == DEVICE
        assert torch.equal(one.nan_to_num(), two.nan_to_num())
        dtypes = (str(one.dtype).removeprefix("torch."), *pair)
        rounding = max(narrow.get(dtype, 0.0) for dtype in dtypes)
        scale = float(right.double().abs().amax()) if right.numel() else 0.0
        torch.testing.assert_close(
            one.cpu().double(), right.double(), rtol=rounding, atol=rounding * scale
        )


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
