"""Moving average over the last iterates, and the criterion that switches it (Eq. 11, 15, 16)."""

from __future__ import annotations

from torch import Tensor

from . import ops


class MovingAverage:
    """The last ``t`` iterates; with ``t = 0`` it holds nothing and never averages.

    Iterates are vectors of the caller's, held and never changed. As in Algorithm 1 a mean
    takes the place of the iterate that it was made from, so the window holds means too. The
    criterion is applied once the window is full.
    """

    def __init__(self, length: int, threshold: float) -> None:
        self.length = length  # t
        self.threshold = threshold  # epsilon
        self.iterates: list[Tensor] = []  # newest last

    def clear(self) -> None:
        """Forget all iterates."""
        self.iterates.clear()

    def push(self, point: Tensor) -> None:
        """Append an iterate."""
        if self.length:
            self.iterates = [*self.iterates, point][-self.length :]

    def replace_newest(self, point: Tensor) -> None:
        """Put ``point`` in the place of the newest iterate."""
        if self.iterates:
            self.iterates[-1] = point

    @property
    def full(self) -> bool:
        """Whether the criterion can be applied."""
        return 0 < len(self.iterates) == self.length

    def smooth(self, max_step: float, mean: Tensor) -> bool:
        """Whether the iterates oscillate, so that ``mean``, computed here, replaces the newest.

        They do while ``max sqrt(S) > epsilon * max |r|`` (Eq. 16), which no NaN fulfils.
        """
        max_std = float(ops.window_statistics(self.iterates, mean))
        if not max_std > self.threshold * max_step:
            return False
        self.replace_newest(mean)
        return True
