"""The accelerator's state has one structure at all times: some loaders fill what they ask for."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import SGD
from training import AVERAGED, JUMPY, NEWTON, SKETCHED, Method, Training, adam, same

import aadl_ext
from aadl_ext import Storage, accelerate, get_accelerator

SETTINGS: dict[str, Method] = {
    "anderson": JUMPY,
    "anderson, qr": replace(JUMPY, solver="tsqr"),
    "average": AVERAGED,
    "averages alone": replace(AVERAGED, history_depth=0),
    "narrow rows": replace(JUMPY, scope="tensor", storage=Storage(torch.bfloat16)),
    "newton": NEWTON,
    "newton, no noise": replace(NEWTON, noise_samples=0),
    "newton, adapted blocks": replace(NEWTON, adaptive_blocks=True),
    "newton, sketched": SKETCHED,
}
settings = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
STEPS = 12

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def structure(value: Any) -> Any:
    """Names, lengths, shapes and types."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, dict):
        return {name: structure(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [structure(x) for x in value]
    return type(value)


@settings
def test_a_state_has_one_structure_at_all_times(options: Method) -> None:
    training = Training(adam, options)
    accelerator = training.accelerator
    first = structure(accelerator.state_dict())
    pending = set()
    for k in range(STEPS):
        training.step()
        pending.add(accelerator.pending)
        assert structure(accelerator.state_dict()) == first
        with aadl_ext.settled(training.optimizer):
            assert structure(accelerator.state_dict()) == first
        if k == 8:  # these count, and the second begins the history anew
            for rate in (0.0, 0.01):
                training.optimizer.param_groups[0]["lr"] = rate
                training.step()
            accelerator.reset()
            assert structure(accelerator.state_dict()) == first
    assert len(pending) == 2 or not options.history_depth


def test_a_rate_of_zero_in_one_group_from_the_start_is_no_change_of_rates() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = accelerate(SGD([{"params": [first], "lr": 0.0}, {"params": [second]}], lr=0.1))
    for _ in range(2):
        (first + second).sum().backward()
        optimizer.step()
    assert not get_accelerator(optimizer).stats.restarts


@settings
def test_a_loaded_state_is_not_changed_by_the_training_that_goes_on(options: Method) -> None:
    training = Training(adam, options)
    training.run(7)
    saved = training.accelerator.state_dict()
    kept = copy.deepcopy(saved)
    other = Training(adam, options)
    other.accelerator.load_state_dict(saved)
    other.run(7)
    assert same(saved, kept)


@settings
@pytest.mark.parametrize("settled", [False, True], ids=["as it is", "settled"])
def test_a_distributed_checkpoint_resumes_bit_for_bit(
    tmp_path: Path, options: Method, settled: bool
) -> None:
    training = Training(adam, options)
    assert isinstance(training.accelerator, Stateful)
    moments = set()

    def save(k: int) -> None:
        state = {
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "accelerator": training.accelerator,
        }
        dcp.save(state, checkpoint_id=tmp_path / str(k), no_dist=True)

    points = []
    for k in range(STEPS):
        training.step()
        points.append(training.point())
        if k in range(4, 9):
            moments.add(training.accelerator.pending)
            if settled:
                with aadl_ext.settled(training.optimizer):
                    save(k)
            else:
                save(k)
    assert len(moments) == 2 or not options.history_depth

    for k in range(4, 9):
        other = Training(adam, options)
        other.step()  # makes the optimizer's state, which is filled
        state = {
            "model": other.model.state_dict(),
            "optimizer": other.optimizer.state_dict(),
            "accelerator": other.accelerator,
        }
        # The accelerator last: it may have to move the parameters on from where they were saved.
        dcp.load(state, checkpoint_id=tmp_path / str(k), no_dist=True)
        other.optimizer.load_state_dict(state["optimizer"])
        assert torch.equal(other.point(), points[k])
        assert torch.equal(other.run(STEPS - k - 1), torch.stack(points[k + 1 :]))
