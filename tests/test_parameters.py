"""Where parameters lie in the flat vector, and the way there and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aadl_ext.buffers import HUGE, zeros
from aadl_ext.parameters import PADDING, Layout


def parameter(*shape: int, dtype: torch.dtype = torch.float32, trained: bool = True) -> Tensor:
    values = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    return nn.Parameter(values.to(dtype), requires_grad=trained)


def groups(*members: list[Tensor]) -> list[dict[str, Any]]:
    return [{"params": list(parameters)} for parameters in members]


GROUPS = ([parameter(2, 3), parameter(0)], [parameter(4, trained=False)], [parameter(5)])


@pytest.mark.parametrize(
    ("scope", "bounds", "owners"),
    [("all", (0, 6, PADDING), (0, 2)), ("tensor", (0, 6, PADDING), (0, 2))],
)
def test_segments_are_of_what_is_trained(scope: str, bounds: tuple[int, ...], owners: Any) -> None:
    layout = Layout.build(groups(*GROUPS), scope, None)
    assert (layout.size, layout.padded, layout.offsets) == (11, PADDING, bounds)
    assert layout.groups == owners
    assert layout.parameters == (GROUPS[0][0], GROUPS[2][0])


def test_each_tensor_of_a_group_may_have_a_segment() -> None:
    members = groups([parameter(70), parameter(3)])
    assert Layout.build(members, "tensor", None).offsets == (0, 70, 2 * PADDING)
    assert Layout.build(members, "all", None).offsets == (0, 2 * PADDING)


def test_parameters_go_there_and_back_and_padding_stays_zero() -> None:
    members = [parameter(2, 3), parameter(5, dtype=torch.float64)]
    layout = Layout.build(groups(members), "all", None)
    flat = layout.vector().fill_(9)
    layout.read(flat)
    assert flat.dtype == torch.float64
    assert flat.tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5] + [0] * (PADDING - 11)
    layout.write(2 * flat)
    assert members[0].tolist() == [[2, 4, 6], [8, 10, 12]]
    layout.write(flat, when=torch.tensor(False))
    assert members[1].tolist() == [2, 4, 6, 8, 10]


def test_the_flat_vector_takes_over_what_narrow_parameters_hold() -> None:
    layout = Layout.build(groups([parameter(3, dtype=torch.bfloat16)]), "all", None)
    flat = layout.vector()
    flat[:3] = 1 + 2.0**-12
    layout.write(flat)
    assert layout.rounds
    assert layout.limit == torch.finfo(torch.bfloat16).max
    assert flat[:3].tolist() == [1, 1, 1]


def test_other_parameters_do_not_fit() -> None:
    members = groups([parameter(3)])
    layout = Layout.build(members, "all", None)
    assert layout.fits(members)
    members[0]["params"][0].requires_grad_(False)
    assert not layout.fits(members)
    assert not layout.fits(groups([parameter(3)]))


@pytest.mark.parametrize("rows", [1, HUGE // 4 // 8])  # from there on, on huge pages
def test_vectors_of_any_length_are_zero_and_may_be_written(rows: int) -> None:
    found = zeros((rows, 8), torch.float32, torch.device("cpu"))
    assert found.shape == (rows, 8)
    assert not found.any()
    assert found.fill_(1).sum() == 8 * rows
