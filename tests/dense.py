"""Algorithm 1 written down densely in float64 NumPy, to compare the accelerator with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.linalg import lstsq, norm

from aadl_ext import Averaging

Vector = np.ndarray[Any, np.dtype[np.float64]]
Loss = Callable[[Vector], float]


class Step(NamedTuple):
    """One step of the base optimizer."""

    plain: Vector  # w + r
    r: Vector
    rho: Vector  # r / lr


@dataclass
class Dense:
    """The options have the names and the meaning that they have in ``Anderson``."""

    w: Vector
    blocks: Sequence[slice] = (slice(None),)  # one least-squares problem each
    relaxation: float = 0.1
    wait_iterations: int = 1
    history_depth: int = 15
    store_each_nth: int = 1
    frequency: int = 1
    reg_acc: float = 0.0
    averaging: Averaging | None = None
    mixing: str = "paper"
    safeguard: str | Sequence[str] | None = ("residual", "descent")

    k: int = 0
    pairs: list[tuple[Vector, Vector]] = field(default_factory=list)  # (w, rho), newest last
    pending: Step | None = None  # its end was replaced by an extrapolation, not judged yet
    in_a_row: int = 0  # rejections
    window: list[Vector] = field(default_factory=list)  # iterates, newest last
    counts: Counter[str] = field(default_factory=Counter)

    def step(self, plain: Vector, rate: Vector, loss: Loss) -> None:
        """Go on from ``plain``, where the base optimizer has taken ``w`` with learning ``rate``."""
        now = Step(plain, plain - self.w, (plain - self.w) / rate)
        if self.history_depth > 0 and self.k % self.store_each_nth == 0:
            self.pairs = [*self.pairs, (self.w, now.rho)][-self.history_depth - 1 :]
            self.counts["pairs"] += 1
        self.window = self.window or [self.w]
        before, self.pending = self.pending, None
        if before is not None and not norm(now.rho) < norm(before.rho):
            now = before  # from here on as if the extrapolation had never been
            self.window[-1] = self._rejected(now)
        else:
            if before is not None:
                self._accepted()
            self.window.append(self._extrapolate(now, rate, loss))
        if self.averaging:
            self._smooth(now, self.averaging)
        self.w = self.window[-1]
        self.k += 1

    def _extrapolate(self, now: Step, rate: Vector, loss: Loss) -> Vector:
        due = self.k % self.frequency == 0 and self.k > self.wait_iterations
        if not due or len(self.pairs) < 2:
            return now.plain
        candidate = np.concatenate([self._extrapolated(now, rate, block) for block in self.blocks])
        self.counts["extrapolations"] += 1
        tests = (self.safeguard,) if isinstance(self.safeguard, str) else self.safeguard or ()
        if "descent" in tests and not now.r @ (candidate - now.plain) > 0:
            return self._rejected(now)
        if "residual" in tests:
            self.pending = now
        elif "loss" in tests and not loss(candidate) < loss(now.plain):
            return self._rejected(now)
        else:
            self._accepted()
        return candidate

    def _extrapolated(self, now: Step, rate: Vector, block: slice) -> Vector:
        w, r, rho, lr = (x[block] for x in (self.w, now.r, now.rho, rate))
        W = np.stack([(b[0] - a[0])[block] for a, b in pairwise(self.pairs)], axis=1)
        R = np.stack([(b[1] - a[1])[block] for a, b in pairwise(self.pairs)], axis=1)
        length = norm(R, axis=0)
        ridge = np.sqrt(self.reg_acc) * np.eye(len(length))
        system = np.concatenate([R / length, ridge])
        gamma = lstsq(system, np.append(rho, 0 * length), rcond=1e-12)[0] / length
        w_bar, r_bar = w - W @ gamma, r - lr * (R @ gamma)
        beta = self.relaxation
        if self.mixing == "paper":
            return (1 - beta) * w + beta * (w_bar + r_bar)  # Eq. 4, 6
        return w_bar + beta * r_bar

    def _accepted(self) -> None:
        self.counts["accepted"] += 1
        self.in_a_row = 0

    def _rejected(self, step: Step) -> Vector:
        self.counts["rejected"] += 1
        self.in_a_row += 1
        if self.in_a_row == 2:
            self.counts["restarts"] += 1
            self.in_a_row, self.pairs = 0, []
        return step.plain

    def _smooth(self, now: Step, averaging: Averaging) -> None:
        self.window = self.window[-averaging.window :]
        full = len(self.window) == averaging.window
        deviation = np.std(self.window, axis=0).max()  # Eq. 15
        if full and deviation > averaging.threshold * abs(now.r).max():  # not Eq. 16
            self.window[-1] = np.mean(self.window, axis=0)  # Eq. 11
            self.counts["averaged"] += 1
