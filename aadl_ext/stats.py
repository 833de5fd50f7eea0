"""What an accelerator did, counted by cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from . import ops


@dataclass
class Stats:
    """Counts since :func:`~aadl_ext.accelerate`, and figures of the last extrapolation.

    An *extrapolation* is a point that was put in place of the base step's (of Anderson), or a step
    on top of it (of subspace Newton).
    """

    steps: int = 0  #: steps of the base optimizer that counted (index k of the paper)
    pairs: int = 0  #: pairs (point, residual) stored
    extrapolations: int = 0  #: extrapolations tried
    accepted: int = 0  #: those that passed the safeguards; the last may still be pending
    dropped: int = 0  #: those without a verdict, because something else moved the parameters
    shortened: int = 0  #: accepted ones that were cut back to the minimum along them
    averaged: int = 0  #: steps after which the mean replaced the iterate
    #: extrapolations that were not taken, or were rolled back: "residual", "loss", "descent",
    #: "limits", "nonfinite" (bad gradient, step or point), "request" (``roll_back``)
    rejected: Counter[str] = field(default_factory=Counter)
    #: steps that left no trace: "nonfinite", "found_inf", "zero_lr", "no_gradient"
    skipped: Counter[str] = field(default_factory=Counter)
    #: history thrown away: "rejections" (two in a row), "parameters", "learning_rate",
    #: "request"; or only window and pending extrapolation: "moved_outside"
    restarts: Counter[str] = field(default_factory=Counter)
    gamma: Tensor | None = None  #: [systems, columns] float64 coefficients of the last one
    rank: Tensor | None = None  #: [systems] columns that were independent
    condition: Tensor | None = None  #: [systems] condition estimate of the scaled columns
    predicted_reduction: Tensor | None = None  #: [systems] |r - R gamma| / |r|
    actual_reduction: float | None = None  #: |r| at the last judged one over |r| before it
    trust_radius: float | None = None  #: longest step, in ways between block means
    damping: float | None = None  #: share of a step that is taken
    bytes_held: int = 0  #: memory of all buffers

    @classmethod
    def read(cls, verdicts: ops.Verdicts, counts: dict[str, Counter[str]], steps: int) -> Stats:
        """Bring all counts to the host; waits for the device that has them."""
        stats = cls(steps=steps)
        for name, causes in counts.items():
            setattr(stats, name, Counter(causes))
        for name, count in zip(ops.verdicts.COUNTS, verdicts.counts.tolist(), strict=True):
            kind, _, cause = name.partition("_")
            if not cause:
                setattr(stats, name, count)
            elif count:
                getattr(stats, kind)[cause] += count
        return stats

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain numbers, dictionaries and lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return dict(value) if isinstance(value, Counter) else value
