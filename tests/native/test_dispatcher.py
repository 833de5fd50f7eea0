"""The compiled ops behind torch's dispatcher: schemas, tracing, compilation, repeatability."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops import native, reference

if native.missing is not None:
    pytest.skip(f"no compiled library: {native.missing}", allow_module_level=True)

BOUNDS = [0, 40, 100]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def push_arguments(slot: int, products: bool = True) -> tuple[Any, ...]:
    vectors = normal(5, 100)
    rows = normal(2, 3, 100, seed=1)
    return (*vectors[:4], [0.1, 0.2], BOUNDS, vectors[4], *rows, slot, products)


SAMPLES = {
    "push_secant": [push_arguments(1), push_arguments(-1), push_arguments(2, products=False)],
    "extrapolate": [
        (*normal(2, 100), 0.3, normal(3, 100), normal(2, 3).double(), BOUNDS, normal(100))
    ],
    "window_statistics": [(normal(5, 100), 2, normal(100))],
    "tsqr": [
        (normal(3, 100), normal(100), BOUNDS),
        (normal(3, 100), None, [0, 100]),
        (normal(3, 100, dtype=torch.bfloat16), normal(100), BOUNDS),
    ],
    "solve_secants": [(normal(2, 4, 4).double(), True, 0.0, 1e-6)],
}


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, sample) for name, all_ in SAMPLES.items() for sample in all_]
)
def test_schema_and_tracing_are_as_declared(name: str, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(torch.ops.aadl_ext, name).default, arguments)


def test_functions_that_use_the_ops_compile_without_a_break() -> None:
    def jump(before: Tensor, after: Tensor, rows: Tensor, system: Tensor) -> Tensor:
        solution = ops.solve_secants(system, factored=False)
        out = torch.empty_like(before)
        return 2 * ops.extrapolate_(out, before, after, 0.5, rows, solution.gamma, [0, 100])

    rows = normal(3, 100)
    arguments = (normal(100, seed=1), normal(100, seed=2), rows, torch.eye(4).double()[None])
    compiled = torch.compile(jump, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), jump(*arguments))


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_same_bits_with_one_thread_and_two(storage: torch.dtype) -> None:
    size = 200_000
    vectors, rows = normal(5, size), normal(2, 6, size, seed=1, dtype=storage)
    bounds = [0, 1000, 90_000, size]

    def everything() -> list[Tensor]:
        residual, step_rows, residual_rows = vectors[4].clone(), rows[0].clone(), rows[1].clone()
        seen = native.push_secant(
            *vectors[:2], [0.1, 0.2, 0.3], bounds, residual, *vectors[2:4], step_rows,
            residual_rows, 2, True,
        )  # fmt: skip
        factor = native.tsqr(residual_rows.T, residual, bounds)
        statistics = native.window_statistics(vectors, 1, torch.empty(size))
        out = torch.empty(size)
        weights = seen.right_side / seen.squared_norm[:, None]
        native.extrapolate_(out, *vectors[:2], 0.3, step_rows, weights, bounds)
        return [residual, step_rows, residual_rows, *seen, factor, *statistics, out]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(2)
        together = everything()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_kernels_are_used_for_what_they_serve_and_the_definition_for_the_rest() -> None:
    vector, rows = torch.zeros(8), torch.zeros(3, 8)
    assert native.serves(vector, rows)
    assert native.serves(vector, rows.half())
    assert native.serves(vector.double(), rows)
    assert not native.serves(vector, rows.double())
    assert not native.serves(vector.double(), rows.bfloat16())
    assert not native.serves(vector.to("meta"), rows.to("meta"))
    assert not native.serves(vector, rows.T.contiguous().T)


def test_both_backends_agree_to_rounding() -> None:
    vectors, rows = normal(5, 5000), normal(2, 4, 5000, seed=1)
    results = []
    for backend in (native, reference):
        residual, step_rows, residual_rows = vectors[4].clone(), rows[0].clone(), rows[1].clone()
        seen = backend.push_secant(
            *vectors[:2], [0.1], [0, 5000], residual, *vectors[2:4], step_rows, residual_rows, 1,
            True,
        )  # fmt: skip
        results.append([residual, step_rows, residual_rows, *seen])
    for kernel, definition in zip(*results, strict=True):
        torch.testing.assert_close(kernel, definition, rtol=1e-6, atol=1e-5)
