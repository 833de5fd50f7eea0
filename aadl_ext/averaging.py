"""Moving average over the last iterates, and the criterion that switches it (Eq. 11, 15, 16)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import ops


class MovingAverage:
    """Ring of the last ``t`` iterates; with ``t = 0`` it holds nothing and never averages.

    As in Algorithm 1 a mean takes the place of the iterate that it was made from, so the
    window holds means too. The criterion is applied once the window is full.
    """

    def __init__(self, window: Tensor, threshold: float) -> None:
        self.window = window  # [t, N]
        self.mean = window.new_empty(window.shape[1] if len(window) else 0)
        self.threshold = threshold  # epsilon
        self.clear()

    def clear(self) -> None:
        """Forget all iterates."""
        self.newest, self.count = -1, 0

    def push(self, point: Tensor) -> None:
        """Append an iterate."""
        if len(self.window):
            self.newest = (self.newest + 1) % len(self.window)
            self.count = min(self.count + 1, len(self.window))
            self.window[self.newest].copy_(point)

    def replace_newest(self, point: Tensor) -> None:
        """Put ``point`` in the place of the newest iterate."""
        if self.count:
            self.window[self.newest].copy_(point)

    def smooth(self, max_step: float) -> Tensor | None:
        """Replace the newest iterate by the mean and return it, while the iterates oscillate.

        They do while ``max sqrt(S) > epsilon * max |r|`` (Eq. 16), which no NaN fulfils.
        """
        if not self.count or self.count < len(self.window):
            return None
        statistics = ops.window_statistics(self.window, self.newest, self.mean)
        if not float(statistics.max_std) > self.threshold * max_step:
            return None
        self.replace_newest(self.mean)
        return self.mean

    @property
    def tensors(self) -> list[Tensor]:
        """All buffers."""
        return [self.window, self.mean]

    def state_dict(self) -> dict[str, Any]:
        """Iterates and position; tensors are copies."""
        return {
            "window": self.window.clone(),
            "newest": self.newest,
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.window.copy_(state["window"])
        self.newest, self.count = state["newest"], state["count"]
