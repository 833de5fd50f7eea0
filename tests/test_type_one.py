"""Type I Anderson acceleration against its equations, written down densely."""

from __future__ import annotations

import numpy as np
import torch
from numpy.linalg import norm
from test_fixed_point import affine, contraction, visited

from aadl_ext import AndersonMixing


def test_type_one_solves_its_galerkin_equations() -> None:
    """Each step against W (r - R gamma) = 0 written down densely."""
    A, b = contraction(3, 9, 0.9)
    m = 4
    points, _ = visited(
        affine(A, b), 0 * b, method=AndersonMixing(history_depth=m, kind="I"), tol=1e-9, max_steps=9
    )
    f = affine(A, b)
    for s in range(3):
        x = [p[s].numpy() for p in points]
        r = [(f(p) - p)[s].numpy() for p in points]
        for k in range(1, len(points) - 1):
            window = range(max(0, k - m), k)
            W = np.stack([x[j + 1] - x[j] for j in window], 1)
            R = np.stack([r[j + 1] - r[j] for j in window], 1)
            gamma = np.linalg.solve(W.T @ R, W.T @ r[k])
            expected = x[k] - W @ gamma + r[k] - R @ gamma
            assert norm(x[k + 1] - expected) < 1e-6 * norm(expected), (s, k)


def test_singular_systems_have_a_solution() -> None:
    """A constant map, one of rank one, and one that has no use for a history."""
    rates = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
    method = AndersonMixing(history_depth=4, kind="I")
    points, found = visited(
        lambda x: rates * x + 1, torch.zeros(3, 5, dtype=torch.float64), method=method
    )
    assert found.reason == ["converged", "converged", "stagnated"]
    assert torch.stack(points).isfinite().all()
