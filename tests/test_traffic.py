"""Bytes that whole steps move, by what the ops declare: bounds that a change must not lose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from aadl_ext import (
    Anderson,
    AndersonMixing,
    Averaging,
    Storage,
    SubspaceNewton,
    accelerate,
    fixed_point,
    get_accelerator,
    ops,
)
from aadl_ext.ops import library
from aadl_ext.ops.traffic import Traffic

SHAPE, CYCLE = (70, 64, 3, 3), 10
EVERY = Anderson(history_depth=20, frequency=1, safeguard="residual")
PAPER = replace(EVERY, frequency=5, store_each_nth=5)
NARROW = Storage(torch.bfloat16)
WIDE = Storage(torch.float32)


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are counted in the dispatcher, which finds definitions where nothing is compiled."""
    monkeypatch.setattr(library, "use_kernels", True)


def moved(options: Any, memory_format: torch.memory_format, decay: float = 0.0) -> list[float]:
    """Bytes an entry of the last steps, beyond those of the base optimizer."""
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    curvature = 10 ** (-3 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)))
    steps: list[list[float]] = []
    for method in (None, options):
        weight = nn.Parameter(start.contiguous(memory_format=memory_format))
        optimizer = SGD([weight], lr=0.02, weight_decay=decay)
        if method is not None:
            accelerate(optimizer, method)
        steps.append([])
        for _ in range(12 * CYCLE):
            weight.grad = weight.detach() * curvature
            with Traffic() as traffic:
                optimizer.step()
            steps[-1].append((traffic.read + traffic.written) / weight.numel())
    assert get_accelerator(optimizer).stats.accepted > 4
    return [more - bare for bare, more in zip(*steps, strict=True)][-CYCLE:]


# A gather and a scatter move 8 bytes an entry each, push 20 + 4 (m + 1) where it stores, else 12,
# extrapolate 12 + 4 m; the mean over a cycle is what counts for the paper's method.
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("options", "bound"),
    [
        (EVERY, 241),
        (PAPER, 53),
        (replace(PAPER, average=Averaging()), 106),
        (replace(PAPER, storage=NARROW), 37),
    ],
    ids=["every step", "every fifth", "averaged", "narrow rows"],
)
def test_anderson(options: Any, bound: float, memory_format: torch.memory_format) -> None:
    found = moved(options, memory_format)
    assert bound - 10 < sum(found) / CYCLE <= bound
    if options is PAPER:
        assert sorted(found)[: CYCLE // 2] == [0] * (CYCLE // 2)  # most steps do nothing


@pytest.mark.parametrize("decay", [0.0, 1e-5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("storage", "block_end"), [(WIDE, 209), (NARROW, 159)], ids=["wide rows", "narrow rows"]
)
def test_subspace_newton(
    storage: Storage, block_end: float, memory_format: torch.memory_format, decay: float
) -> None:
    """An ordinary step, one that judges, one that ends a block."""
    options = SubspaceNewton(adaptive_blocks=False, quasi_newton=False, storage=storage)
    found = moved(options, memory_format, decay)
    assert sorted(found)[CYCLE // 2] <= 40.1
    assert sorted(found)[-2] <= 105 + 12 * bool(decay)  # is added to the gradient by torch
    assert block_end - 30 < max(found) <= block_end


# The push reads f(x), a pair, the last pair and m - 1 rows and writes a residual and two rows, the
# extrapolation reads f(x) and m rows and writes x: 8 m + 32 bytes. The norm of f(x) reads 4 more.
# Damped, x is read and written once more, with m rows.
@pytest.mark.parametrize("depth", [5, 10])
@pytest.mark.parametrize("relaxation", [1.0, 0.5])
def test_fixed_points(depth: int, relaxation: float) -> None:
    """Beside f, while all samples run."""
    moved: list[float] = []
    counted = [Traffic()]
    rates = torch.linspace(0.9, 0.95, 40_000)

    def f(x: Tensor) -> Tensor:
        counted[-1].__exit__(None, None, None)
        moved.append((counted[-1].read + counted[-1].written) / x.numel())
        y = torch.cos(x) * rates
        counted.append(Traffic())
        counted[-1].__enter__()
        return y

    counted[-1].__enter__()
    method = AndersonMixing(depth, relaxation)
    try:
        fixed_point(f, torch.zeros(4, 40_000), method=method, tol=0.0, max_steps=depth + 5)
    finally:
        counted[-1].__exit__(None, None, None)
    found, least = moved[depth + 2 : depth + 5], 8 * depth + 32
    least += (relaxation != 1) * (4 * depth + 12)
    assert least <= min(found) <= least + 5
    assert max(found) <= least + 17  # where a residual rises, the best point is copied


def test_what_an_op_does_not_need_is_not_counted() -> None:
    n, rows = 6400, torch.zeros(2, 4, 6400)
    vectors = list(torch.zeros(5, n))
    named: dict[str, Any] = {
        "rates": [0.1], "offsets": [0, n], "residual": vectors[2], "last_point": vectors[3],
        "last_residual": vectors[4], "step_rows": rows[0], "residual_rows": rows[1],
    }  # fmt: skip

    def bytes_of(call: Any) -> tuple[float, float]:
        with Traffic() as traffic:
            call()
        return round(traffic.read / n, 1), round(traffic.written / n, 1)

    systems = torch.zeros(1, 5, 5, dtype=torch.float64)
    assert bytes_of(lambda: ops.push_secant(*vectors[:2], slot=-1, **named)) == (8, 4)
    assert bytes_of(lambda: ops.push_secant(*vectors[:2], slot=0, **named)) == (16, 12)
    pushed = bytes_of(lambda: ops.push_secant(*vectors[:2], slot=0, systems=systems, **named))
    assert pushed == (28, 12)
    no = torch.tensor(False)
    assert bytes_of(lambda: ops.gather(vectors[:1], vectors[1])) == (4, 4)
    assert bytes_of(lambda: ops.gather(vectors[:1], vectors[1], when=no)) == (0, 0)
    assert bytes_of(lambda: vectors[0].copy_(vectors[1])) == (4, 4)
    assert bytes_of(lambda: vectors[0].add_(vectors[1])) == (8, 4)
    assert bytes_of(lambda: torch.sub(*vectors[:2], out=vectors[2])) == (8, 4)


def test_views_move_nothing() -> None:
    tensor: Tensor = torch.zeros(4, 6)
    with Traffic() as traffic:
        tensor[1:].T.reshape(6, 3).unbind()
    assert (traffic.read, traffic.written, traffic.calls) == (0, 0, [])
