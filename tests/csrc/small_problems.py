"""Least-squares problems and the check of an R factor, for the kernels of the CPU and of CUDA."""

from __future__ import annotations

import lab
import numpy as np
import pytest

# From the Gram matrix, singular values are known down to the root of its rounding only.
FORMS = [pytest.param(False, 1e-6, id="gram"), pytest.param(True, 1e-11, id="factor")]


def matrix(n: int, m: int, condition: float = 10.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed + m)
    left = np.linalg.qr(rng.standard_normal((n, m)))[0]
    right = np.linalg.qr(rng.standard_normal((m, m)))[0]
    rows = (left * np.geomspace(1, 1 / condition, m)) @ right.T
    return rows, rng.standard_normal(n) / n**0.5


def system_of(rows: np.ndarray, r: np.ndarray, factored: bool) -> np.ndarray:
    """Gram matrix or R factor of [rows | r]."""
    joined = np.column_stack([rows, r])
    system = np.linalg.qr(joined, mode="r") if factored else joined.T @ joined
    return np.ascontiguousarray(system)


def tall(
    offsets: list[int],
    vector: str,
    storage: str,
    count: int,
    append: bool,
    shift: int,
    scales: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows [count, n] to factorise, and a further column or None."""
    rng = np.random.default_rng(offsets[-1] + count)
    values = rng.standard_normal((count, offsets[-1]))
    if scales is not None:
        values *= scales[:, None]
    rows = lab.unaligned(lab.store(values.astype(np.float32), storage), shift)
    last = lab.unaligned(rng.standard_normal(offsets[-1]).astype(vector), shift) if append else None
    return rows, last


def check_factors(
    factors: np.ndarray,
    rows: np.ndarray,
    last: np.ndarray | None,
    offsets: list[int],
    vector: str,
    backward: float,
    forward: float,
) -> None:
    """Triangles whose Gram matrices and entries are right to so many roundings."""
    wide = lab.wide(rows) if last is None else np.vstack([lab.wide(rows), last[None]])
    k, eps = len(wide), np.finfo(vector).eps
    assert factors.shape == (len(offsets) - 1, k, k)
    assert factors.dtype == vector
    for factor, part in zip(factors, lab.segments(offsets), strict=True):
        assert not np.tril(factor, -1).any()
        assert (np.diagonal(factor) >= 0).all()
        gram = wide[:, part] @ wide[:, part].T
        lengths = np.sqrt(np.diagonal(gram))
        error = np.abs(factor.astype(np.float64).T @ factor.astype(np.float64) - gram)
        assert (error <= backward * eps * np.outer(lengths, lengths)).all()
        if part.stop - part.start >= 4 * k and lengths.all():
            exact = np.linalg.qr(wide[:, part].T, mode="r")
            exact *= np.sign(np.diagonal(exact))[:, None]
            bound = forward * eps
            np.testing.assert_allclose(factor / lengths, exact / lengths, rtol=0, atol=bound)
