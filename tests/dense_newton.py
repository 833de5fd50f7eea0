"""The subspace Newton method written down densely in float64 NumPy, to compare with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.linalg import eigh, norm

Vector = np.ndarray[Any, np.dtype[np.float64]]


class Means(NamedTuple):
    """What is left of a block."""

    point: Vector
    gradient: Vector
    noise: Vector  # mean of the gradients with alternating signs


class Jump(NamedTuple):
    """A jump that was made and is not judged yet."""

    d: Vector
    slope: float  # along it, of the mean gradient before
    limited: bool  # by the trust


# Of blocks, for some store_each_nth.
LENGTHS = {
    2: [2, 2, 2, 4, 8],
    3: [2, 2, 3, 6, 12],
    4: [2, 2, 4, 8, 16],
    10: [2, 4, 10, 20, 40],
}
USUAL = 2


@dataclass
class DenseSubspace:
    """The options have the names and the meaning that they have in ``accelerate``."""

    w: Vector
    segments: Sequence[slice] = (slice(None),)  # one system each
    history_depth: int = 8
    store_each_nth: int = 10
    noise_rows: int = 9
    relaxation: float = 1.0
    reg_acc: float = 1e-4
    curvature_floor: float = 0.01
    noise_shrinkage: float = 4.0
    gradient_guard: float = 2.0
    trust: float = 4.0
    adapt_blocks: bool = True

    damping: float = 1.0
    reference: float = 0.0
    block: list[Means] = field(default_factory=list)  # samples of the block under way
    means: list[Means] = field(default_factory=list)  # of all blocks, newest last
    pending: Jump | None = None
    line: Jump | None = None  # of the block under way
    slopes: list[float] = field(default_factory=list)  # along it
    judged: list[tuple[float, float]] = field(default_factory=list)  # slopes after and before
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.level, self.length = USUAL, self.store_each_nth  # of a block, now

    def step(self, gradient: Vector, base_step: Callable[[Vector, Vector], Vector]) -> None:
        """Go on from ``w``; ``base_step`` maps a point and its gradient to the next point."""
        jump, self.pending = self.pending, None
        size = norm(gradient)
        if jump is not None and not size <= self.gradient_guard * self.reference:
            self.w = self.w - jump.d
            self.trust = max(self.trust / 4, 0.25)
            self.block = []
            self.line = None
            self.counts["rejected"] += 1
            return
        self.reference = max(size, 0.9 * self.reference)
        before, self.w = self.w, base_step(self.w, gradient)
        if jump is not None:
            self._judge(jump, float(gradient @ jump.d))
            self.line, self.slopes = jump, []
        if self.line is not None:
            self.slopes.append(float(gradient @ self.line.d))
        sign = (-1.0) ** len(self.block)
        self.block.append(Means(before, gradient, sign * gradient))
        if len(self.block) < self.length:
            return
        if self.line is not None:
            self._learn(self.line)
        self.means.append(Means(*np.mean(self.block, axis=0)))
        self.block = []
        self.counts["pairs"] += 1
        self._adapt_block()
        if len(self.means) > 2:
            self._jump()

    def _judge(self, jump: Jump, slope: float) -> None:
        self.counts["accepted"] += 1
        if slope > 0 and jump.slope + slope > 0:  # the minimum of a parabola through both slopes
            share = jump.slope / (jump.slope - slope)
            self.w = self.w - (1 - share) * jump.d
            self.trust = max(self.trust / 2, 0.25)
            self.counts["shortened"] += 1
        elif slope < 0.5 * abs(jump.slope) and jump.limited:
            self.trust = min(2 * self.trust, 1e6)
            self.counts["doubled"] += 1

    def _learn(self, jump: Jump) -> None:
        size = abs(jump.slope)
        self.judged.append((min(float(np.mean(self.slopes)), 3 * size), size))
        after, before = (0.7 ** np.arange(len(self.judged))[::-1]) @ np.array(self.judged)
        self.damping *= np.exp(-0.3 * max(after / before, -1))
        self.damping = min(max(self.damping, 0.02), 1.0)
        self.line = None

    def _adapt_block(self) -> None:
        if len(self.means) < 2 or not self.adapt_blocks or not self.noise_rows:
            return
        a, b = self.means[-2:]
        noises = [mean.noise for mean in self.means[-self.noise_rows :]][-2:]
        noise_ratio = np.mean(norm(noises, axis=1) ** 2) / norm(b.gradient - a.gradient) ** 2
        too_long = noise_ratio < 0.01 and self.damping > 0.95
        too_short = noise_ratio > 0.3 and self.damping < 0.7
        if self.level < USUAL:
            too_short = self.damping < 0.8
        elif self.level > USUAL:
            too_long = noise_ratio < 0.1 or self.damping > 0.95
        lengths, before = LENGTHS[self.store_each_nth], self.length
        if too_short:
            self.level = min(self.level + 1, len(lengths) - 1)
        elif too_long:
            self.level = max(self.level - 1, 0)
        self.length = lengths[self.level]
        self.counts["longer blocks"] += self.length > before
        self.counts["shorter blocks"] += self.length < before

    def _jump(self) -> None:
        d, limited = np.zeros_like(self.w), False
        for segment in self.segments:
            step, cut = self._newton_step(segment)
            d[segment] = self.relaxation * self.damping * step
            limited = limited or cut
        if not d.any():
            return
        self.counts["jumps"] += 1
        slope = float(d @ self.means[-1].gradient)
        if slope < 0:
            self.w = self.w + d
            self.pending = Jump(d, slope, limited)
        else:
            self.counts["rejected"] += 1

    def _newton_step(self, segment: slice) -> tuple[Vector, bool]:
        last = self.means[-self.history_depth - 1 :]
        W = np.diff([block.point[segment] for block in last], axis=0)
        G = np.diff([block.gradient[segment] for block in last], axis=0)
        g = last[-1].gradient[segment]
        n = norm(W, axis=1)
        V = W / n[:, None]
        values, vectors = eigh(V @ V.T)
        kept = values > self.reg_acc * values.max()
        L = vectors[:, kept].T / np.sqrt(values[kept])[:, None]
        C = V @ (G / n[:, None]).T
        e, U = eigh(L @ (C + C.T) / 2 @ L.T)
        basis = U.T @ L @ V  # orthonormal rows
        c = basis @ g
        share = np.ones_like(c)
        if self.noise_rows:
            A = np.array([block.noise[segment] for block in self.means[-self.noise_rows :]])
            noise = np.mean((basis @ A.T) ** 2, axis=1)
            share = np.maximum(0, 1 - self.noise_shrinkage * noise / c**2)
        x = share * c / np.maximum(abs(e), self.curvature_floor * abs(e).max())
        d = -basis.T @ x
        radius = self.trust * norm(W[-1])
        return (d * radius / norm(d), True) if norm(d) > radius else (d, False)
