"""Moving average over the last iterates, and the criterion that switches it (Eq. 11, 15, 16)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from . import ops
from .decisions import Flag, Number, choose, choose_vector, number


class MovingAverage:
    """The last ``t`` iterates; with ``t = 0`` it holds nothing and never averages.

    Iterates are vectors of the caller's. As in Algorithm 1 a mean takes the place of the iterate
    that it was made from, so the window holds means too. The criterion is applied once the window
    is full.
    """

    def __init__(self, length: int, threshold: float) -> None:
        self.length = length  # t
        self.threshold = threshold  # epsilon
        self.clear()

    def clear(self) -> None:
        """Forget all iterates."""
        self.iterates: list[Tensor] = []  # newest last
        self.known: Number = 0  # how many of the newest are iterates

    def forget(self, when: Flag) -> None:
        """Forget all iterates, but for the vectors they lie in."""
        if when is True:
            self.clear()
        else:
            self.known = choose(when, 0, self.known)

    def start_at(self, point: Tensor, when: Flag) -> None:
        """Let ``point`` be the only iterate; it is one at the very beginning."""
        self.forget(when)
        if not self.iterates:
            self.push(point)
        elif isinstance(when, Tensor):
            ops.gather((point,), self.iterates[-1], when=when)
            self.known = choose(when, 1, self.known)

    def push(self, point: Tensor, instead: Flag = False) -> None:
        """Append an iterate, or put it in the place of the newest."""
        if not self.length:
            return
        if instead is True:
            self.iterates[-1:] = [point]
        else:
            vectors = [*self.iterates, point]
            if isinstance(instead, Tensor):  # the newest goes: those before it move up
                for older, newer in reversed(list(pairwise(vectors[:-1]))):
                    ops.gather((older,), newer, when=instead)
            self.iterates = vectors[-self.length :]
            self.known = choose(instead, self.known, self.known + 1)

    @property
    def full(self) -> bool:
        """Whether the criterion can be applied."""
        return 0 < len(self.iterates) == self.length

    def smooth(self, max_step: Number, mean: Tensor) -> Flag:
        """Whether the iterates oscillate, so that ``mean``, computed here, replaces the newest.

        They do while ``max sqrt(S) > epsilon * max |r|`` (Eq. 16), which no NaN fulfils.
        """
        max_std = number(ops.window_statistics(self.iterates, mean))
        oscillates = (max_std > self.threshold * max_step) & (self.known >= self.length)
        self.iterates[-1] = choose_vector(oscillates, mean, self.iterates[-1])
        return oscillates
