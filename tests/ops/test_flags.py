"""Flags of the ops: which are taken, and that none is read by the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import mentions
from torch._subclasses import FakeTensorMode

from aadl_ext import ops


def tensors() -> list[torch.Tensor]:
    return [torch.ones(3, 2).T, torch.ones(4, dtype=torch.float64)]


def gather(flag: Any) -> None:
    ops.gather(tensors(), torch.zeros(12), when=flag)


def scatter(flag: Any) -> None:
    ops.scatter_(tensors(), torch.zeros(12), when=flag)


def extrapolate(flag: Any) -> None:
    vectors, rows, gamma = torch.ones(3, 5), torch.ones(2, 5), torch.ones(1, 2).double()
    ops.extrapolate_(*vectors, 0.5, rows, gamma, [0, 5], accept=flag)


def push_secant(flag: Any) -> None:
    vectors, rings = torch.ones(5, 5), torch.ones(2, 3, 5)
    ops.push_secant(
        *vectors[:2], rates=[0.1], offsets=[0, 5], residual=vectors[2], last_point=vectors[3],
        last_residual=vectors[4], step_rows=rings[0], residual_rows=rings[1], slot=1,
        paired=flag, systems=torch.ones(1, 4, 4).double(),
    )  # fmt: skip


def push_block(**flags: Any) -> None:
    sums, rings = [torch.ones(5) for _ in range(3)], torch.ones(3, 2, 5)
    names = ("last_point", "last_gradient", "step_rows", "gradient_rows", "noise_rows")
    arguments = dict(zip(names, (*torch.ones(2, 5), *rings), strict=True))
    ops.push_block(sums, 3, **arguments, slot=0, noise_slot=1, **flags)


def push_paired_block(flag: Any) -> None:
    push_block(paired=flag)


def push_accepted_block(flag: Any) -> None:
    push_block(accept=flag)


def push_block_with_both(flag: Any) -> None:
    push_block(paired=flag, accept=flag)


CALLS = [gather, scatter, extrapolate, push_secant, push_paired_block, push_accepted_block]
Call = Callable[[Any], None]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("flag", "fragments"),
    [
        (True, ["is True", "bool", "None"]),
        (1, ["is 1", "bool"]),
        (torch.tensor(1), ["int64 ()", "bool ()"]),
        (torch.tensor([True]), ["bool (1,)", "bool ()"]),
        (torch.empty((), dtype=torch.bool, device="meta"), ["on meta", "on cpu"]),
    ],
    ids=str,
)
def test_other_flags_are_refused_and_named(call: Call, flag: Any, fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=mentions(*fragments)):
        call(flag)


@pytest.mark.parametrize("call", [*CALLS, push_block_with_both])
def test_the_host_does_not_read_flags_of_devices(call: Call) -> None:
    with FakeTensorMode():  # has no data to read
        call(torch.zeros((), dtype=torch.bool))
