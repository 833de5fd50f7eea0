"""What a checkpoint holds, and that it goes back where it came from."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training import (
    AVERAGED,
    JUMPY,
    NEWTON,
    SKETCHED,
    VARIANTS,
    MakeOptimizer,
    Method,
    Training,
    adam,
    same,
    sgd,
    variants,
)

from aadl_ext import Storage, state

TOTAL = 24


@dataclass
class Inner:
    vector: Tensor
    count: int = 0


@dataclass
class Outer:
    inner: Inner
    vectors: list[Tensor]
    cache: state.Scratch[Tensor]
    rates: list[tuple[float, ...]] = field(default_factory=list)
    maybe: Tensor | None = None
    name: str = "a"


def outer(value: float, count: int = 0) -> Outer:
    made = [torch.full((3,), value + k) for k in range(4)]
    return Outer(Inner(made[0], count), made[1:3], made[3])


def test_all_fields_but_scratch_are_saved_by_name_as_copies() -> None:
    holder = outer(1.0, 7)
    saved = state.state_dict(holder)
    expected: dict[str, Any] = {
        "inner": {"vector": torch.full((3,), 1.0), "count": 7},
        "vectors": [torch.full((3,), 2.0), torch.full((3,), 3.0)],
        "rates": [],
        "maybe": None,
        "name": "a",
    }
    assert same(saved, expected)
    for x in state.tensors(holder):
        x.zero_()
    assert same(saved, expected)


def test_tensors_are_filled_in_place_and_other_values_taken_over() -> None:
    source, target = outer(1.0, 7), outer(5.0)
    source.rates, source.name = [(0.1, 0.2)], "b"
    places = [x.data_ptr() for x in state.tensors(target)]
    state.load_state_dict(target, state.state_dict(source))
    assert [x.data_ptr() for x in state.tensors(target)] == places
    assert same(state.state_dict(target), state.state_dict(source))
    assert same(target.cache, torch.full((3,), 8.0))


@pytest.mark.parametrize("name", ["inner", "vectors", "rates", "name"])
def test_a_field_that_is_missing_is_an_error(name: str) -> None:
    saved = state.state_dict(outer(1.0))
    del saved[name]
    with pytest.raises(KeyError, match=name):
        state.load_state_dict(outer(2.0), saved)


def test_all_tensors_are_listed_scratch_ones_too() -> None:
    holder = outer(1.0)
    expected = [holder.inner.vector, *holder.vectors, holder.cache]
    assert list(map(id, state.tensors(holder))) == list(map(id, expected))


def through_a_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


SETTINGS: dict[str, Method] = {
    **VARIANTS,
    "adapted blocks": replace(NEWTON, adaptive_blocks=True),
    "sketched": SKETCHED,
    "tsqr": replace(JUMPY, solver="tsqr"),
    "narrow rows": replace(JUMPY, storage=Storage(torch.bfloat16), scope="tensor"),
}


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])
def test_a_run_that_is_resumed_at_each_step_goes_the_same_way(
    make: MakeOptimizer, options: Method
) -> None:
    whole, stopped = Training(make, options), Training(make, options)
    way = whole.run(TOTAL)
    for k in range(TOTAL):
        stopped.step()
        assert torch.equal(stopped.point(), way[k])
        resumed = Training(make, options)
        resumed.model.load_state_dict(stopped.model.state_dict())
        resumed.optimizer.load_state_dict(copy.deepcopy(stopped.optimizer.state_dict()))
        resumed.accelerator.load_state_dict(through_a_file(stopped.accelerator.state_dict()))
        stopped = resumed
    expected, found = whole.accelerator.stats, stopped.accelerator.stats
    for name in ("steps", "pairs", "extrapolations", "accepted", "averaged", "rejected"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.extrapolations > 3


@variants
def test_a_state_is_a_copy(options: Method) -> None:
    training = Training(sgd, options)
    training.run(7)
    saved = training.accelerator.state_dict()
    expected = copy.deepcopy(saved)
    training.run(7)
    assert same(saved, expected)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("version", 1),
        ("options", {"method": "Anderson"}),
        ("parameters", {"0.0": (4, 3)}),
        ("dtype", torch.float64),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_a_state_of_something_else_is_refused_by_name(name: str, other: Any, missing: bool) -> None:
    training = Training(sgd, AVERAGED)
    training.run(5)
    saved = training.accelerator.state_dict()
    if missing:
        del saved[name]
    else:
        saved[name] = other
    before = training.accelerator.state_dict()
    message = rf"saved with {name} = .*, but here it is .*; accelerate with the same options"
    with pytest.raises(ValueError, match=message):
        training.accelerator.load_state_dict(saved)
    assert same(training.accelerator.state_dict(), before)


def test_a_state_of_another_method_is_refused() -> None:
    saved = Training(sgd, JUMPY).accelerator.state_dict()
    with pytest.raises(ValueError, match=r"saved with options = .*'Anderson'.*SubspaceNewton"):
        Training(sgd, NEWTON).accelerator.load_state_dict(saved)
