"""Whether a schedule holds the learning rate near its peak, as the rates so far tell it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Schedule:
    """The largest rate so far; a rate that never changed has no schedule."""

    peak: float = 0.0
    moved: bool = False

    def near_peak(self, rate: float, share: float) -> bool:
        """Take in the rate of a step: whether one that has moved is above ``share`` of the peak."""
        self.moved = self.moved or 0 < self.peak != rate
        self.peak = max(self.peak, rate)
        return self.moved and rate > share * self.peak
