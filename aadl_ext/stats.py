"""What an accelerator did, counted by cause; and the log of what went wrong."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from operator import itemgetter
from typing import Any

from torch import Tensor

from . import ops
from .ops.registry import seen

logger = logging.getLogger("aadl_ext")

#: What is logged, by the names of counts; causes follow.
TOLD = {
    "rejected": "an extrapolation was rejected",
    "dropped": "an extrapolation was dropped without a verdict",
    "skipped": "a step was left out of the history",
    "skipped/high_rate": "it rests while a schedule holds the learning rate near its peak",
    "restarts": "the history starts anew",
    "restarts/moved_outside": "something else moved the parameters",
}


@dataclass
class Stats:
    """Counts since :func:`~aadl_ext.accelerate`, and figures of the last extrapolation.

    An *extrapolation* is a point that was put in place of the base step's (of Anderson), or a step
    on top of it (of subspace Newton).

    ``print(stats)`` and a notebook show a table; ``dict(stats)`` has its numbers under flat names
    such as "rejected/residual", as loggers take them; ``as_dict()`` has all, as JSON takes it.
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
    #: steps that left no trace: "nonfinite", "found_inf", "zero_lr", "no_gradient", "high_rate"
    #: (subspace Newton rests near the peak of a schedule),
    #: "rolled_back" (other parameters are trained from there on)
    skipped: Counter[str] = field(default_factory=Counter)
    #: history thrown away: "rejections" (two in a row), "parameters", "learning_rate",
    #: "request", "interrupted" (an error or Ctrl-C within it); or only window and pending
    #: extrapolation: "moved_outside"
    restarts: Counter[str] = field(default_factory=Counter)
    gamma: Tensor | None = None  #: [systems, columns] float64 coefficients of the last one
    rank: Tensor | None = None  #: [systems] columns that were independent
    condition: Tensor | None = None  #: [systems] condition estimate of the scaled columns
    predicted_reduction: Tensor | None = None  #: [systems] |r - R gamma| / |r|
    unresolved: int | None = None  #: rows held that are rounding, or underflow in float16
    actual_reduction: float | None = None  #: |r| at the last judged one over |r| before it
    trust_radius: float | None = None  #: longest step, in ways between block means
    damping: float | None = None  #: share of a step that is taken
    bytes_held: int = 0  #: memory of all buffers
    bytes_offloaded: int = 0  #: of these, rows that are in host memory (``Storage.offload``)

    @classmethod
    def of_host(cls, counts: dict[str, Counter[str]], steps: int) -> Stats:
        """Those that the host has counted."""
        stats = cls(steps=steps)
        for name, causes in counts.items():
            setattr(stats, name, Counter(causes))
        return stats

    @classmethod
    def read(cls, verdicts: ops.Verdicts, counts: dict[str, Counter[str]], steps: int) -> Stats:
        """Bring all counts to the host; waits for the device that has them."""
        stats = cls.of_host(counts, steps)
        for name, count in zip(ops.verdicts.COUNTS, verdicts.counts.tolist(), strict=True):
            kind, _, cause = name.partition("_")
            if not cause:
                setattr(stats, name, count)
            elif count:
                getattr(stats, kind)[cause] += count
        return stats

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Names and numbers; figures that there are none of yet, or several, are left out."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Counter):
                yield from ((f"{f.name}/{cause}", count) for cause, count in value.items())
            elif isinstance(value, Tensor) and value.numel() == 1:
                yield f.name, value.item()
            elif isinstance(value, (int, float)):
                yield f.name, value

    def __str__(self) -> str:
        return "\n".join(f"{name:<22}{_shown(value)}" for name, value in self)

    def _repr_html_(self) -> str:
        rows = (f"<tr><td>{name}</td><td>{_shown(value)}</td></tr>" for name, value in self)
        return f"<table>{''.join(rows)}</table>"

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain numbers, dictionaries and lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


class Journal:
    """Logs what went wrong: of each cause the 1st time, the 2nd, the 4th, the 8th, and so on."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._last: Any = None

    def look(self, verdicts: ops.Verdicts, counts: dict[str, Counter[str]], steps: int) -> None:
        """Tell what is new, as far as the host knows it without waiting for a device."""
        if not logger.isEnabledFor(logging.INFO):
            return
        whole = seen(verdicts.counts)
        of_steps = _troubles(verdicts.counts.tolist()) if whole else ()
        now = (of_steps, *(x.total() for x in counts.values()))
        if now == self._last:
            return
        self._last = now
        self.tell(Stats.read(verdicts, counts, steps) if whole else Stats.of_host(counts, steps))

    def tell(self, stats: Stats) -> None:
        """Tell what is new in these."""
        for name, count in stats:
            kind, _, cause = name.partition("/")
            text = TOLD.get(name, TOLD.get(kind))
            told = self._told.get(name, 0)
            if text and int(count).bit_length() > int(told).bit_length():
                because = f" ({cause})" if cause else ""
                logger.info("%s%s: %d so far, at step %d", text, because, count, stats.steps)
            self._told[name] = max(told, count)

    def take_over(self, stats: Stats) -> None:
        """Count on from an earlier run, which has told its own."""
        self._told = dict(stats)


_troubles = itemgetter(
    *(i for i, name in enumerate(ops.verdicts.COUNTS) if name.partition("_")[0] in TOLD)
)


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return dict(value) if isinstance(value, Counter) else value
