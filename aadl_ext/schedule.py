"""Whether a schedule holds the learning rate near its peak, as the rates so far tell it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Schedule:
    """The largest rate so far; a rate that never changed has no schedule."""

    peak: float = 0.0
    last: float = 0.0
    moved: bool = False
    gradual: bool = False  #: whether the last change was by less than a half: more will follow

    def near_peak(self, rate: float, share: float) -> bool:
        """Take in the rate of a step: whether one that has moved is above ``share`` of the peak."""
        if 0 < self.last != rate:
            self.moved, self.gradual = True, self.last / 2 < rate
        self.last = rate
        self.peak = max(self.peak, rate)
        return self.moved and rate > share * self.peak
