"""Burgers' equation in 99 space dimensions and time (the paper's Figure 3): a PINN, 4 x 50.

The exact solution is u = exp(-t) (x1^2 - 1) ... (xs^2 - 1) (Eq. 22), the forcing term is what the
equation makes of it. 400 known and 4,000 inner points, 80 % for training; Adam 0.05, times 0.5
every 1,000 iterations; p = 1, q = 1, m = 20, beta = 1, epsilon = 0.1.

The Laplacian is the cost. ``pinn.forward_laplacian`` carries the 100 first derivatives and one sum
of second derivatives along: 102 forward passes for the points inside, about three times that with
the gradient, 1.1 GB at 3,200 points. So a CPU takes a tenth of the points unless told otherwise.

In 99 dimensions the product is nearly zero where points are drawn at random (of 4,000 the median
is 4e-27, the largest 3e-16), and so is the forcing: what is measured is how fast a network learns
zero.
``--dimensions`` gives a problem with less room.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import harness, pinn, readings

ACCELERATION = {"frequency": 1, "store_each_nth": 1, "history_depth": 20, "relaxation": 1.0}
PROBES = 1000  # points where the error is taken


def solution(points: Tensor) -> Tensor:
    """Eq. 22 at points [n, s + 1]."""
    return torch.exp(-points[:, -1]) * (points[:, :-1].square() - 1).prod(dim=1)


def forcing(points: Tensor, viscosity: float = pinn.VISCOSITY) -> Tensor:
    """What the operator of Eq. 18 makes of the solution, at points inside.

    With u = exp(-t) prod (x_a^2 - 1): u_t = -u, u_xa = 2 x_a u / (x_a^2 - 1),
    u_xaxa = 2 u / (x_a^2 - 1).
    """
    u, x = solution(points), points[:, :-1]
    inverse = 1 / (x.square() - 1)
    return u * (-1 + u * (2 * x * inverse).sum(dim=1) - viscosity * (2 * inverse).sum(dim=1))


def sample(dimensions: int, known: int, inside: int, generator: torch.Generator) -> pinn.Points:
    """Half of the known points at t = 0, half on a random face of the cube; all uniform."""

    def uniform(count: int) -> Tensor:
        cube = 2 * torch.rand(count, dimensions, generator=generator, dtype=torch.float64) - 1
        times = torch.rand(count, 1, generator=generator, dtype=torch.float64)
        return torch.cat((cube, times), dim=1)

    begin, edge, points = uniform(known // 2), uniform(known - known // 2), uniform(inside)
    begin[:, -1] = 0
    face = torch.randint(dimensions, (len(edge), 1), generator=generator)
    edge.scatter_(1, face, edge.gather(1, face).sign())
    both = torch.cat((begin, edge))
    return pinn.Points(both, solution(both), points, forcing(points))


class RootMeanSquareError:
    """Root mean square of u - exact at random points; a relative error would divide by 1e-20."""

    def __init__(self, dimensions: int, device: torch.device) -> None:
        points = sample(dimensions, 0, PROBES, torch.Generator().manual_seed(0)).inside
        self.points = points.to(device, torch.float32)
        self.exact = solution(points).to(device, torch.float32)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Under the name that it is watched by."""
        return {"rms error": float((model(self.points)[:, 0] - self.exact).square().mean().sqrt())}


def experiment(
    dimensions: int, scale: float, iterations: int, device: torch.device, resample: int
) -> harness.Experiment:
    """With ``dimensions`` in space and ``scale`` times the paper's points."""
    problem = pinn.Problem(
        sample=lambda *sizes: sample(dimensions, *sizes),
        error=RootMeanSquareError(dimensions, device),
        inputs=dimensions + 1,
        width=50,
        depth=4,
        unit="tanh",
        rate=0.05,
        drop=(1000, 0.5),
        known=round(400 * scale),
        inside=round(4000 * scale),
        resample=resample,
    )
    title = f"{dimensions + 1}-d Burgers" + (f", {scale:g} of the points" if scale != 1 else "")
    return pinn.experiment(
        f"burgers{dimensions + 1}d",
        title,
        iterations,
        ACCELERATION,
        problem,
        device,
    )


def main() -> None:
    """Run, print, draw."""
    parser = harness.parser(__doc__ or "", iterations=3000, seeds=20)
    add = parser.add_argument
    add("--dimensions", type=int, default=99, help="of space (99)")
    add("--scale", type=float, help="share of the paper's points (1; on a CPU 0.1)")
    add("--resample", type=int, default=100, help="iterations between two batches (100; 0: never)")
    readings.add_options(parser)
    options = parser.parse_args()
    scale = options.scale or (0.1 if options.device.type == "cpu" else 1.0)
    made = experiment(
        options.dimensions,
        scale,
        options.iterations,
        options.device,
        options.resample,
    )
    readings.run(made, options, ACCELERATION)
