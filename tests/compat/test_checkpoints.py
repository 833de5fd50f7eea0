"""A training that is stopped, saved and resumed goes on bit for bit."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from training import (
    AVERAGED,
    JUMPY,
    NEWTON,
    SKETCHED,
    MakeOptimizer,
    Method,
    Training,
    adam,
    methods,
    momentum,
    same,
    sgd,
    variants,
)

from aadl_ext import (
    Anderson,
    Averaging,
    Storage,
    SubspaceNewton,
    accelerate,
    get_accelerator,
)

TOTAL = 18
optimizers = pytest.mark.parametrize("make", [sgd, momentum, adam], ids=["sgd", "momentum", "adam"])
# Under "average" the window of 5 is partly full at moments 1 to 3.
NARROW, WIDE = Storage(torch.bfloat16), Storage(torch.float64, device="cpu")
OPTIONS: dict[str, Method] = {
    "residual": JUMPY,
    "late first pair": replace(JUMPY, wait_iterations=4, store_each_nth=3),
    "average": AVERAGED,
    "averages alone": replace(AVERAGED, history_depth=0),
    "groups, float64 rows": replace(JUMPY, scope="group", storage=WIDE),
    "tensors, bfloat16 rows": replace(JUMPY, scope="tensor", storage=NARROW),
    "loss": replace(JUMPY, safeguard="loss"),
    "unguarded": replace(JUMPY, safeguard=None, average=Averaging(window=2)),
    "newton": NEWTON,
    "newton, long blocks": replace(NEWTON, block_length=3, noise_samples=2),
    "newton, short blocks": replace(NEWTON, block_length=1, noise_samples=0),
    "newton, adapted blocks": replace(NEWTON, adaptive_blocks=True),
    "newton, tensors, bfloat16 rows": replace(NEWTON, scope="tensor", storage=NARROW),
    "newton, loss": replace(NEWTON, safeguard=("loss", "limits")),
    "newton, unguarded": replace(NEWTON, safeguard=None),
    "newton, sketched": SKETCHED,
}


def two_groups(parameters: Iterable[nn.Parameter]) -> SGD:
    first, *others = parameters
    return SGD([{"params": [first], "lr": 0.1}, {"params": others}], lr=0.05, momentum=0.5)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def saved(training: Training) -> dict[str, Any]:
    return through_a_file(
        {
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "accelerator": training.accelerator.state_dict(),
        }
    )


def load(training: Training, state: dict[str, Any], *, accelerator: bool = True) -> None:
    state = copy.deepcopy(state)  # torch's optimizers adopt the tensors that they load
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    if accelerator:
        training.accelerator.load_state_dict(state["accelerator"])


@pytest.mark.parametrize(
    ("make", "options"),
    [
        *(pytest.param(two_groups, options, id=name) for name, options in OPTIONS.items()),
        *(pytest.param(adam, OPTIONS[name], id=f"adam, {name}") for name in ("average", "newton")),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(make: MakeOptimizer, options: Method) -> None:
    training = Training(make, options)
    states, pending = [], set()

    def note_and_step() -> None:  # from before the first step on
        states.append(saved(training))
        pending.add(training.accelerator.pending)
        training.optimizer.step(training.closure)

    points = training.run(TOTAL, note_and_step)
    if options.history_depth:
        assert training.accelerator.stats.extrapolations > 2
        judged = isinstance(options, SubspaceNewton) or "residual" in options.safeguard
        assert len(pending) == (2 if judged else 1)
    for moment in (0, 1, 2, 3, 4, 6, 7, 13, 14):
        other = Training(make, options)
        load(other, states[moment])
        step = functools.partial(other.optimizer.step, other.closure)
        assert torch.equal(other.run(TOTAL - moment, step), points[moment:])
        assert same(other.optimizer.state_dict(), training.optimizer.state_dict())
        assert same(other.accelerator.state_dict(), training.accelerator.state_dict())


@pytest.mark.parametrize("options", [AVERAGED, NEWTON], ids=["average", "newton"])
def test_a_saved_state_does_not_change_while_training_goes_on(options: Method) -> None:
    training = Training(sgd, options)
    training.run(6)
    while not training.accelerator.pending:
        training.step()
    state = training.accelerator.state_dict()
    kept = through_a_file(state)
    training.run(5)
    assert same(state, kept)


@optimizers
@variants
def test_loading_back_in_place_repeats_the_steps(make: MakeOptimizer, options: Method) -> None:
    training = Training(make, options)
    training.run(7)
    state = saved(training)
    first = training.run(10)
    load(training, state)
    assert torch.equal(training.run(10), first)


@optimizers
@methods
@pytest.mark.parametrize("moment", [1, 5, 8])
def test_without_the_accelerator_state_a_resumed_run_starts_a_new_history(
    make: MakeOptimizer, moment: int, options: Method
) -> None:
    training = Training(make, options)
    training.run(moment)
    state = saved(training)
    other, fresh = Training(make, options), Training(make, None)
    for run in (other, fresh):
        load(run, state, accelerator=False)
    accelerate(fresh.optimizer, options)
    assert torch.equal(other.run(12), fresh.run(12))
    assert other.accelerator.stats.steps == 12


@optimizers
@variants
def test_optimizer_state_keeps_its_keys_and_sizes(make: MakeOptimizer, options: Method) -> None:
    accelerated, plain = Training(make, options), Training(make, None)
    accelerated.run(9)
    plain.run(9)
    mine, others = accelerated.optimizer.state_dict(), plain.optimizer.state_dict()
    assert mine["param_groups"] == others["param_groups"]
    assert mine["state"].keys() == others["state"].keys()
    for index, entry in others["state"].items():
        shapes = {name: getattr(value, "shape", None) for name, value in entry.items()}
        assert {x: getattr(y, "shape", None) for x, y in mine["state"][index].items()} == shapes
    assert accelerated.model.state_dict().keys() == plain.model.state_dict().keys()


@optimizers
@methods
def test_optimizer_states_are_exchanged_with_plain_optimizers(
    make: MakeOptimizer, options: Method
) -> None:
    accelerated = Training(make, options)
    accelerated.run(9)
    state = saved(accelerated)
    plain, never = Training(make, None), Training(make, None)
    for run in (plain, never):
        load(run, state, accelerator=False)
    # accelerated, but it never extrapolations
    never_due = {"wait_iterations": 100} if isinstance(options, Anderson) else {"block_length": 100}
    accelerate(plain.optimizer, replace(options, **never_due))
    assert torch.equal(plain.run(9), never.run(9))


@methods
def test_a_rate_schedule_is_resumed_with_its_pairs(options: Method) -> None:
    def scheduled() -> tuple[Training, StepLR]:
        training = Training(sgd, options)
        return training, StepLR(training.optimizer, step_size=4, gamma=0.7)

    def go(training: Training, scheduler: StepLR, steps: int) -> torch.Tensor:
        return training.run(steps, lambda: (training.step(), scheduler.step()))

    training, scheduler = scheduled()
    go(training, scheduler, 9)
    state, schedule = saved(training), scheduler.state_dict()
    expected = go(training, scheduler, 9)
    other, scheduler = scheduled()
    load(other, state)
    scheduler.load_state_dict(schedule)
    assert torch.equal(go(other, scheduler, 9), expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (replace(JUMPY, history_depth=4), "options"),
        (AVERAGED, "options"),
        (replace(JUMPY, scope="tensor"), "options"),
        (NEWTON, "options"),
    ],
)
def test_a_state_of_other_options_is_refused(options: Method, named: str) -> None:
    training = Training()
    training.run(6)
    state = saved(training)["accelerator"]
    other = Training(sgd, options)
    other.run(3)
    before = other.accelerator.state_dict()
    with pytest.raises(ValueError, match=f"saved with {named} = "):
        other.accelerator.load_state_dict(state)
    assert same(other.accelerator.state_dict(), before)


@pytest.mark.parametrize(("size", "dtype"), [(200, torch.float32), (18, torch.float64)])
@methods
def test_a_state_of_other_parameters_is_refused(
    size: int, dtype: torch.dtype, options: Method
) -> None:
    training = Training(sgd, options)
    training.run(6)
    optimizer = accelerate(SGD([nn.Parameter(torch.zeros(size, dtype=dtype))], lr=0.1), options)
    with pytest.raises(ValueError, match="saved with"):
        get_accelerator(optimizer).load_state_dict(saved(training)["accelerator"])
