"""Verdicts over samples, beside the same said of one sample at a time in Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from strategies import edges, mentions
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.judge_fixed_points import CONVERGED, DIVERGED, RUNNING, STAGNATED

PATIENCE, PROGRESS = 3, 0.9


def drawn(count: int, seed: int) -> dict[str, Any]:
    """What tensors may hold, with numbers that are none, zeros and ties among them."""
    generator = torch.Generator().manual_seed(seed)

    def whole(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    def residuals(*shape: int) -> Tensor:
        odd = torch.tensor([0.0, 0.5, 1.0, 2.0, 1e-3, math.inf, math.nan], dtype=torch.float64)
        smooth = torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.where(whole(3, *shape) == 0, odd[whole(len(odd), *shape)], smooth)

    return {
        "norm": residuals(count),
        "size": 2 * residuals(count),
        "sound": whole(4, count) > 0,
        "residuals": residuals(3, count),
        "counts": whole(PATIENCE + 1, 2, count),
        "status": (whole(6, count) - 2).clamp(min=0).to(torch.uint8),
        "flags": whole(2, 2, count) > 0,
        "tol": 0.1,
        "abs_tol": 0.05,
        "progress": PROGRESS,
        "patience": PATIENCE,
    }


def judged(given: dict[str, Any], i: int, compares: bool, stores: bool) -> dict[str, Any]:
    """What the docstring says of sample i."""
    norm, size, sound, status = (given[x][i].item() for x in ("norm", "size", "sound", "status"))
    least, stored, mark = given["residuals"][:, i].tolist()
    since, steps = given["counts"][:, i].tolist()
    held, extrapolated = given["flags"][:, i].tolist()
    runs = status == RUNNING
    back = lost = False
    if runs:
        steps += 1
        if sound and norm <= 0.05 + 0.1 * size:
            status = CONVERGED
        elif extrapolated and not (sound and (norm < stored or not compares)):
            back = True
        elif not sound:
            status = DIVERGED
    since += 1
    if sound and norm < PROGRESS * mark:
        mark, since = norm, 0
    if runs and status == RUNNING and since >= PATIENCE:
        status = STAGNATED
    goes_on = status == RUNNING
    if runs and sound and norm < least:
        least, lost, held = norm, not stores, stores
    elif stores and runs and not back:  # another takes the place of the stored point
        lost, held = held, False
    if stores and goes_on and not back:
        stored = norm
    return {
        "residuals": [least, stored, mark],
        "counts": [since, steps],
        "status": status,
        "flags": [held, extrapolated],
        "moves": [lost, back, runs and not goes_on],
    }


@pytest.mark.parametrize("compares", [False, True])
@pytest.mark.parametrize("stores", [False, True])
def test_every_sample_is_judged_as_if_it_were_alone(compares: bool, stores: bool) -> None:
    given = drawn(2000, seed=2 * compares + stores)
    said = [judged(given, i, compares, stores) for i in range(2000)]
    moves = ops.judge_fixed_points_(**given, compares=compares, stores=stores)
    for name in ("residuals", "counts", "status", "flags"):
        expected = torch.tensor([x[name] for x in said], dtype=given[name].dtype)
        found = given[name].T if given[name].ndim == 2 else given[name]
        assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1)), name
    assert torch.equal(moves.T, torch.tensor([x["moves"] for x in said]))
    assert set(given["status"].tolist()) == {RUNNING, CONVERGED, DIVERGED, STAGNATED}
    assert moves.any(dim=1).all()


def test_sizes_around_the_limits_of_kernels(backend: str) -> None:
    for size in edges(backend):
        count = min(size, 70_000)
        one, other = drawn(count, seed=1), drawn(count, seed=1)
        found = ops.judge_fixed_points_(**one, compares=True, stores=True)
        with ops.library.definitions_only():
            expected = ops.judge_fixed_points_(**other, compares=True, stores=True)
        assert torch.equal(found, expected)
        for name in ("counts", "status", "flags"):
            assert torch.equal(one[name], other[name])
        assert torch.equal(one["residuals"].nan_to_num(-1), other["residuals"].nan_to_num(-1))


@pytest.mark.parametrize(
    ("name", "wrong", "fragments"),
    [
        ("norm", torch.zeros(4), ["norm", "float32", "float64"]),
        ("norm", torch.zeros(2, 2).double(), ["norm", "(2, 2)"]),
        ("size", torch.zeros(5).double(), ["size", "(5,)", "(4,)"]),
        ("sound", torch.ones(4), ["sound", "float32", "bool"]),
        ("residuals", torch.zeros(2, 4).double(), ["residuals", "(2, 4)", "(3, 4)"]),
        ("counts", torch.zeros(2, 4), ["counts", "int64"]),
        ("status", torch.zeros(4).long(), ["status", "int64", "uint8"]),
        ("flags", torch.zeros(4, 2, dtype=torch.bool), ["flags", "(4, 2)", "(2, 4)"]),
        ("size", torch.zeros(4, device="meta").double(), ["size", "on meta", "on cpu"]),
    ],
)
def test_misfit_is_refused_and_named(name: str, wrong: Tensor, fragments: list[str]) -> None:
    given = drawn(4, seed=0) | {name: wrong}
    with pytest.raises(ValueError, match=mentions(*fragments)):
        ops.judge_fixed_points_(**given, compares=True, stores=True)
