"""The paper's problems: solutions, derivatives, points, and the commands."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_demo import admissions_file
from torch import Tensor, nn

from aadl_ext.__main__ import main
from aadl_ext.demo.data import load
from aadl_ext.paper import admissions, burgers2d, burgers100d, pinn


def nested(u: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and Laplacian in space by nested automatic differentiation."""
    (slopes,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    laplacian = torch.zeros_like(u)
    for a in range(points.shape[1] - 1):
        if slopes.requires_grad:
            (second,) = torch.autograd.grad(
                slopes[:, a].sum(), points, create_graph=True, allow_unused=True
            )
            laplacian = laplacian + (0 if second is None else second[:, a])
    return u, slopes.T, laplacian


@pytest.mark.parametrize("unit", pinn.UNITS)
@pytest.mark.parametrize("dimensions", [1, 2, 4])
def test_forward_laplacian_is_that_of_nested_differentiation(unit: str, dimensions: int) -> None:
    torch.manual_seed(dimensions)
    model = pinn.network(dimensions + 1, 6, 3, unit).double()
    points = torch.randn(7, dimensions + 1, dtype=torch.float64, requires_grad=True)
    expected = nested(model(points)[:, 0], points)
    found = pinn.forward_laplacian(model, points.detach())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert (found[2].abs().max() > 1e-3) == (unit == "tanh")

    def gradients(parts: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        u, slopes, laplacian = parts
        value = (slopes[-1] + u * slopes[:-1].sum(dim=0) - laplacian).square().mean()
        return list(torch.autograd.grad(value, list(model.parameters()), materialize_grads=True))

    for one, other in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_a_layer_without_a_rule_is_refused() -> None:
    with pytest.raises(TypeError, match="a Sigmoid layer; Linear, Tanh and ReLU are known"):
        pinn.forward_laplacian(nn.Sequential(nn.Linear(2, 3), nn.Sigmoid()), torch.zeros(1, 2))


def test_the_solution_in_two_dimensions_solves_its_equation() -> None:
    x, t = (grid.ravel() for grid in np.meshgrid(np.linspace(-0.95, 0.95, 20), [0.1, 0.5, 0.9]))
    nu, h = 0.1 / math.pi, 1e-4  # smooth enough for difference quotients

    def u(dx: float = 0, dt: float = 0) -> np.ndarray:
        return burgers2d.solution(x + dx, t + dt, nu)

    slope = (u(h) - u(-h)) / (2 * h)
    bend = (u(h) - 2 * u() + u(-h)) / h**2
    np.testing.assert_allclose((u(dt=h) - u(dt=-h)) / (2 * h), nu * bend - u() * slope, atol=3e-6)
    assert np.abs(u() * slope).max() > 0.5


def test_the_solution_in_two_dimensions_has_its_initial_values_and_walls() -> None:
    x = np.linspace(-1, 1, 33)
    np.testing.assert_allclose(burgers2d.solution(x, 0 * x), -np.sin(np.pi * x), atol=1e-14)
    for side in (-1.0, 1.0):
        walls = burgers2d.solution(np.full(9, side), np.linspace(0, 1, 9))
        np.testing.assert_allclose(walls, 0, atol=1e-12)
    # Basdevant et al., 1986: the largest slope, at t = 1.6037 / pi, is 152.00516
    slope = (burgers2d.solution(*np.array([[1e-7], [1.6037 / np.pi]])) / 1e-7).item()
    assert slope == pytest.approx(-152.00516, rel=1e-4)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_the_forcing_term_is_the_operator_on_the_exact_solution(dimensions: int) -> None:
    torch.manual_seed(0)
    points = (1.8 * torch.rand(9, dimensions + 1, dtype=torch.float64) - 0.9).requires_grad_()
    u, slopes, laplacian = nested(burgers100d.solution(points), points)
    expected = slopes[-1] + u * slopes[:-1].sum(dim=0) - 0.3 * laplacian
    torch.testing.assert_close(burgers100d.forcing(points.detach(), 0.3), expected.detach())


@pytest.mark.parametrize("dimensions", [1, 5])
def test_points_lie_where_they_belong(dimensions: int) -> None:
    made = burgers100d.sample(dimensions, 40, 30, torch.Generator().manual_seed(0))
    again = burgers100d.sample(dimensions, 40, 30, torch.Generator().manual_seed(0))
    assert torch.equal(made.known, again.known)
    begin, edge = made.known.split(20)
    assert (begin[:, -1] == 0).all()
    assert (begin[:, :-1].abs() < 1).all()
    assert ((edge[:, :-1].abs() == 1).sum(dim=1) == 1).all()
    assert len(edge[edge[:, :-1].sum(dim=1) > 0]) not in (0, 20)
    assert (made.values[20:] == 0).all()
    torch.testing.assert_close(made.values[:20], (begin[:, :-1] ** 2 - 1).prod(dim=1))
    assert made.inside.shape == (30, dimensions + 1)
    assert (made.inside[:, -1] > 0).all()


def test_points_of_the_plane_carry_the_initial_sine() -> None:
    made = burgers2d.sample(40, 30, torch.Generator().manual_seed(0))
    begin, edge = made.known.split(20)
    torch.testing.assert_close(made.values[:20], -torch.sin(math.pi * begin[:, 0]))
    assert (begin[:, 1] == 0).all()
    assert sorted(set(edge[:, 0].tolist())) == [-1, 1]
    assert (made.values[20:] == 0).all()
    assert (made.inside[:, 0].abs() < 1).all()


@pytest.mark.parametrize(("resample", "batches"), [(0, 1), (2, 3), (10, 1)])
def test_batches_change_as_often_as_asked(resample: int, batches: int) -> None:
    made = burgers2d.experiment("relu", 5, torch.device("cpu"), resample)
    training = made.start(made.methods["Adam"], 0)
    seen = set()
    for _ in range(5):
        training.advance()
        seen.add(float(training.batch.inside.sum()))
    assert len(seen) == batches
    assert len(training.batch.inside) == 3200
    assert len(training.validation.inside) == 800


@pytest.mark.parametrize("module", ["burgers2d", "burgers100d"])
def test_methods_start_from_the_same_weights_and_points(module: str) -> None:
    if module == "burgers2d":
        made = burgers2d.experiment("tanh", 1, torch.device("cpu"), 100)
    else:
        made = burgers100d.experiment(3, 0.1, 1, torch.device("cpu"), 100)
    trainings = [made.start(options, 4) for options in made.methods.values()]
    for training in trainings:
        training.advance()  # none of them can have extrapolated or averaged yet
    first, *others = [training.measure() for training in trainings]
    assert all(other == first for other in others)


def test_the_command_trains_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seeds", "2", "--iterations", "3", "--out", str(tmp_path)]
    assert main(["reproduce", "burgers100d", "--dimensions", "4", *arguments]) == 0
    content = json.loads((tmp_path / "burgers5d.json").read_text())
    assert content["settings"]["points"]["inside"] == 400
    assert len(content["runs"]) == 6
    table = capsys.readouterr().out
    assert all(method in table for method in ("Adam + AADL + average", "validation MSE"))
    assert (tmp_path / "burgers5d.png").exists()


def test_the_command_reports_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seeds", "1", "--iterations", "3", "--json", "--out", str(tmp_path)]
    assert main(["reproduce", "burgers100d", "--dimensions", "4", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plot"] == str(tmp_path / "burgers5d.png")
    assert [row["method"] for row in found["rows"]] == [
        "Adam",
        "Adam + AADL",
        "Adam + AADL + average",
    ]
    base = found["rows"][0]
    assert base["ratio"] == [1.0, 1.0, 1.0]
    assert base["final"]["validation MSE"][0] > 0


def test_other_settings_are_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reproduce", "burgers100d", "--dimensions", "2", "--seeds", "1", "--out"]
    assert main([*arguments, str(tmp_path), "--iterations", "1"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, str(tmp_path), "--iterations", "2"])
    assert "give --out another folder" in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for module in [name for name in sys.modules if name.startswith("aadl_ext.paper")]:
        monkeypatch.delitem(sys.modules, module)
    assert main(["reproduce", "admissions"]) == 2
    assert "this needs tqdm" in capsys.readouterr().err


def test_admissions_are_trained_as_in_the_paper(tmp_path: Path) -> None:
    file = ["--data", str(admissions_file())]
    arguments = [*file, "--seeds", "1", "--iterations", "2", "--out", str(tmp_path)]
    assert main(["reproduce", "admissions", *arguments]) == 0
    content = json.loads((tmp_path / "admissions.json").read_text())
    assert content["settings"]["data"] == "graduate admissions"
    assert content["settings"]["columns"] == 7
    assert [run["stats"].get("steps", 0) for run in content["runs"]] == [0, 20, 20]
    assert content["runs"][2]["stats"]["averaged"] > 0


def test_nine_columns_hold_the_target_among_the_inputs() -> None:
    file = admissions_file()
    table = admissions.all_columns(load(file), file)
    np.testing.assert_array_equal(table.features[:, -1], table.target)
    np.testing.assert_array_equal(table.features[:, 0], np.arange(1, 501))
