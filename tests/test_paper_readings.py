"""What the paper's text may mean: each reading trains as it says, and is filed where it belongs."""

import json
import sys
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import nn, optim

from aadl_ext import Averaging, get_accelerator
from aadl_ext.__main__ import main
from aadl_ext.paper import admissions, burgers2d, burgers100d, harness, readings

CPU = torch.device("cpu")
RESULTS = Path(__file__).resolve().parents[1] / "research" / "results" / "paper"
OTHERS = readings.others(**admissions.ACCELERATION)


def trained(method: Any, iterations: int) -> Any:
    """A small network after some steps."""
    start = burgers100d.experiment(2, 0.02, iterations, CPU, 0).start
    assert start is not None
    training = start(method, 0)
    for _ in range(iterations):
        training.advance()
    return training


@pytest.mark.parametrize("name", OTHERS)
def test_each_reading_trains_as_it_says(name: str) -> None:
    accelerator = get_accelerator(trained(OTHERS[name], 12).optimizer)
    stats, options = accelerator.stats, accelerator.options
    assert stats.steps == 12
    assert (stats.extrapolations > 0) == ("no acceleration" not in name)
    assert (stats.averaged > 0) == name.startswith("average")
    assert (options.mixing == "anderson") == ("classic" in name)
    window = 2 if "t = 2" in name else 10 if "t = 10" in name else 5
    assert options.average == (Averaging(window, 0.1) if name.startswith("average") else None)
    assert ("loss" in options.tests) == ("loss" in name)


def test_without_damping_there_is_no_other_damping() -> None:
    assert OTHERS.keys() - readings.others(**burgers2d.ACCELERATION).keys() == {
        name for name in OTHERS if "classic" in name
    }
    for relaxation, same in ((1.0, True), (0.1, False)):
        options = {**burgers100d.ACCELERATION, **readings.AVERAGING}
        options |= {"relaxation": relaxation, "safeguard": None}
        one, other = (
            trained({**options, "mixing": mixing}, 3).measure()["validation MSE"]
            for mixing in ("paper", "anderson")
        )
        assert (one == pytest.approx(other, rel=1e-3)) == same


def test_a_method_may_be_another_learning_rate_or_nothing() -> None:
    for method, rate in ((None, 1.0), (readings.CONTROL["Adam, smaller steps"], 1 / 11)):
        optimizer = optim.SGD([nn.Parameter(torch.ones(3))], lr=1.0)
        readings.accelerate(optimizer, method)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        assert harness.counts(optimizer) == {}


def test_aadl_gets_its_own_arguments_and_a_closure_for_its_safeguard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def accelerate(optimizer: optim.Optimizer, **arguments: Any) -> None:
        own_step = optimizer.step

        def step(_: optim.Optimizer, closure: Any = None) -> None:
            seen.append((arguments, closure))
            own_step(closure)

        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]

    package = ModuleType("AADL")
    monkeypatch.setattr(package, "accelerate", accelerate, raising=False)
    monkeypatch.setitem(sys.modules, "AADL", package)
    for name, method in readings.aadl_code(**admissions.ACCELERATION).items():
        training = trained(method, 1)
        arguments, closure = seen.pop()
        assert arguments == {
            **admissions.ACCELERATION,
            "acceleration_type": "anderson",
            "average": "average" in name and "no average" not in name,
        }
        assert (closure is not None) == ("safeguard" in name)
        assert training.measure()["rms error"] != trained(None, 0).measure()["rms error"]


def test_aadl_itself_is_asked_for_by_name_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "AADL", None)
    method = readings.aadl_code(**admissions.ACCELERATION)["AADL's code, average"]
    with pytest.raises(harness.SettingsError, match=r"cannot be imported .* PYTHONPATH"):
        trained(method, 0)


def test_the_command_runs_the_methods_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "burgers100d", "--dimensions", "2", "--scale", "0.02", "--seeds", "1"]
    command += ["--iterations", "2", "--out", str(tmp_path), "--readings", "--methods"]
    assert main([*command, "Adam", "average, t = 2", "Adam, smaller steps"]) == 0
    file = tmp_path / "burgers3d.json"
    names = [run["method"] for run in json.loads(file.read_text())["runs"]]
    assert names == ["Adam", "average, t = 2", "Adam, smaller steps"]
    assert (tmp_path / "burgers3d_readings.png").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main([*command, "average, t = 3"])
    assert "['average, t = 3'] are none of Adam, Adam + AADL" in capsys.readouterr().err


def test_batches_of_another_length_are_filed_apart() -> None:
    names = {burgers2d.experiment("relu", 1, CPU, every).name for every in (0, 10, 100)}
    assert names == {"burgers2d_relu_resample_0", "burgers2d_relu_resample_10", "burgers2d_relu"}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_published_results_can_be_continued(path: Path) -> None:
    results = json.loads(path.read_text())
    modules = {"admissions": admissions, "burgers2d": burgers2d, "burgers100d": burgers100d}
    module = next(module for name, module in modules.items() if name in path.stem)
    known = readings.paper(**module.ACCELERATION) | readings.CONTROL
    known |= readings.others(**module.ACCELERATION) | readings.aadl_code(**module.ACCELERATION)
    for method in {run["method"] for run in results["runs"]}:
        assert results["methods"][method] == known[method]
    if module is burgers2d:
        made = burgers2d.experiment(
            "relu" if "relu" in path.stem else "tanh",
            results["settings"]["iterations"],
            CPU,
            results["settings"]["resample"],
        )
        assert made.name == path.stem
        assert len(harness.load(made, path)["runs"]) == len(results["runs"])
