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


def sample_arguments(noise: bool, direction: bool) -> tuple[Any, ...]:
    sums, vectors = list(normal(3, 100)), normal(4, 100, seed=1)
    third, last = sums[2] if noise else None, vectors[3] if direction else None
    return (*sums[:2], third, *vectors[:3], -1.0, last)


def block_arguments(
    slot: int, noise_slot: int, storage: torch.dtype = torch.float32, accept: Tensor | None = None
) -> tuple[Any, ...]:
    vectors, rows = normal(5, 100), normal(2, 3, 100, seed=1, dtype=storage)
    noise = vectors[4] if noise_slot >= 0 else None
    noise_rows = normal(2, 100, seed=2, dtype=storage)
    return (*vectors[:2], noise, 3, *vectors[2:4], *rows, noise_rows, slot, noise_slot, accept)


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


NO = torch.tensor(False)
SAMPLES = {
    "gather": [
        (mixed_tensors(), normal(200), NO),
        (mixed_tensors(), normal(200)),
        (mixed_tensors(), normal(200, dtype=torch.bfloat16)),
        ([], normal(3)),
    ],
    "scatter": [
        (mixed_tensors(), normal(200), NO),
        (mixed_tensors(), normal(200)),
        (mixed_tensors(), normal(200, dtype=torch.float64)),
        ([], normal(3)),
    ],
    "squared_norm": [(mixed_tensors(),), ([normal(0)],)],
    "push_secant": [push_arguments(1), push_arguments(-1), push_arguments(2, systems=False)],
    "extrapolate": [
        (*normal(2, 100), 0.3, normal(3, 100), normal(2, 3).double(), BOUNDS, normal(100)),
        (*normal(2, 100), 1.0, normal(3, 100), normal(1, 3).double(), BOUNDS, normal(100)),
        (*normal(2, 100), 0.3, normal(3, 100), normal(1, 3).double(), BOUNDS, normal(100), NO),
    ],
    "window_statistics": [(list(normal(5, 100)), normal(100))],
    "tsqr": [
        (normal(3, 100), normal(100), BOUNDS),
        (normal(3, 100), None, [0, 100]),
        (normal(3, 100), normal(100).double(), BOUNDS),
    ],
    "solve_secants": [(normal(2, 4, 4).double(), True, 0.0, 1e-6)],
    "add_sample": [sample_arguments(True, True), sample_arguments(False, False)],
    "push_block": [
        block_arguments(1, 0),
        block_arguments(-1, 1),
        block_arguments(2, -1, torch.bfloat16),
        block_arguments(1, 0, accept=NO),
    ],
    "cross_products": [
        (normal(3, 100), list(normal(2, 100, seed=1)), BOUNDS),
        (normal(3, 100, dtype=torch.bfloat16), [normal(100), normal(100).double()], BOUNDS),
        (normal(0, 100), [normal(100)], [0, 100]),
    ],
    "solve_subspace": [
        (
            *normal(2, 2, 3, 3).double(),
            normal(2, 3).double(),
            normal(2, 3, count).double(),
            torch.ones(2, dtype=torch.float64),
            1e-4,
            0.01,
            4.0,
        )
        for count in (0, 4)
    ],
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
        factor = native.tsqr(residual_rows.float().T, residual, bounds)
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


def run_of_blocks(backend: Any, size: int, storage: torch.dtype) -> list[Tensor]:
    """Two samples into a block, the block into the rings, the rings into products."""
    point_sum, gradient_sum, noise_sum, last_point, last_gradient = normal(5, size).clone()
    rings = normal(3, 4, size, seed=1, dtype=storage).clone()
    direction, *samples = normal(5, size, seed=2)
    sums = (point_sum, gradient_sum, noise_sum)
    figures = [
        backend.add_sample_(*sums, point, last_point, gradient, sign, direction)
        for point, gradient, sign in zip(samples[::2], samples[1::2], (1.0, -1.0), strict=True)
    ]
    before = [total.clone() for total in sums]
    backend.push_block(*sums, 2, last_point, last_gradient, *rings, 2, 1)
    bounds = [0, size // 200, size // 2, size]
    own = backend.cross_products(rings[0], list(rings[0]), bounds)
    other = backend.cross_products(rings[1], [*rings[2], gradient_sum, direction.double()], bounds)
    return [*figures, *before, *sums, last_point, last_gradient, rings, own, other]


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_have_the_same_bits_with_one_thread_and_two(storage: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run_of_blocks(native, 200_000, storage)
        torch.set_num_threads(2)
        together = run_of_blocks(native, 200_000, storage)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
def test_both_backends_store_the_same_bits_of_blocks_and_agree_on_products(
    storage: torch.dtype,
) -> None:
    *kernels, own, other = run_of_blocks(native, 5000, storage)
    *definitions, own_too, other_too = run_of_blocks(reference, 5000, storage)
    for kernel, definition in zip(kernels[2:], definitions[2:], strict=True):
        assert torch.equal(kernel, definition)
    for kernel, definition in (*zip(kernels[:2], definitions, strict=False), (own, own_too)):
        torch.testing.assert_close(kernel, definition, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(other, other_too, rtol=1e-12, atol=1e-10)


def test_kernels_are_used_for_what_they_serve_and_the_definition_for_the_rest() -> None:
    vector, rows = torch.zeros(8), torch.zeros(3, 8)
    assert native.serves(vector, rows)
    assert native.serves(vector, rows.half())
    assert native.serves(vector.double(), rows)
    assert not native.serves(vector, rows.double())
    assert not native.serves(vector.double(), rows.bfloat16())
    assert not native.serves(vector.to("meta"), rows.to("meta"))
    assert not native.serves(vector, rows.T.contiguous().T)


def test_rows_are_served_beside_vectors_of_any_dtype() -> None:
    rows = torch.zeros(3, 8)
    assert all(native.serves_rows(rows.to(dtype)) for dtype in ops.STORAGE_DTYPES)
    assert native.serves_rows(torch.zeros(3, 16)[:, :8])
    assert native.serves_rows(torch.zeros(1, 3).T)
    assert not native.serves_rows(torch.zeros(8, 3).T)
    assert not native.serves_rows(rows.to("meta"))


def test_matrices_of_low_precision_are_left_to_the_definition() -> None:
    matrix, column = torch.zeros(8, 3), torch.zeros(8)
    for dtype in (torch.float32, torch.float64):
        assert native.serves_matrix(matrix.to(dtype), None)
        assert native.serves_matrix(matrix.to(dtype), column.double())
        assert native.serves_matrix(matrix.to(dtype), column.half())
    for dtype in (torch.bfloat16, torch.float16):
        assert not native.serves_matrix(matrix.to(dtype), column)
        with pytest.raises(RuntimeError, match="rows must be float32 or float64"):
            torch.ops.aadl_ext.tsqr(matrix.to(dtype).T.contiguous(), column, [0, 8])


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
