"""The subspace Newton method written down densely in float64 NumPy, to compare with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.linalg import eigh, norm

Vector = np.ndarray[Any, np.dtype[np.float64]]


class Sample(NamedTuple):
    """One of a block, or the means of all."""

    point: Vector
    gradient: Vector
    noise: Vector  # of the last difference of gradients


class Row(NamedTuple):
    """How the means have changed from block to block; zero where a block was dropped."""

    step: Vector
    gradient: Vector


class Pending(NamedTuple):
    """A step that was taken and is not judged yet."""

    d: Vector
    slope: float  # along it, of the mean gradient before
    limited: bool  # by the trust radius


# Of blocks, for some block_length.
LENGTHS = {
    2: [2, 2, 2, 4, 8],
    3: [2, 2, 3, 6, 12],
    4: [2, 2, 4, 8, 16],
    10: [2, 4, 10, 20, 40],
}
USUAL = 2
LEAST_SPREAD = 1e-10


def last_difference(length: int) -> Vector:
    """Of so many values, scaled like their sum."""
    weights = np.ones(1)
    for _ in range(length - 1):
        weights = np.convolve(weights, [1.0, -1.0])
    return weights * np.sqrt(length) / norm(weights)


def least_squares(
    ways: Vector, changes: Vector, newest: Vector, noise: Vector, shrinkage: float
) -> list[Vector]:
    """The gradient at the newest point, the symmetric Hessian that fits slopes best, noise left.

    Columns lead back from point to point, or are samples of noise in ``newest``. Where noise may
    be what an entry of the Hessian is, the gradient does not believe it. Nothing, if points hardly
    spread in some direction.
    """
    rank, count = ways.shape
    points = np.hstack([np.zeros((rank, 1)), -np.cumsum(ways, axis=1)])
    slopes = newest[:, None] - np.hstack([np.zeros((rank, 1)), np.cumsum(changes, axis=1)])
    spread, turn = np.linalg.eigh(np.cov(points, bias=True).reshape(rank, rank))
    if spread[0] <= LEAST_SPREAD * spread[-1]:
        return []
    points, slopes, noise = turn.T @ points, turn.T @ slopes, turn.T @ noise
    units = []
    for a in range(rank):
        for b in range(a, rank):
            unit = np.zeros((rank, rank))
            unit[a, b] = unit[b, a] = 1
            units.append(unit)
    centred = points - points.mean(axis=1, keepdims=True)
    equations = np.array([(unit @ centred).ravel() for unit in units]).T
    solve = np.linalg.pinv(equations)  # the mean of the slopes has no part in it
    entries = solve @ slopes.ravel()
    variances = np.mean(noise**2) * np.sum(solve**2, axis=1) if noise.size else 0 * entries
    believed = np.maximum(0, 1 - shrinkage * variances / entries**2)
    mean = np.kron(np.eye(rank), np.full((1, count + 1), 1 / (count + 1)))
    middle = np.array([unit @ points.mean(axis=1) for unit in units]).T
    gradient = mean - middle @ (believed[:, None] * solve)  # of slopes
    left = norm(gradient, axis=1)[:, None] * noise
    hessian = np.tensordot(entries, np.array(units), 1)
    return [turn @ gradient @ slopes.ravel(), turn @ hessian @ turn.T, turn @ left]


@dataclass
class DenseNewton:
    """The options have the names and the meaning that they have in ``SubspaceNewton``."""

    w: Vector
    segments: Sequence[slice] = (slice(None),)  # one system each
    history_depth: int = 4
    block_length: int = 10
    noise_samples: int = 4
    ridge: ClassVar[float] = 1e-4
    min_curvature: ClassVar[float] = 0.01
    noise_shrinkage: float = 4.0
    max_gradient_growth: float = 2.0
    trust_radius: float = 4.0
    adaptive_blocks: bool = True

    damping: float = 1.0
    reference: float = 0.0
    block: list[Sample] = field(default_factory=list)  # the one under way
    spoiled: bool = False  # whether it began with a step that was rejected: then it is dropped
    blocks: int = 0
    means: Sample | None = None  # of the last block that was not dropped
    rows: list[Row] = field(default_factory=list)  # newest last
    noises: list[Vector] = field(default_factory=list)  # newest last; zero for a dropped block
    noise_ratio: float = np.inf
    pending: Pending | None = None
    line: Pending | None = None  # of the block under way
    slopes: list[float] = field(default_factory=list)  # along it
    judged: list[tuple[float, float]] = field(default_factory=list)  # slopes after and before
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.level, self.length = USUAL, self.block_length  # of a block, now
        self.level_change = 0  # asked for by the last block

    def step(self, gradient: Vector, base_step: Callable[[Vector, Vector], Vector]) -> None:
        """Go on from ``w``; ``base_step`` maps a point and its gradient to the next point."""
        pending, self.pending = self.pending, None
        size = norm(gradient)
        before = self.w
        if pending is not None and not size <= self.max_gradient_growth * self.reference:
            self.w = self.w - pending.d
            self.trust_radius = max(self.trust_radius / 4, 0.25)
            self.spoiled = True
            self.counts["rejected"] += 1
        else:
            self.reference = max(size, 0.9 * self.reference)
            self.w = base_step(self.w, gradient)
            if pending is not None:
                self._judge(pending, float(gradient @ pending.d))
                self.line, self.slopes = pending, []
        if self.line is not None:
            self.slopes.append(float(gradient @ self.line.d))
        weight = last_difference(self.length)[len(self.block)]
        self.block.append(Sample(before, gradient, weight * gradient))
        if len(self.block) == self.length:
            self._close_block()

    def _close_block(self) -> None:
        if self.line is not None:
            self._learn(self.line)
        last, complete = self.means, not self.spoiled
        row = Row(np.zeros_like(self.w), np.zeros_like(self.w))
        noise = np.zeros_like(self.w)
        if complete:
            self.means = Sample(*np.mean(self.block, axis=0))
            noise = self.means.noise
            if last is not None:
                row = Row(self.means.point - last.point, self.means.gradient - last.gradient)
            self.counts["pairs"] += 1
        if self.blocks:
            self.rows = [*self.rows, row][-self.history_depth :]
        self.noises = [*self.noises, noise][-self.noise_samples :] if self.noise_samples else []
        self.blocks += 1
        self.block, self.spoiled = [], False
        if self.adaptive_blocks and self.noise_samples:
            self._adapt_length(row, complete)
        if complete and self.blocks > 2:
            self._take_step()

    def _judge(self, pending: Pending, slope: float) -> None:
        self.counts["accepted"] += 1
        if slope > 0 and pending.slope + slope > 0:  # the minimum of a parabola through both
            share = pending.slope / (pending.slope - slope)
            self.w = self.w - (1 - share) * pending.d
            self.trust_radius = max(self.trust_radius / 2, 0.25)
            self.counts["shortened"] += 1
        elif slope < 0.5 * abs(pending.slope) and pending.limited:
            self.trust_radius = min(2 * self.trust_radius, 1e6)
            self.counts["doubled"] += 1

    def _learn(self, line: Pending) -> None:
        size = abs(line.slope)
        self.judged.append((min(float(np.mean(self.slopes)), 3 * size), size))
        after, before = (0.7 ** np.arange(len(self.judged))[::-1]) @ np.array(self.judged)
        self.damping *= np.exp(-0.3 * max(after / before, -1))
        self.damping = min(max(self.damping, 0.02), 1.0)
        self.line = None

    def _adapt_length(self, row: Row, complete: bool) -> None:
        if complete:
            change = norm(row.gradient) ** 2
            noise = np.mean(norm(self.noises[-2:], axis=1) ** 2)
            self.noise_ratio = noise / change if change else np.inf
        too_long = self.noise_ratio < 0.01 and self.damping > 0.95
        too_short = self.noise_ratio > 0.3 and self.damping < 0.7
        if self.level < USUAL:
            too_short = self.damping < 0.8
        elif self.level > USUAL:
            too_long = self.noise_ratio < 0.1 or self.damping > 0.95
        lengths, before = LENGTHS[self.block_length], self.length
        # It follows a block late.
        self.level = min(max(self.level + self.level_change, 0), len(lengths) - 1)
        self.level_change = 0 if not complete else 1 if too_short else -1 if too_long else 0
        self.length = lengths[self.level]
        self.counts["longer blocks"] += self.length > before
        self.counts["shorter blocks"] += self.length < before

    def _take_step(self) -> None:
        d, slope, limited = np.zeros_like(self.w), 0.0, False
        for segment in self.segments:
            d[segment], along, cut = self._newton_step(segment)
            slope += along
            limited |= cut
        d = self.damping * d
        if not d.any():  # there is nothing but noise
            return
        self.counts["extrapolations"] += 1
        assert self.means is not None
        slope = self.damping * slope
        if slope < 0:
            self.w = self.w + d
            self.pending = Pending(d, slope, limited)
        else:
            self.counts["rejected"] += 1

    def _newton_step(self, segment: slice) -> tuple[Vector, float, bool]:
        assert self.means is not None
        used = [row for row in self.rows if row.step.any()]
        W = np.array([row.step[segment] for row in used])
        G = np.array([row.gradient[segment] for row in used])
        g = self.means.gradient[segment]
        n = norm(W, axis=1)
        V = W / n[:, None]
        values, vectors = eigh(V @ V.T)
        kept = values > self.ridge * values.max()
        L = vectors[:, kept].T / np.sqrt(values[kept])[:, None]
        span = L @ V  # orthonormal rows
        H = L @ (V @ (G / n[:, None]).T) @ L.T
        A = np.array([noise[segment] for noise in self.noises]).reshape(-1, len(g))
        g, A = span @ g, span @ A.T
        if len(used) == len(self.rows):  # no block between the means was dropped
            ways, changes = span @ W[::-1].T, span @ G[::-1].T
            g, H, A = least_squares(ways, changes, g, A, self.noise_shrinkage / 2) or (g, H, A)
        e, U = eigh((H + H.T) / 2)
        basis, c, A = U.T @ span, U.T @ g, U.T @ A
        share = np.ones_like(c)
        if self.noise_samples:
            noise = np.mean(A**2, axis=1)
            share = np.maximum(0, 1 - self.noise_shrinkage * noise / c**2)
        x = share * c / np.maximum(abs(e), self.min_curvature * abs(e).max())
        radius = self.trust_radius * float(norm(self.rows[-1].step[segment]))
        limited = bool(norm(x) > radius)
        x *= radius / norm(x) if limited else 1
        return -basis.T @ x, -float(x @ c), limited
