"""A deep equilibrium network on scikit-learn's digits, beside TorchDEQ where that is installed.

The hidden state of an image is the fixed point of z = tanh(W z + U x + b), |W| < 1; gradients
are implicit. Both libraries train the same network from the same weights on the same batches, to
the same tolerance, TorchDEQ with its Anderson solver both ways.

    python examples/fixed_points/deq_digits.py [epochs]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from picture import draw
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm

from aadl_ext import AndersonMixing, fixed_point

HIDDEN, BATCH, TOLERANCE, MOST = 256, 64, 1e-4, 60
Solve = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


class Equilibrium(nn.Module):
    """Logits at the fixed point of a layer."""

    def __init__(self, solve: Solve) -> None:
        super().__init__()
        self.solve, self.evaluations = solve, 0
        self.U, self.out = nn.Linear(64, HIDDEN), nn.Linear(HIDDEN, 10)
        self.W = spectral_norm(nn.Linear(HIDDEN, HIDDEN, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 64]`` to ``[B, 10]``."""
        injected, W = self.U(x), 0.95 * self.W.weight  # normalised here, once

        def layer(z: Tensor) -> Tensor:
            self.evaluations += 1
            return torch.tanh(z @ W.T + injected)

        return self.out(self.solve(layer, torch.zeros_like(injected)))


def ours(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """With the package whose example it is."""
    method = AndersonMixing(history_depth=6)
    return fixed_point(f, z, method=method, tol=TOLERANCE, max_steps=MOST).solution


def torchdeq() -> Solve:
    """TorchDEQ with the same depth and tolerance."""
    from torchdeq import get_deq

    options = {"f_max_iter": MOST, "f_tol": TOLERANCE, "b_max_iter": MOST, "b_tol": TOLERANCE}
    deq = get_deq(
        f_solver="anderson", b_solver="anderson", ift=True, f_stop_mode="rel", b_stop_mode="rel",
        **options,
    )  # fmt: skip
    return lambda f, z: deq(f, z, solver_kwargs={"m": 6})[0][-1]


def train(solve: Solve, epochs: int) -> list[float]:
    """Training losses; prints accuracy, time and evaluations."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    test, training = order[:400], order[400:]
    model = Equilibrium(solve)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses, seconds = [], []
    for _ in range(epochs):
        for batch in training[torch.randperm(len(training))].split(BATCH):
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
            losses.append(loss.item())
    evaluations = model.evaluations / len(losses)
    with torch.no_grad():
        accuracy = float((model(x[test]).argmax(dim=1) == y[test]).float().mean())
    median = 1e3 * sorted(seconds)[len(seconds) // 2]
    print(f"accuracy {accuracy:.4f}, {median:.1f} ms a step, {evaluations:.1f} evaluations of f")
    return losses


def main() -> None:
    """Train with both."""
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print("aadl_ext: ", end="", flush=True)
    curves = {"aadl_ext": train(ours, epochs)}
    try:
        solve = torchdeq()
    except ImportError as error:
        print(f"TorchDEQ is left out: {error}")
    else:
        print("TorchDEQ: ", end="", flush=True)
        curves["TorchDEQ"] = train(solve, epochs)
    print(draw("deq_digits", "Equilibrium network on digits", curves, x="step", y="loss"))


if __name__ == "__main__":
    main()
