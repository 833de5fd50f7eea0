"""What all ops do alike: no graph, versions that count, tracing, and the checks of arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, Arguments, every_op, ring, small, vector
from strategies import mentions, normal
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from aadl_ext import ops
from aadl_ext.ops import library


def floating(tree: Any) -> list[Tensor]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def with_graphs(arguments: Arguments) -> Arguments:
    """The same values, as results of something that is trained."""

    def trained(tensor: Tensor) -> Tensor:
        return 1 * tensor.requires_grad_() if tensor.is_floating_point() else tensor

    return tree_map_only(Tensor, trained, arguments)


# ---- autograd ------------------------------------------------------------------------------


@every_op
def test_results_have_no_graph_whatever_they_are_made_of(name: str) -> None:
    op, make, changed = CASES[name]
    arguments = with_graphs(make())
    for target in changed:
        arguments[target] = tree_map_only(Tensor, torch.Tensor.detach, arguments[target])
    found = op(**arguments)
    assert not any(tensor.requires_grad for tensor in floating(found))
    assert not any(tensor.requires_grad for tensor in floating([arguments[x] for x in changed]))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_what_is_changed_in_place_counts_as_changed_and_nothing_else_does(name: str) -> None:
    op, make, changed = CASES[name]
    arguments = make()
    versions = {name: [t._version for t in tree_leaves(x) if isinstance(t, Tensor)]
                for name, x in arguments.items()}  # fmt: skip
    op(**arguments)
    for argument, before in versions.items():
        after = [t._version for t in tree_leaves(arguments[argument]) if isinstance(t, Tensor)]
        if argument in changed:
            assert all(x > y for x, y in zip(after, before, strict=True)), argument
        else:
            assert after == before, argument


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_autograd_notices_that_an_op_has_changed_what_it_needs(name: str) -> None:
    op, make, changed = CASES[name]
    for target in changed:
        arguments = make()
        tensors = floating(arguments[target])
        weights = [torch.ones_like(tensor, requires_grad=True) for tensor in tensors]
        losses = [(x * y).sum() for x, y in zip(weights, tensors, strict=True)]
        op(**arguments)
        for loss in losses:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


# ---- tracing -------------------------------------------------------------------------------


def without_data(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)


def shapes(tree: Any) -> list[tuple[Any, ...]]:
    return [(t.shape, t.dtype) for t in tree_leaves(tree) if isinstance(t, Tensor)]


@every_op
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_tensors_without_data_are_served(name: str, device: str) -> None:
    op, make, _ = CASES[name]
    expected = op(**make())
    if device == "meta":
        found = op(**tree_map_only(Tensor, lambda tensor: tensor.to("meta"), make()))
    else:
        arguments = make()
        with FakeTensorMode():
            found = op(**tree_map_only(Tensor, without_data, arguments))
    assert shapes(found) == shapes(expected)
    assert {t.device.type for t in floating(found)} <= {device}


@pytest.mark.parametrize("name", ["squared_norm", "solve_secants"])
def test_a_map_over_a_batch_gives_what_single_calls_do(name: str) -> None:
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "squared_norm": lambda tensor: ops.squared_norm([tensor[0]]),
        "solve_secants": lambda tensor: ops.solve_secants(tensor, factored=False).gamma,
    }
    batch = (torch.eye(3) * torch.arange(1, 5.0)[:, None, None]).double()[:, None] + 0.1
    try:
        found = torch.vmap(calls[name])(batch)
    except RuntimeError:  # not every kernel can be mapped
        return
    torch.testing.assert_close(found, torch.stack([calls[name](part) for part in batch]))


# ---- devices without kernels -----------------------------------------------------------------


DEVICES = count(1)  # of which nobody has asked yet


class Refusing(TorchDispatchMode):
    """As the library does on a GPU that it has no code for."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.calls, self.message = 0, message

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aadl_ext":
            self.calls += 1
            raise RuntimeError(f"at checks.h:81, {self.message}\nby calls")
        return func(*args, **(kwargs or {}))


def test_a_device_without_kernels_is_left_to_the_definition_and_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "use_kernels", True)
    message = f"no kernels run on CUDA device {next(DEVICES)}: no kernel image"
    with Refusing(message) as refusing:
        for _ in range(2):
            assert ops.squared_norm([torch.full((3,), 2.0)]) == 12
    assert refusing.calls == 2
    (told,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"{message}; `aadl_ext info`")


def test_each_device_is_asked_once_whether_kernels_run_there(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "emulated" not in backend:
        pytest.skip("needs a CUDA device that can be refused: the emulation")
    tensors = [torch.full((3,), 2.0)]
    monkeypatch.setenv("AADL_DEVICE", str(device := next(DEVICES)))
    monkeypatch.setenv("AADL_REFUSAL", "no kernel image")
    refused = f"no kernels run on CUDA device {device}: no kernel image"
    for _ in range(2):
        assert ops.squared_norm(tensors) == 12
        with pytest.raises(RuntimeError, match=refused):
            torch.ops.aadl_ext.squared_norm(tensors)
        monkeypatch.delenv("AADL_REFUSAL", raising=False)  # it is not asked again
    monkeypatch.setenv("AADL_DEVICE", str(next(DEVICES)))
    assert torch.ops.aadl_ext.squared_norm(tensors) == 12


# ---- memory that is shared -----------------------------------------------------------------


def apart(*names: str) -> list[tuple[str, str, str]]:
    """Each pair of a changed argument and another of the same shape."""
    pairs = []
    for name in names:
        _, make, changed = CASES[name]
        arguments = make()
        for target in changed:
            for other, value in arguments.items():
                own = arguments[target]
                alike = isinstance(own, Tensor) and isinstance(value, Tensor)
                if alike and other != target and value.shape == own.shape:
                    pairs.append((name, target, other))
    return pairs


@pytest.mark.parametrize(
    ("name", "target", "other"), apart("push_secant", "add_sample_", "push_block")
)
def test_what_is_changed_may_not_be_another_argument(name: str, target: str, other: str) -> None:
    op, make, _ = CASES[name]
    arguments = make()
    arguments[other] = arguments[target]
    with pytest.raises(ValueError, match=mentions("overlaps", "separate tensors")):
        op(**arguments)


@pytest.mark.parametrize(
    ("name", "target", "other"), apart("push_secant", "add_sample_", "push_block", "extrapolate_")
)
def test_what_is_changed_may_not_overlap_another_argument(
    name: str, target: str, other: str
) -> None:
    op, make, _ = CASES[name]
    arguments = make()
    count = arguments[target].numel()
    room, shape = torch.zeros(count + 1, dtype=arguments[target].dtype), arguments[target].shape
    arguments[target], arguments[other] = room[1:].view(shape), room[:-1].view(shape)
    with pytest.raises(ValueError, match=mentions("overlaps", "separate tensors")):
        op(**arguments)
    assert not room.any()


def test_out_of_gather_and_scatter_may_not_overlap_the_tensors() -> None:
    flat = torch.arange(6.0)
    for op in (ops.gather, ops.scatter_):
        with pytest.raises(ValueError, match="overlaps"):
            op([flat[3:], flat[:3]], flat)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("place", [0, 1])
def test_mean_may_not_overlap_the_iterates(place: int) -> None:
    window = [torch.arange(5.0), torch.arange(5.0) + 2]
    with pytest.raises(ValueError, match="overlaps"):
        ops.window_statistics(window, window[place])


def test_point_may_not_be_a_row_that_it_is_made_of() -> None:
    rows, point = ring(0), vector(1)
    with pytest.raises(ValueError, match="overlaps"):
        ops.extrapolate_(rows[1], point, point, 1.0, rows, small(1, 3), [0, 8])


def test_several_entries_in_one_place_are_not_written_to() -> None:
    one_place, source = torch.zeros(1).expand(4), torch.arange(4.0)
    with pytest.raises((ValueError, RuntimeError), match=r"one place|single memory location"):
        ops.scatter_([one_place], source)
    with pytest.raises((ValueError, RuntimeError), match=r"one place|single memory location"):
        ops.gather([source], one_place)
    assert one_place.tolist() == [0] * 4


def test_neighbours_in_one_piece_of_memory_are_apart() -> None:
    room = normal(10, 8, seed=0, dtype=torch.float32).clone()
    out, before, after = room[:3]
    ops.extrapolate_(out, before, after, 1.0, room[3:6], torch.zeros(1, 3).double(), [0, 8])
    assert torch.equal(out, after)
    ops.window_statistics([room[1], room[2], room[4]], room[3])
    torch.testing.assert_close(room[3], torch.stack([room[1], room[2], room[4]]).mean(dim=0))
    ops.gather([room[5], room[7]], room[8:].view(-1))
    assert torch.equal(room[8:], room[[5, 7]])


def test_rows_of_two_rings_may_take_turns_in_memory() -> None:
    arguments = CASES["push_secant"][1]()
    twin = {name: x.clone() if isinstance(x, Tensor) else x for name, x in arguments.items()}
    room = torch.stack([arguments["step_rows"], arguments["residual_rows"]], dim=1)
    arguments["step_rows"], arguments["residual_rows"] = room.unbind(dim=1)
    assert torch.equal(ops.push_secant(**arguments), ops.push_secant(**twin))
    assert torch.equal(arguments["step_rows"], twin["step_rows"])
    assert torch.equal(arguments["residual_rows"], twin["residual_rows"])


def test_columns_of_a_matrix_are_written_beside_each_other() -> None:
    matrix = torch.zeros(3, 4)
    ops.scatter_([matrix[:, ::2], matrix[:, 1::2]], torch.arange(12.0))
    assert matrix.tolist() == [[0, 6, 1, 7], [2, 8, 3, 9], [4, 10, 5, 11]]


def test_what_is_only_read_may_overlap() -> None:
    points = torch.arange(9.0)
    assert ops.differs(points[1:], points[:-1])
    sums = [torch.zeros(8), torch.zeros(8)]
    ops.add_sample_(sums, [points[1:]], points[:-1], [points[1:]], sign=1.0)
    assert sums[0].tolist() == [1] * 8


# ---- devices and numbers -------------------------------------------------------------------

SEVERAL_DEVICES = ("gather", "scatter_", "squared_norm")  # lists of any


def elsewhere() -> list[tuple[str, str]]:
    names = [name for name in CASES if name not in SEVERAL_DEVICES]
    pairs = [(name, x) for name in names for x, y in CASES[name][1]().items() if floating(y)]
    return [pair for pair in pairs if pair[0] not in ("solve_secants", "sketch")]  # of one argument


@pytest.mark.parametrize(("name", "argument"), elsewhere())
def test_tensors_on_different_devices_are_refused(name: str, argument: str) -> None:
    op, make, _ = CASES[name]
    arguments = make()
    moved = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), arguments[argument])
    with pytest.raises(ValueError, match=mentions("on meta", "on cpu")):
        op(**{**arguments, argument: moved})


NUMBERS = [
    ("extrapolate_", "relaxation"), ("solve_secants", "ridge"), ("solve_secants", "tolerance"),
    ("add_sample_", "sign"), ("solve_subspace", "ridge"), ("solve_subspace", "floor"),
    ("solve_subspace", "shrinkage"), ("fit_quadratic", "ridge"),
    ("fit_quadratic", "shrinkage"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "setting"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_settings_that_are_not_finite_are_refused_and_named(
    name: str, setting: str, value: float
) -> None:
    op, make, _ = CASES[name]
    with pytest.raises(ValueError, match=mentions(setting, str(value))):
        op(**{**make(), setting: value})


INTEGERS = [("push_secant", "slot"), ("push_block", "slot"), ("push_block", "noise_slot"),
            ("push_block", "count"), ("fit_quadratic", "newest"),
            ("fit_quadratic", "count")]  # fmt: skip


@pytest.mark.parametrize(("name", "argument"), INTEGERS)
@pytest.mark.parametrize("value", [True, 1.0, np.float64(1), np.bool_(True)])
def test_other_numbers_than_integers_are_refused_and_named(
    name: str, argument: str, value: Any
) -> None:
    op, make, _ = CASES[name]
    with pytest.raises(ValueError, match=mentions(argument, repr(value), "integer")):
        op(**{**make(), argument: value})


@pytest.mark.parametrize(("name", "argument"), INTEGERS)
def test_integers_of_numpy_are_taken(name: str, argument: str) -> None:
    op, make, changed = CASES[name]
    ours, theirs = make(), make()
    op(**{**ours, argument: 1})
    op(**{**theirs, argument: np.int64(1)})
    assert all(torch.equal(ours[target], theirs[target]) for target in changed)
