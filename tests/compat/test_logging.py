"""What goes wrong is logged, not too often; counts are shown as a table and as flat numbers."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from training import (
    JUMPY,
    NEWTON,
    Method,
    Training,
    adam,
    methods,
    momentum,
    plain_twin,
    sgd,
    variants,
)

from aadl_ext import Stats, accelerate, reset_acceleration_history

STEPS = 60


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aadl_ext")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert {x.name for x in caplog.records} <= {"aadl_ext"}
    return [x.getMessage() for x in caplog.records]


def numbers(caplog: pytest.LogCaptureFixture, beginning: str) -> list[int]:
    """The counts of the lines that begin so."""
    found = [x for x in lines(caplog) if x.startswith(beginning + ":")]
    return [int(x.removeprefix(beginning + ": ").split()[0]) for x in found]


def powers(count: int) -> list[int]:
    return [1 << i for i in range(count.bit_length())]


@variants
def test_rejections_are_told_at_every_power_of_two(
    options: Method, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(momentum, options)
    for _ in range(STEPS):
        training.step()
        stats = Stats.read(
            training.accelerator.iteration.verdicts, {}, training.accelerator.iteration.k
        )
        for cause, count in stats.rejected.items():
            told = numbers(caplog, f"an extrapolation was rejected ({cause})")
            assert told == powers(count)
    assert stats.rejected["residual"] > 4
    told = numbers(caplog, "the history starts anew (rejections)")
    assert told == powers(stats.restarts["rejections"])


def test_a_line_names_the_step(caplog: pytest.LogCaptureFixture) -> None:
    training = Training(sgd, NEWTON)
    while not caplog.records:
        training.step()
    steps = training.accelerator.stats.steps
    expected = f"an extrapolation was rejected (residual): 1 so far, at step {steps}"
    assert lines(caplog) == [expected]


@methods
def test_moves_from_outside_are_told(options: Method, caplog: pytest.LogCaptureFixture) -> None:
    training = Training(sgd, options)
    for _ in range(STEPS):
        training.step()
        with torch.no_grad():
            training.parameters[0].mul_(0.99)
    stats = training.accelerator.stats
    dropped = numbers(caplog, "an extrapolation was dropped without a verdict")
    assert dropped == powers(stats.dropped)
    moved = numbers(caplog, "something else moved the parameters (moved_outside)")
    assert moved == powers(stats.restarts["moved_outside"])
    assert stats.dropped > 4


@methods
def test_skipped_steps_and_restarts_that_the_host_knows_are_told(
    options: Method, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(sgd, options)
    training.run(2)
    (group,) = training.optimizer.param_groups
    rate, group["lr"] = group["lr"], 0.0
    training.run(5)
    group["lr"] = rate
    training.closure()
    training.parameters[0].grad.fill_(torch.nan)
    training.optimizer.step()
    reset_acceleration_history(training.optimizer)
    assert numbers(caplog, "a step was left out of the history (zero_lr)") == [1, 2, 4]
    training.run(1)
    assert numbers(caplog, "the history starts anew (request)") == [1]
    if options is NEWTON:
        assert numbers(caplog, "a step was left out of the history (nonfinite)")[0] == 1


@methods
def test_where_reading_waits_it_is_told_when_stats_are_read(
    options: Method, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aadl_ext.stats.seen", lambda counts: False)
    training = Training(momentum, options)
    (group,) = training.optimizer.param_groups
    training.run(30)
    group["lr"] = 0.0
    training.run(1)
    assert lines(caplog) == ["a step was left out of the history (zero_lr): 1 so far, at step 30"]
    rejected = training.accelerator.stats.rejected["residual"]
    told = numbers(caplog, "an extrapolation was rejected (residual)")
    assert told == [rejected]
    assert training.accelerator.stats.rejected["residual"] == rejected > 1
    assert numbers(caplog, "an extrapolation was rejected (residual)") == told


@methods
def test_nothing_is_told_twice_over_a_restart(
    options: Method, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(momentum, options)
    training.run(40)
    state = training.accelerator.state_dict()
    other = plain_twin(training, momentum)
    accelerate(other.optimizer, options)
    other.accelerator.load_state_dict(state)
    caplog.clear()
    rejected = other.accelerator.stats.rejected["residual"]
    assert caplog.records == []
    other.run(1)
    if other.accelerator.stats.rejected["residual"] == rejected:
        assert caplog.records == []


RESUMED = "accelerator without what it had learned"


def resumed(caplog: pytest.LogCaptureFixture) -> int:
    return sum(RESUMED in x for x in lines(caplog))


@methods
def test_a_run_that_goes_on_without_its_history_says_so_once(
    options: Method, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(adam, options)
    training.run(5)
    other = Training(adam, options)
    other.optimizer.load_state_dict(training.optimizer.state_dict())
    assert resumed(caplog) == 0
    other.run(4)
    assert resumed(caplog) == 1
    (line,) = (x for x in lines(caplog) if RESUMED in x)
    assert "get_accelerator(optimizer).state_dict()" in line


@pytest.mark.parametrize("history_first", [False, True])
def test_with_its_history_it_does_not(
    history_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(adam, JUMPY)
    training.run(5)
    other = Training(adam, JUMPY)
    loads = [
        lambda: other.optimizer.load_state_dict(training.optimizer.state_dict()),
        lambda: other.accelerator.load_state_dict(training.accelerator.state_dict()),
    ]
    for load in reversed(loads) if history_first else loads:
        load()
    other.run(4)
    assert resumed(caplog) == 0


def test_an_optimizer_with_a_past_is_accelerated_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    training = Training(adam, None)
    training.run(3)
    accelerate(training.optimizer, JUMPY)
    training.run(3)
    assert resumed(caplog) == 1


def test_a_load_before_there_is_any_state_is_no_restart(caplog: pytest.LogCaptureFixture) -> None:
    training = Training(adam, JUMPY)
    training.optimizer.load_state_dict(training.optimizer.state_dict())  # as HF Accelerate does
    training.run(3)
    assert resumed(caplog) == 0


# ---- stats, shown ------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["all", "tensor"])
@methods
def test_stats_are_flat_numbers_for_loggers(options: Method, scope: str) -> None:
    training = Training(sgd, replace(options, scope=scope))
    assert dict(training.accelerator.stats)["steps"] == 0
    training.run(STEPS)
    stats = training.accelerator.stats
    flat: dict[str, Any] = dict(stats)
    assert all(type(x) in (int, float) for x in flat.values())
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat
    assert flat["steps"] == STEPS
    assert flat["rejected/residual"] == stats.rejected["residual"] > 0
    assert ("predicted_reduction" in flat) == (scope == "all")


def test_stats_are_shown_as_a_table() -> None:
    training = Training(sgd, JUMPY)
    training.run(STEPS)
    stats = training.accelerator.stats
    text, html = str(stats), stats._repr_html_()
    assert text.splitlines()[0].split() == ["steps", str(STEPS)]
    assert len(text.splitlines()) == html.count("<tr>") == len(dict(stats))
    assert html.startswith("<table>")
    assert f"<td>rejected/residual</td><td>{stats.rejected['residual']}</td>" in html
