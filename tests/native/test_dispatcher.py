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


def push_arguments(slot: int, systems: bool = True) -> tuple[Any, ...]:
    vectors = normal(5, 100)
    rows = normal(2, 3, 100, seed=1)
    grams = normal(2, 5, 5, dtype=torch.float64) if systems else None
    return (*vectors[:4], [0.1, 0.2], BOUNDS, vectors[4], *rows, slot, grams)


def mixed_tensors() -> list[Tensor]:
    """With kernels for a flat float32 vector, and without."""
    return [
        normal(4, 5),
        normal(0, 3),
        normal(5, 4).T,
        normal(7, dtype=torch.bfloat16),
        normal(dtype=torch.float64),
        normal(3, 2, dtype=torch.float16).T,
        normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ]


SAMPLES = {
    "gather": [
        (mixed_tensors(), normal(200)),
        (mixed_tensors(), normal(200, dtype=torch.bfloat16)),
        ([], normal(3)),
    ],
    "scatter": [
        (mixed_tensors(), normal(200)),
        (mixed_tensors(), normal(200, dtype=torch.float64)),
        ([], normal(3)),
    ],
    "squared_norm": [(mixed_tensors(),), ([normal(0)],)],
    "push_secant": [push_arguments(1), push_arguments(-1), push_arguments(2, systems=False)],
    "extrapolate": [
        (*normal(2, 100), 0.3, normal(3, 100), normal(2, 3).double(), BOUNDS, normal(100)),
        (*normal(2, 100), 1.0, normal(3, 100), normal(1, 3).double(), BOUNDS, normal(100)),
    ],
    "window_statistics": [(list(normal(5, 100)), normal(100))],
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
    def jump(before: Tensor, after: Tensor, rows: Tensor, system: Tensor) -> tuple[Tensor, ...]:
        solution = ops.solve_secants(system, factored=False)
        out, mean = torch.empty_like(before), torch.empty_like(before)
        largest = ops.extrapolate_(out, before, after, 0.5, rows, solution.gamma, [0, 100])
        max_std = ops.window_statistics([before, after, out], mean)
        flat = ops.gather([rows, out], torch.empty(420))
        return 2 * out, largest, mean, max_std, flat, ops.squared_norm([out, rows])

    rows = normal(3, 100)
    arguments = (normal(100, seed=1), normal(100, seed=2), rows, torch.eye(4).double()[None])
    compiled = torch.compile(jump, fullgraph=True, backend="aot_eager")
    for traced, eager in zip(compiled(*arguments), jump(*arguments), strict=True):
        assert torch.equal(traced, eager)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_same_bits_with_one_thread_and_two(storage: torch.dtype) -> None:
    size = 200_000
    vectors, rows = normal(5, size), normal(2, 6, size, seed=1, dtype=storage)
    bounds = [0, 1000, 90_000, size]

    def everything() -> list[Tensor]:
        residual, step_rows, residual_rows = vectors[4].clone(), rows[0].clone(), rows[1].clone()
        systems = torch.zeros(3, 7, 7, dtype=torch.float64)
        figures = native.push_secant(
            *vectors[:2], [0.1, 0.2, 0.3], bounds, residual, *vectors[2:4], step_rows,
            residual_rows, 2, systems,
        )  # fmt: skip
        factor = native.tsqr(residual_rows.T, residual, bounds)
        mean, out, flat = torch.empty(size), torch.empty(size), torch.empty(6 * size)
        max_std = native.window_statistics(list(vectors), mean)
        weights = systems[:, :-1, -1] / systems[:, -1:, -1]
        largest = native.extrapolate_(out, *vectors[:2], 0.3, step_rows, weights, bounds)
        native.gather(list(residual_rows), flat)
        norm = native.squared_norm([residual_rows, out])
        written = [residual, step_rows, residual_rows, systems, mean, out, flat]
        return [*written, figures, factor, max_std, largest, norm]

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


def test_lists_are_served_in_any_layout_but_on_this_device_and_in_floating_dtypes_only() -> None:
    flat = torch.zeros(200)
    assert native.serves_list(mixed_tensors())
    assert native.serves_list(mixed_tensors(), flat.half())
    assert native.serves_list([], flat)
    assert not native.serves_list([], flat[::2])
    assert not native.serves_list([flat, flat.int()], flat)
    assert not native.serves_list([flat], flat.int())
    assert not native.serves_list([flat, flat.to("meta")])
    assert not native.serves_list([flat], flat.to("meta"))


@pytest.mark.parametrize("slot", [None, 1])
@pytest.mark.parametrize("sets", [1, 2])
def test_both_backends_agree_to_rounding(sets: int, slot: int | None) -> None:
    vectors, rows = normal(5, 5000), normal(2, 4, 5000, seed=1)
    bounds = [0, 2000, 5000]
    results = []
    for backend in (native, reference):
        residual, step_rows, residual_rows = vectors[4].clone(), rows[0].clone(), rows[1].clone()
        systems, out, mean = normal(2, 6, 6).double(), torch.empty(5000), torch.empty(5000)
        figures = backend.push_secant(
            *vectors[:2], [0.1, 0.2], bounds, residual, *vectors[2:4], step_rows, residual_rows,
            slot, systems,
        )  # fmt: skip
        gamma = normal(sets, 4, seed=2)
        largest = backend.extrapolate_(out, *vectors[:2], 0.3, step_rows, gamma, bounds)
        max_std = backend.window_statistics(list(vectors), mean)
        norm = backend.squared_norm(mixed_tensors())
        written = [residual, step_rows, residual_rows, systems, out, mean]
        results.append([*written, figures, largest, max_std, norm])
    for kernel, definition in zip(*results, strict=True):
        torch.testing.assert_close(kernel, definition, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", ops.STORAGE_DTYPES, ids=str)
def test_both_backends_copy_the_same_bits(dtype: torch.dtype) -> None:
    results = []
    for backend in (native, reference):
        flat, tensors = normal(200, dtype=dtype), mixed_tensors()
        backend.gather(tensors, flat)
        for tensor in tensors:
            tensor.zero_()
        values = normal(200, dtype=dtype)
        backend.scatter_(tensors, values)
        results.append([flat, *tensors])
    assert all(map(torch.equal, *results))
