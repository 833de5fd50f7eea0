"""Burgers' equation in one space dimension and time (the paper's Figure 2): a PINN, 8 x 20.

u_t + u u_x = nu u_xx on (-1, 1) x [0, 1], u(x, 0) = -sin(pi x), u(-1, t) = u(1, t) = 0,
nu = 0.01 / pi. 400 known and 4,000 inner points, 80 % of them for training; Adam 0.01, times 0.2
every 500 iterations; p = 10, q = 5, m = 5, beta = 1, epsilon = 0.1.

The paper takes ReLU, whose second derivative vanishes, so that the network solves the inviscid
equation piecewise linearly; tanh runs beside it. Besides the paper's validation MSE the relative
L2 error against the exact solution is watched.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import harness, pinn, readings

ACCELERATION = {"frequency": 10, "store_each_nth": 5, "history_depth": 5, "relaxation": 1.0}
RESAMPLE = 100  # iterations between two batches, as far as not said otherwise
GRID = (256, 101)  # points in x and t where the error is taken
TITLE = "2-d Burgers, {} network"


def solution(
    x: NDArray[np.float64], t: NDArray[np.float64], viscosity: float = pinn.VISCOSITY
) -> NDArray[np.float64]:
    """The exact solution at points x and t [...], by Cole and Hopf: a quotient of two integrals.

    u(x, t) = -int sin(pi y) F(y) K(x - y) dy / int F(y) K(x - y) dy with
    F(y) = exp(-cos(pi y) / (2 pi nu)) and the heat kernel K, which Gauss-Hermite quadrature takes
    as its weight (Basdevant et al., Computers & Fluids 14, 1986). 100 nodes give what 200 give
    """
    nodes, weights = np.polynomial.hermite.hermgauss(200)
    y = x[..., None] - 2 * np.sqrt(viscosity * t[..., None]) * nodes
    exponents = -np.cos(np.pi * y) / (2 * np.pi * viscosity)
    masses = weights * np.exp(exponents - exponents.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = -(np.sin(np.pi * y) * masses).sum(-1) / masses.sum(-1)
    return result


def sample(known: int, inside: int, generator: torch.Generator) -> pinn.Points:
    """Half of the known points at t = 0, half on the two walls; all uniform."""

    def uniform(count: int) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64)

    first = known // 2
    x, t = 2 * uniform(first) - 1, uniform(known - first)
    walls = 2.0 * (torch.arange(known - first) % 2) - 1
    begin = torch.stack((x, torch.zeros(first)), dim=1)
    edge = torch.stack((walls, t), dim=1)
    values = torch.cat((-torch.sin(math.pi * x), torch.zeros(known - first)))
    points = torch.stack((2 * uniform(inside) - 1, uniform(inside)), dim=1)
    return pinn.Points(torch.cat((begin, edge)), values, points, torch.zeros(inside))


class RelativeError:
    """Relative L2 error over the grid of a network on ``device``."""

    def __init__(self, device: torch.device) -> None:
        x, t = np.meshgrid(*(np.linspace(*ends) for ends in ((-1, 1, GRID[0]), (0, 1, GRID[1]))))
        points = np.stack((x.ravel(), t.ravel()), axis=1)
        self.points = torch.from_numpy(points).to(device, torch.float32)
        exact = solution(points[:, 0], points[:, 1])
        self.exact = torch.from_numpy(exact).to(device, torch.float32)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Under the name that it is watched by."""
        difference = model(self.points)[:, 0] - self.exact
        return {"relative L2 error": float(difference.norm() / self.exact.norm())}


def experiment(
    unit: str, iterations: int, device: torch.device, resample: int = RESAMPLE
) -> harness.Experiment:
    """With hidden units ``tanh`` or ``relu``; results of another ``resample`` go to other files."""
    other = "" if resample == RESAMPLE else f"_resample_{resample}"
    problem = pinn.Problem(
        sample=sample,
        error=RelativeError(device),
        inputs=2,
        width=20,
        depth=8,
        unit=unit,
        rate=0.01,
        drop=(500, 0.2),
        known=400,
        inside=4000,
        resample=resample,
    )
    return pinn.experiment(
        f"burgers2d_{unit}{other}",
        TITLE.format("ReLU" if unit == "relu" else unit) + other.replace("_", " "),
        iterations,
        ACCELERATION,
        problem,
        device,
    )


def main() -> None:
    """Run, print, draw."""
    parser = harness.parser(__doc__ or "", iterations=2000, seeds=20)
    add = parser.add_argument
    add("--activation", nargs="+", choices=pinn.UNITS, default=["tanh", "relu"])
    help_ = f"iterations between two batches ({RESAMPLE}; 0: never)"
    add("--resample", type=int, default=RESAMPLE, help=help_)
    readings.add_options(parser)
    options = parser.parse_args()
    for unit in options.activation:
        made = experiment(unit, options.iterations, options.device, options.resample)
        readings.run(made, options, ACCELERATION)
