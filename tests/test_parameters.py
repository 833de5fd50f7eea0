"""Where parameters lie in the flat vector, and the way there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile

from aadl_ext import Anderson, accelerate, get_accelerator
from aadl_ext.buffers import HUGE, zeros
from aadl_ext.ops import library
from aadl_ext.optimizer_hook import Gradients
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


CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda group: group["params"][0].requires_grad_(False),
    lambda group: setattr(group["params"][0], "data", torch.ones(2)),
    lambda group: setattr(group["params"][0], "data", torch.ones(3, dtype=torch.float64)),
    lambda group: group["params"].reverse(),
    lambda group: group["params"].pop(),
    lambda group: group.update(params=[parameter(3), parameter(2)]),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("quick", [True, False])
def test_other_parameters_do_not_fit(
    change: Callable[[dict[str, Any]], object], quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not quick:  # a torch without what is asked first
        monkeypatch.setattr(torch._C._dynamo.guards, "TensorGuards", None)
    members = groups([parameter(3), parameter(2)])
    layout = Layout.build(members, "all", None)
    assert layout.fits(members)
    change(members[0])
    assert not layout.fits(members)


def test_what_is_in_the_padding_is_no_move() -> None:
    layout = Layout.build(groups([parameter(3)]), "all", None)
    now, before = layout.vector(), layout.vector()
    before[3] = torch.nan
    assert not layout.moved(now, before, torch.tensor(1.0))
    before[2] = 1
    assert layout.moved(now, before, torch.tensor(1.0))


@pytest.mark.parametrize("rows", [1, HUGE // 4 // 8])  # from there on, on huge pages
def test_vectors_of_any_length_are_zero_and_may_be_written(rows: int) -> None:
    found = zeros((rows, 8), torch.float32, torch.device("cpu"))
    assert found.shape == (rows, 8)
    assert not found.any()
    assert found.fill_(1).sum() == 8 * rows


# ---- memory order ----------------------------------------------------------------------------

# The first layers of each stage of ResNet-50, with a sixteenth of the channels.
CONVOLUTIONS = [
    (4, 3, 7, 7), (4, 4, 1, 1), (4, 4, 3, 3), (16, 4, 1, 1), (8, 16, 1, 1), (8, 8, 3, 3),
    (32, 8, 1, 1), (32, 16, 1, 1), (16, 32, 1, 1), (16, 16, 3, 3), (64, 16, 1, 1),
]  # fmt: skip
VECTORS = [(shape[0],) for shape in CONVOLUTIONS] + [(10, 128), (10,)]


def resnet(channels_last: bool) -> list[Tensor]:
    """Weights with their gradients, twice as large; what has no 4 dimensions is as it is."""
    members = []
    for seed, shape in enumerate(CONVOLUTIONS + VECTORS):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if channels_last and len(shape) == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        members.append(nn.Parameter(values))
        members[-1].grad = 2 * members[-1].detach()
    return members


def copies_by_torch(call: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    return sum(x.count for x in found.key_averages() if x.key in ("aten::copy_", "aten::clone"))


def gathered_gradients(layout: Layout, members: list[Tensor]) -> Tensor:
    out = layout.vector()
    gradients = Gradients(SGD(members, lr=1.0))
    assert gradients.gather(layout, out, out)
    return out


@pytest.mark.skipif(library.missing is not None, reason=f"no kernels: {library.missing}")
def test_channels_last_weights_are_copied_as_they_lie() -> None:
    members = resnet(channels_last=True)
    layout = Layout.build(groups(members), "all", None)
    flat, yes = layout.vector(), torch.tensor(True)
    assert copies_by_torch(lambda: layout.read(flat)) == 0
    twice = 2 * flat
    in_memory = [p.detach().permute(0, 2, 3, 1) if p.ndim == 4 else p.detach() for p in members]
    assert torch.equal(flat[: layout.size], torch.cat([x.flatten() for x in in_memory]))
    assert copies_by_torch(lambda: layout.write(twice, when=yes)) == 0
    assert copies_by_torch(lambda: gathered_gradients(layout, members)) == 0
    assert torch.equal(gathered_gradients(layout, members), twice)
    assert all(torch.equal(p, p.grad) for p in members)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous().T if tensor.ndim == 2 else tensor.contiguous()


def spaced(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def channels_last(tensor: Tensor) -> Tensor:
    memory_format = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.contiguous(memory_format=memory_format)


FORMATS = (torch.clone, transposed, spaced, channels_last)


@pytest.mark.parametrize("of_gradients", FORMATS)
@pytest.mark.parametrize("of_weights", FORMATS)
def test_gradients_in_another_order_are_gathered_in_that_of_the_weights(
    of_weights: Callable[[Tensor], Tensor], of_gradients: Callable[[Tensor], Tensor]
) -> None:
    members = [nn.Parameter(of_weights(p.detach())) for p in resnet(channels_last=False)]
    for p in members:
        p.grad = of_gradients(2 * p.detach())
    layout = Layout.build(groups(members), "all", None)
    flat = layout.vector()
    layout.read(flat)
    assert torch.equal(gathered_gradients(layout, members), 2 * flat)
    before = [p.detach().clone() for p in members]
    layout.write(-flat)
    assert all(torch.equal(p, -x) for p, x in zip(members, before, strict=True))


def test_weights_that_change_their_layout_are_still_read_in_the_same_order() -> None:
    members = resnet(channels_last=False)
    layout = Layout.build(groups(members), "all", None)
    flat, again = layout.vector(), layout.vector()
    layout.read(flat)
    for p in members:
        p.data = channels_last(p.data)
    layout.read(again)
    assert layout.fits(groups(members))
    assert torch.equal(flat, again)


@pytest.mark.parametrize("first", [False, True])
def test_state_by_parameter_is_in_logical_order(first: bool) -> None:
    members, others = resnet(channels_last=first), resnet(channels_last=not first)
    layout, other = (Layout.build(groups(x), "all", None) for x in (members, others))
    rows, loaded = layout.vector(3), other.vector(3)
    for row in rows:
        layout.read(row)
    state = layout.by_parameter(rows)
    for name, p in zip(layout.names, members, strict=True):
        assert state[name].is_contiguous()
        assert torch.equal(state[name], p.detach().expand(3, *p.shape))
    other.fill(loaded, state)
    expected = other.vector()
    other.read(expected)
    assert torch.equal(loaded, expected.expand(3, -1))


def test_a_run_goes_on_with_weights_in_another_layout() -> None:
    def run(members: list[Tensor], steps: int, state: Any = None) -> Any:
        optimizer = accelerate(
            SGD(members, lr=0.3), Anderson(history_depth=4, safeguard="residual")
        )
        if state is not None:
            get_accelerator(optimizer).load_state_dict(state)
        for _ in range(steps):
            for p in members:
                curvature = torch.linspace(0.1, 1.5, p.numel()).view(p.shape)
                p.grad = channels_last(p.detach() * curvature)
            optimizer.step()
        assert get_accelerator(optimizer).stats.accepted > 3
        return get_accelerator(optimizer).state_dict()

    members = resnet(channels_last=False)
    state = run(members, 12)
    others = [nn.Parameter(channels_last(p.detach().clone())) for p in members]
    run(members, 6, state)
    run(others, 6, state)
    for p, other in zip(members, others, strict=True):
        torch.testing.assert_close(p, other, rtol=1e-4, atol=1e-6)
