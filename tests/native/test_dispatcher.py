"""The ops behind torch's dispatcher, compiled or not: schemas, tracing, compiling, repeating."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops import library
from aadl_ext.ops.verdicts import COUNTS

compiled_only = pytest.mark.skipif(
    library.missing is not None, reason=f"no compiled library: {library.missing}"
)
BOUNDS = [0, 40, 100]


def backend(name: str) -> AbstractContextManager[None]:
    """With "definition" no compiled kernel is used."""
    return library.definitions_only() if name == "definition" else nullcontext()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wide(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed, dtype=torch.float64)


def vectors(count: int, seed: int = 0) -> list[Tensor]:
    return [normal(100, seed=seed + k) for k in range(count)]


NO, YES = torch.tensor(False), torch.tensor(True)


def push_arguments(
    slot: int,
    systems: bool = True,
    paired: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    given = vectors(5)
    rows = [normal(3, 100, seed=5 + k, dtype=dtype) for k in range(2)]
    grams = wide(2, 5, 5) if systems else None
    return (*given[:2], [0.1, 0.2], BOUNDS, *given[2:], *rows, slot, paired, grams)


def sample_arguments(noise: bool, direction: bool) -> tuple[Any, ...]:
    sums, given = vectors(3), vectors(4, seed=3)
    third, last = sums[2] if noise else None, given[3] if direction else None
    halves = [x.split([30, 70]) for x in (given[0], given[2])]
    used = [x for x in (*sums[:2], third) if x is not None]
    return (used, list(halves[0]), given[1], list(halves[1]), -1.0, last)


def block_arguments(
    slot: int, noise_slot: int, storage: torch.dtype = torch.float32,
    paired: Tensor | None = None, accept: Tensor | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    given = vectors(5)
    rings = [normal(3, 100, seed=5 + k, dtype=storage) for k in range(3)]
    noise = given[4] if noise_slot >= 0 else None
    sums = [x for x in (*given[:2], noise) if x is not None]
    return (sums, 3, *given[2:4], *rings, slot, noise_slot, paired, accept)


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


def verdicts() -> tuple[Tensor, Tensor, Tensor]:
    """In the middle of a run: something is pending."""
    state = ops.Verdicts.on(torch.device("cpu"))
    state.control.copy_(normal(len(state.control)).abs())
    for name in ("pending", "paired", "ready", "on_line"):
        getattr(state.when, name).fill_(True)
    return state.tensors


CAUSES = [COUNTS.index("rejected_nonfinite"), COUNTS.index("rejected_limits")]
SAMPLES: dict[str, list[tuple[Any, ...]]] = {
    "gather": [
        (mixed_tensors(), normal(200), NO),
        (mixed_tensors(), normal(200), YES),
        (mixed_tensors(), normal(200)),
        (mixed_tensors(), normal(200, dtype=torch.bfloat16)),
        ([], normal(3)),
    ],
    "scatter_": [
        (mixed_tensors(), normal(200), NO),
        (mixed_tensors(), normal(200), YES),
        (mixed_tensors(), normal(200)),
        (mixed_tensors(), normal(200, dtype=torch.float64)),
        ([], normal(3)),
    ],
    "squared_norm": [(mixed_tensors(),), ([normal(0)],)],
    "differs": [tuple(vectors(2)), (wide(100), wide(100))],
    "push_secant": [
        push_arguments(1),
        push_arguments(-1),
        push_arguments(2, systems=False),
        push_arguments(0, paired=NO),
        push_arguments(0, paired=YES, dtype=torch.bfloat16),
    ],
    "extrapolate_": [
        (*vectors(3), 0.3, normal(3, 100), wide(2, 3), BOUNDS),
        (*vectors(3), 1.0, normal(3, 100), wide(1, 3), BOUNDS),
        (*vectors(3), 0.3, normal(3, 100), wide(1, 3), BOUNDS, NO),
        (*vectors(3), 0.3, normal(3, 100, dtype=torch.bfloat16), wide(1, 3), BOUNDS, YES),
    ],
    "window_statistics": [(vectors(5), normal(100, seed=9))],
    "tsqr": [
        (normal(3, 100), normal(100), BOUNDS),
        (normal(3, 100), None, [0, 100]),
        (normal(3, 100), wide(100), BOUNDS),
    ],
    "solve_secants": [
        (wide(2, 4, 4), True, 0.0, 1e-6),
        (torch.eye(4).double()[None], False, 0.1, 0.0),
    ],
    "add_sample_": [sample_arguments(True, True), sample_arguments(False, False)],
    "push_block": [
        block_arguments(1, 0),
        block_arguments(-1, 1),
        block_arguments(2, -1, torch.bfloat16),
        block_arguments(1, 0, accept=NO),
        block_arguments(1, 0, paired=NO, accept=YES),
    ],
    "cross_products": [
        (normal(3, 100), vectors(2), BOUNDS),
        (normal(3, 100, dtype=torch.bfloat16), [normal(100), wide(100)], BOUNDS),
        (normal(0, 100), [normal(100)], [0, 100]),
    ],
    "solve_subspace": [
        (*(wide(2, 3, 3, seed=k) for k in range(2)), wide(2, 3), wide(2, 3, count),
         torch.ones(2, dtype=torch.float64), 1e-4, 0.01, 4.0)
        for count in (0, 4)
    ],
    "fit_quadratic": [
        (*(wide(2, 3, 3, seed=k) for k in range(2)), wide(2, 3), wide(2, 3, samples), 1, count,
         1e-4, 0.5)
        for samples, count in ((0, 3), (4, 2))
    ],
    "judge_gradient_": [
        (*verdicts(), wide(), None, 2.0, False),
        (*verdicts(), wide(), YES.clone(), float("inf"), True),
    ],
    "judge_residual_": [
        (*verdicts(), wide(4).abs(), None, True, True, False),
        (*verdicts(), wide(4).abs(), NO.clone(), False, False, True),
    ],
    "arm_": [
        (*verdicts(), YES.clone(), [YES.clone(), NO.clone()], CAUSES, True, True),
        (*verdicts(), YES.clone(), [], [], False, False),
    ],
    "average_": [(*verdicts(), normal(), 0.1, 5)],
    "solve_quasi_newton": [
        (*(wide(3, 3, seed=k) for k in range(3)), wide(3), wide(3, seed=4), wide().abs(), 1, 4.0)
    ],
    "sketch": [(mixed_tensors(), 9), (vectors(2), 30, [1.0, -0.5]), ([normal(0)], 3)],
    "judge_fixed_points_": [
        (wide(9).abs(), wide(9), wide(9) > 0, wide(3, 9).abs(), torch.ones(2, 9).long(),
         torch.zeros(9, dtype=torch.uint8), wide(2, 9) > 0, 0.1, 0.1, 0.9, 2, compares, True)
        for compares in (True, False)
    ],
    "compare_": [(*verdicts(), wide().abs(), wide().abs())],
    "judge_line_": [
        (*verdicts(), wide(1, 1, 2).abs(), wide().abs(), None, YES.clone(), 10.0, False),
        (*verdicts(), wide(1, 1, 2).abs(), wide().abs(), NO.clone(), NO.clone(), 10.0, True),
    ],
    "take_line_": [(*verdicts(), wide(), YES.clone(), YES.clone(), NO.clone())],
    "judge_slope_": [(*verdicts(), wide(2), True), (*verdicts(), wide(2), False)],
    "learn_": [
        (*verdicts(), 10, wide(2).abs(), wide(2, 3).abs(), 0, 0),
        (*verdicts(), 10, wide(2).abs(), wide(2, 0), -1, 0),
    ],
}  # fmt: skip


def parted(op: Any, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Those that are given by position, and those by name."""
    declared = op._schema.arguments
    named = {x.name: y for x, y in zip(declared, arguments, strict=False) if x.kwarg_only}
    return arguments[: sum(not x.kwarg_only for x in declared)], named


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, sample) for name, all_ in SAMPLES.items() for sample in all_]
)
def test_schema_and_tracing_are_as_declared(name: str, arguments: tuple[Any, ...]) -> None:
    op = getattr(torch.ops.aadl_ext, name).default
    checks = ["test_schema", "test_faketensor"]
    if arguments is SAMPLES[name][0]:  # takes longest
        checks += ["test_autograd_registration", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(op, *parted(op, arguments), test_utils=checks)


def test_every_op_is_among_the_samples() -> None:
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeExplicitAutograd")
    ours = {name.removeprefix("aadl_ext::") for name in names if name.startswith("aadl_ext::")}
    assert ours == set(SAMPLES)


@pytest.mark.parametrize("name", ["compiled", "definition"])
def test_functions_that_use_the_ops_compile_without_a_break(name: str) -> None:
    def jump(before: Tensor, after: Tensor, rows: Tensor, system: Tensor) -> tuple[Tensor, ...]:
        solution = ops.solve_secants(system, factored=False)
        out, mean, flat = torch.empty_like(before), torch.empty_like(before), torch.empty(420)
        largest = ops.extrapolate_(out, before, after, 0.5, rows, solution.gamma, [0, 100])
        max_std = ops.window_statistics([before, after, out], mean)
        ops.gather([rows, out], flat)
        return 2 * out, largest, mean, max_std, flat, ops.squared_norm([out, rows])

    rows = normal(3, 100)
    arguments = (normal(100, seed=1), normal(100, seed=2), rows, torch.eye(4).double()[None])
    with backend(name):
        compiled = torch.compile(jump, fullgraph=True, backend="aot_eager")
        for traced, eager in zip(compiled(*arguments), jump(*arguments), strict=True):
            assert torch.equal(traced, eager)
    torch.compiler.reset()


def test_a_solve_is_exported() -> None:
    class Solve(torch.nn.Module):
        def forward(self, system: Tensor) -> Tensor:
            return ops.solve_secants(system, factored=False).gamma

    system = torch.eye(3).double()[None] + 0.1
    exported = torch.export.export(Solve(), (system,)).module()
    assert torch.equal(exported(2 * system), Solve()(2 * system))


def run_of_steps(size: int, storage: torch.dtype) -> list[Tensor]:
    """A step from a push to a mean: what is written, then what is returned."""
    given = [normal(size, seed=k) for k in range(5)]
    step_rows, residual_rows = (normal(6, size, seed=5 + k, dtype=storage) for k in range(2))
    bounds = [0, size // 200, size // 2, size]
    residual, systems = given[4].clone(), torch.zeros(3, 7, 7, dtype=torch.float64)
    figures = ops.push_secant(
        *given[:2], rates=[0.1, 0.2, 0.3], offsets=bounds, residual=residual,
        last_point=given[2], last_residual=given[3], step_rows=step_rows,
        residual_rows=residual_rows, slot=2, systems=systems,
    )  # fmt: skip
    factor = ops.tsqr(residual_rows.T, append=residual, offsets=bounds)
    mean, out, flat = torch.empty(size), torch.empty(size), torch.empty(6 * size)
    max_std = ops.window_statistics(given, mean)
    weights = systems[:, :-1, -1] / systems[:, -1:, -1]
    largest = ops.extrapolate_(out, *given[:2], 0.3, step_rows, weights, bounds)
    ops.gather(list(residual_rows), flat)
    norm, moved = ops.squared_norm([residual_rows, out]), ops.differs(out, mean)
    written = [residual, step_rows, residual_rows, systems, mean, out, flat]
    return [*written, figures, factor, max_std, largest, norm, moved]


def run_of_blocks(size: int, storage: torch.dtype) -> list[Tensor]:
    """Two samples into a block, the block into the rings, the rings into products."""
    *sums, last_point, last_gradient = (normal(size, seed=k) for k in range(5))
    rings = [normal(4, size, seed=5 + k, dtype=storage) for k in range(3)]
    direction, *samples = (normal(size, seed=8 + k) for k in range(5))
    figures = [
        ops.add_sample_(sums, [point], last_point, [gradient], sign=sign, direction=direction)
        for point, gradient, sign in zip(samples[::2], samples[1::2], (1.0, -1.0), strict=True)
    ]
    before = [total.clone() for total in sums]
    names = ("step_rows", "gradient_rows", "noise_rows")
    ops.push_block(
        sums, 2, last_point=last_point, last_gradient=last_gradient,
        **dict(zip(names, rings, strict=True)), slot=2, noise_slot=1,
    )  # fmt: skip
    bounds = [0, size // 200, size // 2, size]
    own = ops.cross_products(rings[0], list(rings[0]), bounds)
    others = [*rings[2], sums[1], direction.double()]
    other = ops.cross_products(rings[1], others, bounds)
    return [*figures, *before, *sums, last_point, last_gradient, *rings, own, other]


@pytest.mark.parametrize("name", ["compiled", "definition"])
def test_functional_transforms_see_what_was_changed(name: str) -> None:
    def gathered(tensor: Tensor) -> Tensor:
        out = torch.zeros(5)
        ops.gather([tensor], out)
        return out

    with backend(name):
        assert torch.func.functionalize(gathered)(torch.ones(5)).tolist() == [1] * 5


@compiled_only
@pytest.mark.parametrize("run", [run_of_steps, run_of_blocks])
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_same_bits_with_one_thread_and_two(storage: torch.dtype, run: Any) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(200_000, storage)
        torch.set_num_threads(2)
        together = run(200_000, storage)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@compiled_only
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
def test_both_backends_store_the_same_bits_of_blocks_and_agree_on_products(
    storage: torch.dtype,
) -> None:
    *kernels, own, other = run_of_blocks(5000, storage)
    with backend("definition"):
        *definitions, own_too, other_too = run_of_blocks(5000, storage)
    for kernel, definition in zip(kernels[2:], definitions[2:], strict=True):
        assert torch.equal(kernel, definition)
    for kernel, definition in (*zip(kernels[:2], definitions, strict=False), (own, own_too)):
        torch.testing.assert_close(kernel, definition, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(other, other_too, rtol=1e-12, atol=1e-10)


@compiled_only
def test_both_backends_agree_on_steps_to_rounding() -> None:
    kernels = run_of_steps(5000, torch.float32)
    with backend("definition"):
        definitions = run_of_steps(5000, torch.float32)
    for kernel, definition in zip(kernels, definitions, strict=True):
        torch.testing.assert_close(kernel, definition, rtol=1e-5, atol=1e-4)


@compiled_only
@pytest.mark.parametrize("dtype", ops.STORAGE_DTYPES, ids=str)
def test_both_backends_copy_the_same_bits(dtype: torch.dtype) -> None:
    results = []
    for name in ("compiled", "definition"):
        flat, tensors = normal(200, dtype=dtype), mixed_tensors()
        with backend(name):
            ops.gather(tensors, flat)
            for tensor in tensors:
                tensor.zero_()
            ops.scatter_(tensors, normal(200, dtype=dtype))
        results.append([flat, *tensors])
    assert all(map(torch.equal, *results))


@compiled_only
def test_kernels_take_these_rows_and_the_definition_the_others() -> None:
    def taken(vector: Tensor, rows: Tensor) -> bool:
        args = (vector.clone(), vector, vector, 1.0, rows, wide(1, len(rows)), [0, 8])
        result = ops.extrapolate_(*args)
        try:
            largest = torch.ops.aadl_ext.extrapolate_(*args)
        except RuntimeError:
            return False
        assert torch.equal(largest, result)
        return True

    vector, rows = torch.ones(8), torch.ones(3, 8)
    assert taken(vector, rows)
    assert taken(vector, rows.half())
    assert taken(vector.double(), rows)
    assert taken(vector, torch.ones(3, 16)[:, :8])
    assert not taken(vector, rows.double())
    assert not taken(vector.double(), rows.bfloat16())
    assert not taken(vector, rows.T.contiguous().T)


@compiled_only
def test_kernels_copy_lists_in_any_layout_and_floating_dtype() -> None:
    def taken(tensors: list[Tensor], flat: Tensor) -> bool:
        try:
            torch.ops.aadl_ext.gather(tensors, flat)
        except RuntimeError:
            return False
        return True

    flat = torch.zeros(200)
    assert taken(mixed_tensors(), flat)
    assert taken(mixed_tensors(), flat.half())
    assert taken([], flat)
    assert not taken([], flat[::2])
    assert not taken([flat, flat.int()], flat.clone())
    assert not taken([flat], flat.int())


@pytest.mark.skipif(library.missing is None, reason="there are kernels")
def test_without_the_library_nothing_is_left_to_kernels() -> None:
    assert not library.use_kernels
    assert ops.backends()["cpu kernels"] == library.missing
