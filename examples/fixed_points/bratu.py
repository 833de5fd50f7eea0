"""Bratu's equation, -laplace u = c exp(u) on the unit square, for six c at once, by Picard steps.

A step solves Poisson's equation for the right side of the last u, by sine transforms. There is a
solution up to c = 6.808 (Glowinski, Keller and Reinhart 1985); the plain steps need ever more
evaluations as c comes near it. Beyond it there is none, which the reason tells.

    python examples/fixed_points/bratu.py
"""

from __future__ import annotations

import numpy as np
from picture import draw
from scipy.fft import dstn, idstn

from aadl_ext import AndersonMixing, fixed_point

SIZE = 63  # points in each direction
CONSTANTS = np.array([1.0, 3.0, 5.0, 6.5, 6.8, 7.2])

angle = np.arange(1, SIZE + 1) * np.pi / (2 * (SIZE + 1))
eigenvalues = 4 * (SIZE + 1) ** 2 * np.sin(angle) ** 2
LAPLACE = eigenvalues[:, None] + eigenvalues[None, :]


def solve(method: AndersonMixing) -> tuple[np.ndarray, list[np.ndarray]]:
    """Solutions of all constants, and residuals of each evaluation."""
    residuals: list[np.ndarray] = []

    def picard(u: np.ndarray) -> np.ndarray:  # [constants, SIZE, SIZE]
        with np.errstate(over="ignore", invalid="ignore"):
            right = CONSTANTS[:, None, None] * np.exp(u)
            new = idstn(dstn(right, type=1, axes=(1, 2)) / LAPLACE, type=1, axes=(1, 2))
            residuals.append(np.linalg.norm(new - u, axis=(1, 2)) / SIZE)
        return new

    start = np.zeros((len(CONSTANTS), SIZE, SIZE))
    found = fixed_point(picard, start, method=method, tol=1e-9, abs_tol=0.0, max_steps=2000)
    print(method)
    for c, u, steps, reason in zip(
        CONSTANTS, found.solution, found.steps, found.reason, strict=True
    ):
        print(f"  c = {c:3.1f}: max u = {u.max():.6f}, {steps:4d} evaluations, {reason}")
    return found.solution, residuals


def main() -> None:
    """Plain and accelerated."""
    curves = {}
    for label, method in {
        "plain": AndersonMixing(history_depth=0),
        "Anderson, m = 5": AndersonMixing(history_depth=5),
    }.items():
        _, residuals = solve(method)
        curves |= {f"{label}, c = {CONSTANTS[s]}": [r[s] for r in residuals[:150]] for s in (2, 4)}
    print(draw("bratu", "Bratu's equation, 63 x 63 points", curves))


if __name__ == "__main__":
    main()
