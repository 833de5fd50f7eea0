"""Flags of the ops: which are taken, and that none is read by the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import mentions
from torch._subclasses import FakeTensorMode

from aadl_ext import ops
from aadl_ext.ops import reference


def gather(backend: Any, flag: Any) -> None:
    tensors = [torch.ones(3, 2).T, torch.ones(4, dtype=torch.float64)]
    backend.gather(tensors, torch.zeros(12), when=flag)


def scatter(backend: Any, flag: Any) -> None:
    tensors = [torch.ones(3, 2).T, torch.ones(4, dtype=torch.float64)]
    backend.scatter_(tensors, torch.zeros(12), when=flag)


def extrapolate(backend: Any, flag: Any) -> None:
    vectors, rows = torch.ones(3, 5), torch.ones(2, 5)
    backend.extrapolate_(*vectors, 0.5, rows, torch.ones(1, 2), [0, 5], accept=flag)


def push_block(backend: Any, flag: Any) -> None:
    sums, rings = [torch.ones(5) for _ in range(3)], torch.ones(3, 2, 5)
    names = ("last_point", "last_gradient", "step_rows", "gradient_rows", "noise_rows")
    arguments = dict(zip(names, (*torch.ones(2, 5), *rings), strict=True))
    sums = [sums] if backend is ops else sums
    backend.push_block(*sums, 3, **arguments, slot=0, noise_slot=1, accept=flag)


CALLS = [gather, scatter, extrapolate, push_block]
Call = Callable[[Any, Any], None]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("flag", "fragments"),
    [
        (None, ["is None"]),
        (1, ["is 1", "bool"]),
        (torch.tensor(1), ["int64 ()", "bool ()"]),
        (torch.tensor([True]), ["bool (1,)", "bool ()"]),
        (torch.empty((), dtype=torch.bool, device="meta"), ["on meta", "on cpu"]),
    ],
    ids=str,
)
def test_other_flags_are_refused_and_named(call: Call, flag: Any, fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=mentions(*fragments)):
        call(ops, flag)


@pytest.mark.parametrize("backend", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("call", CALLS)
def test_the_host_does_not_read_flags(call: Call, backend: Any) -> None:
    with FakeTensorMode():  # has no data to read
        call(backend, torch.zeros((), dtype=torch.bool))
