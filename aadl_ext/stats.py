"""What an accelerator did, counted by cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from .decisions import Flag, Number, possible


@dataclass
class Stats:
    """Counts since :func:`~aadl_ext.accelerate`, and figures of the last jump.

    A *jump* is an extrapolated point that was put in place of the plain step.
    """

    steps: int = 0  #: steps of the base optimizer that counted (index k of the paper)
    pairs: int = 0  #: pairs (point, residual) stored
    jumps: int = 0  #: jumps tried
    accepted: int = 0  #: jumps that passed the safeguard; the last may still be pending
    dropped: int = 0  #: jumps without a verdict, because something else moved the parameters
    shortened: int = 0  #: accepted jumps that were cut back to the minimum along them
    averaged: int = 0  #: steps after which the mean replaced the iterate
    #: jumps refused or taken back: "residual", "loss", "descent", "limits", "nonfinite" (bad
    #: gradient, step or point), "request" (``take_back``)
    rejected: Counter[str] = field(default_factory=Counter)
    #: steps that left no trace: "nonfinite", "found_inf", "zero_lr", "no_gradient"
    skipped: Counter[str] = field(default_factory=Counter)
    #: history thrown away: "rejections" (two in a row), "parameters", "learning_rate",
    #: "request"; or only window and pending jump: "moved_outside"
    restarts: Counter[str] = field(default_factory=Counter)
    gamma: Tensor | None = None  #: [systems, columns] float64 coefficients of the last jump
    rank: Tensor | None = None  #: [systems] columns that were independent
    condition: Tensor | None = None  #: [systems] condition estimate of the scaled columns
    predicted_reduction: Tensor | None = None  #: [systems] |r - R gamma| / |r|
    actual_reduction: Number | None = None  #: |r| at the last judged jump over |r| before it
    trust: Number | None = None  #: largest jump, in units of the last way between block means
    damping: Number | None = None  #: share of a jump that is made
    bytes_held: int = 0  #: memory of all buffers

    def count(self, name: str, flag: Flag = True, cause: str | None = None) -> None:
        """Add one to a count, or to one of its causes, if the flag is true."""
        if not possible(flag):
            return
        count = getattr(self, name)
        if cause is None:
            setattr(self, name, count + flag)
        else:
            count[cause] += flag

    def read(self) -> Stats:
        """Itself, with all numbers on the host; waits for the device that has them."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and value.ndim == 0:
                setattr(self, f.name, value.item())
            elif isinstance(value, Counter):
                for cause, count in list(value.items()):
                    value[cause] = int(count)
                    if not count:
                        del value[cause]
        return self

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain numbers, dictionaries and lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def state_dict(self) -> dict[str, Any]:
        """The counts; figures of the last jump are not kept."""
        counts = {f.name: getattr(self.read(), f.name) for f in fields(self)}
        return {name: _plain(x) for name, x in counts.items() if isinstance(x, (int, Counter))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name, value in state.items():
            if name != "bytes_held":
                setattr(self, name, Counter(value) if isinstance(value, dict) else value)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return dict(value) if isinstance(value, Counter) else value
