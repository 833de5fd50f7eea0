"""The paper's experiments: what is kept, what is refused, what is reported."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aadl_ext.paper import harness, reporting
from aadl_ext.paper.harness import Experiment, SettingsError


class Decay:
    """Shrinks by a factor each unit; starts at 1 + seed."""

    def __init__(self, factor: float, seed: int) -> None:
        self.parameter = torch.nn.Parameter(torch.tensor(1.0 + seed))
        self.optimizer = torch.optim.SGD([self.parameter], lr=1.0)
        self.factor = factor

    def advance(self) -> None:
        self.parameter.data *= self.factor

    def measure(self) -> dict[str, float]:
        value = self.parameter.item()
        return {"loss": value, "square": value**2}


class Runs:
    """An experiment that remembers what was started, and may be interrupted there."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.started: list[tuple[float, int]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, factor: float, seed: int) -> Decay:
        if len(self.started) == self.interrupt_at:
            raise KeyboardInterrupt
        self.started.append((factor, seed))
        return Decay(factor, seed)


def experiment(start: Callable[[Any, int], Any], **changes: Any) -> Experiment:
    methods = {"slow": 0.9, "fast": 0.5}
    made = Experiment("decay", "decay of a number", "step", 20, methods, {"device": "cpu"}, start)
    return replace(made, **changes)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither tables nor plots, which take longest."""
    monkeypatch.setattr(harness, "report", lambda *_, **__: None)


def without_times(path: Path) -> Any:
    content = json.loads(path.read_text())
    for run in content["runs"]:
        assert run.pop("seconds") >= 0
    return content


@pytest.mark.usefixtures("quiet")
def test_finished_runs_are_kept_and_only_missing_ones_are_trained(tmp_path: Path) -> None:
    first, second = Runs(), Runs()
    harness.run(experiment(first), seeds=1, out=tmp_path)
    path = harness.run(experiment(second), seeds=3, out=tmp_path)
    assert first.started == [(0.9, 0), (0.5, 0)]
    assert second.started == [(0.9, 1), (0.5, 1), (0.9, 2), (0.5, 2)]
    assert len(json.loads(path.read_text())["runs"]) == 6


@pytest.mark.usefixtures("quiet")
def test_an_interrupted_command_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = harness.run(experiment(Runs()), seeds=2, out=tmp_path / "whole")
    path = harness.run(experiment(Runs(interrupt_at=3)), seeds=2, out=tmp_path / "parts")
    assert len(json.loads(path.read_text())["runs"]) == 3
    rest = Runs()
    harness.run(experiment(rest), seeds=2, out=tmp_path / "parts")
    assert rest.started == [(0.5, 1)]
    assert without_times(path) == without_times(whole)


@pytest.mark.usefixtures("quiet")
def test_an_interruption_before_anything_is_finished_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no run is finished"):
        harness.run(experiment(Runs(interrupt_at=0)), seeds=1, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iterations": 30}, "iterations = 20, but here it is 30"),
        ({"settings": {"device": "cuda"}}, "device = 'cpu', but here it is 'cuda'"),
        ({"settings": {}}, "device = 'cpu', but here it is None"),
        ({"methods": {"slow": 0.8, "fast": 0.5}}, "slow = 0.9, but here it is 0.8"),
    ],
)
def test_runs_of_other_settings_are_not_mixed(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = harness.run(experiment(Runs()), seeds=1, out=tmp_path)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match=reason):
        harness.run(experiment(Runs(), **changes), seeds=2, out=tmp_path)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("quiet")
def test_another_method_joins_those_that_are_finished(tmp_path: Path) -> None:
    harness.run(experiment(Runs()), seeds=1, out=tmp_path)
    more = Runs()
    harness.run(experiment(more, methods={"slow": 0.9, "faster": 0.1}), seeds=1, out=tmp_path)
    assert more.started == [(0.1, 0)]
    content = json.loads((tmp_path / "decay.json").read_text())
    assert [run["method"] for run in content["runs"]] == ["slow", "fast", "faster"]


@pytest.mark.parametrize("iterations", [1, 7, 150, 151, 1500, 2000])
def test_curves_are_thinned_and_end_at_the_end(iterations: int) -> None:
    at = harness.looks(iterations)
    assert len(at) == min(iterations, harness.LOOKS)
    assert at[0] >= 1
    assert at[-1] == iterations
    assert (np.diff(at) > 0).all()


@pytest.mark.usefixtures("quiet")
def test_figures_are_taken_after_the_units_that_are_named(tmp_path: Path) -> None:
    path = harness.run(experiment(Runs(), iterations=300), seeds=2, out=tmp_path)
    content = json.loads(path.read_text())
    run = next(r for r in content["runs"] if (r["method"], r["seed"]) == ("slow", 1))
    expected = 2 * 0.9 ** np.array(content["at"])
    np.testing.assert_allclose(run["curves"]["loss"], expected, rtol=1e-3)
    np.testing.assert_allclose(run["final"]["square"], expected[-1] ** 2, rtol=1e-4)
    assert content["versions"]["torch"] == [torch.__version__]


def test_a_lost_run_is_given_up_counted_and_drawn_as_a_gap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = {"slow": 0.9, "lost": math.inf}
    path = harness.run(experiment(Runs(), methods=methods), seeds=1, out=tmp_path)
    lost = json.loads(path.read_text())["runs"][1]
    assert lost["final"] == {"loss": None, "square": None}
    assert lost["curves"]["loss"] == [None] * 20
    row = next(line for line in capsys.readouterr().out.splitlines() if "│ lost" in line)
    assert "nan" in row
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_ratio_is_the_geometric_mean_over_common_seeds() -> None:
    def run(method: str, seed: int, loss: float | None) -> dict[str, Any]:
        return {"method": method, "seed": seed, "final": {"loss": loss}}

    runs = [run("a", 0, 1.0), run("b", 0, 2.0), run("a", 1, 4.0), run("b", 1, 2.0)]
    results = {"runs": [*runs, run("b", 2, 100.0)]}  # a has no seed 2
    middle, low, high = reporting.ratio(results, "b", "a", "loss")
    assert middle == pytest.approx(1.0)
    half = 12.7062 * math.log(2)  # Student's t of one degree of freedom, standard error log 2
    assert (math.log(low), math.log(high)) == pytest.approx((-half, half), rel=1e-4)
    for bad in (None, 0.0):
        runs = [run("a", 0, 1.0), run("b", 0, bad)]
        assert math.isnan(reporting.ratio({"runs": runs}, "b", "a", "loss")[0])


def test_the_best_on_the_way_is_compared_where_a_run_ends_higher_or_is_lost() -> None:
    def run(method: str, curve: list[float | None]) -> dict[str, Any]:
        return {
            "method": method,
            "seed": 0,
            "final": {"loss": curve[-1]},
            "curves": {"loss": curve},
        }

    runs = [run("a", [3.0, 2.0, 4.0]), run("b", [1.0, 6.0, None]), run("c", [None, None])]
    results = {"runs": runs}
    assert math.isnan(reporting.ratio(results, "b", "a", "loss")[0])
    assert reporting.ratio(results, "b", "a", "loss", reporting.best)[0] == pytest.approx(0.5)
    assert math.isnan(reporting.ratio(results, "c", "a", "loss", reporting.best)[0])
