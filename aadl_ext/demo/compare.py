"""What the runs of a part say: each method against the base optimizer, seed by seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from .parts import LINE_SEARCH, Part, Run
from .report import mean_and_interval

LAST = 3  # looks in the mean that stands for the end of a run


@dataclass(frozen=True)
class Ratio:
    """Geometric mean over seeds of a loss over that of the base, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if not math.isfinite(self.mean):
            return "diverges"
        if self.low == self.high:
            return "the same" if self.mean == 1 else "one seed, no interval"
        return "lower" if self.high < 1 else "higher" if self.low > 1 else "no clear difference"

    def __str__(self) -> str:
        if not math.isfinite(self.mean):
            return "not finite"
        mean, low, high = map(_times, (self.mean, self.low, self.high))
        return mean if low == high else f"{mean} [{low}, {high}]"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if 0.1 <= ratio < 10 else f"{ratio:.2g}"


@dataclass(frozen=True)
class Row:
    """A method in the table."""

    method: str
    runs: int
    train: float  #: geometric mean of the losses at the end
    valid: float
    train_ratio: Ratio | None  #: None for the base
    valid_ratio: Ratio | None
    reached: float | None  #: share of the evaluations until the base's final loss, if most do
    milliseconds: float  #: for a gradient evaluation, step included
    extrapolations: int  #: a run; and of these
    accepted: int


def rows(part: Part, runs: list[Run]) -> list[Row]:
    """Of the methods that have runs."""
    by_seed = {
        method: {run.seed: run for run in runs if (run.part, run.method) == (part.name, method)}
        for method in part.methods
    }
    base = by_seed[part.methods[0]]
    return [_row(m, found, base) for m, found in by_seed.items() if found]


def _row(method: str, found: dict[int, Run], base: dict[int, Run]) -> Row:
    pairs = [(run, base[seed]) for seed, run in found.items() if seed in base]
    is_base = found is base or not pairs
    reached = [_reached(run, other) for run, other in pairs]
    usual = median(math.inf if share is None else share for share in reached or [None])
    every = list(found.values())
    return Row(
        method,
        len(every),
        _geometric([final(run.train) for run in every]),
        _geometric([final(run.valid) for run in every]),
        None if is_base else _ratio([(final(a.train), final(b.train)) for a, b in pairs]),
        None if is_base else _ratio([(final(a.valid), final(b.valid)) for a, b in pairs]),
        None if is_base or math.isinf(usual) else usual,
        1e3 * fmean(run.seconds / run.evaluations[-1] for run in every),
        round(fmean(run.stats.get("extrapolations", 0) for run in every)),
        round(fmean(run.stats.get("accepted", 0) for run in every)),
    )


def final(curve: list[float]) -> float:
    """The loss at the end of a run."""
    return fmean(curve[-LAST:])


def _reached(run: Run, base: Run) -> float | None:
    """Share of the base's evaluations after which its final training loss was reached."""
    target = final(base.train)
    for count, loss in zip(run.evaluations, run.train, strict=True):
        if loss <= target:
            return count / base.evaluations[-1]
    return None


def _geometric(values: list[float]) -> float:
    if not np.isfinite(values).all():
        return math.inf
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-30)))))


def _ratio(pairs: list[tuple[float, float]]) -> Ratio:
    if not np.isfinite(pairs).all():
        return Ratio(math.inf, math.inf, math.inf)
    logs = np.array([math.log((a + 1e-30) / (b + 1e-30)) for a, b in pairs])
    mean, half = mean_and_interval(logs)
    return Ratio(*(float(np.exp(x)) for x in (mean, mean - half, mean + half)))


def sentences(part: Part, table: list[Row]) -> list[str]:
    """What was measured in one part, in words; nothing is claimed that an interval leaves open."""
    base = part.methods[0]
    said = []
    for row in table:
        if row.train_ratio is None or row.valid_ratio is None:
            continue
        share = (
            ""
            if row.reached is None
            else (f", reached after {row.reached:.0%} of its gradient evaluations")
        )
        said.append(
            f"{row.method}: training loss {row.train_ratio} times that of {base} "
            f"({row.train_ratio.verdict}{share}); {part.validation} {row.valid_ratio} times "
            f"({row.valid_ratio.verdict})."
        )
    return said + _advice(table)


def _advice(table: list[Row]) -> list[str]:
    """What to make of it."""
    by_name = {row.method: row for row in table}
    train = [row.train_ratio.verdict for row in table if row.train_ratio]
    valid = [row.valid_ratio.verdict for row in table if row.valid_ratio]
    advice = []
    ends = {name: row.train for name, row in by_name.items()}
    if LINE_SEARCH in ends and ends[LINE_SEARCH] <= min(ends.values()):
        advice.append("L-BFGS ends lowest: on full batches of small smooth problems use it.")
    for name, verdicts in (("training", train), ("validation", valid)):
        if verdicts and "lower" not in verdicts:
            advice.append(f"No gain in {name} is to be seen here.")
    return advice


def plain(row: Row) -> dict[str, Any]:
    """For JSON."""
    ratios = {"train_ratio": row.train_ratio, "valid_ratio": row.valid_ratio}
    plain_ratios = {
        name: [ratio.mean, ratio.low, ratio.high]
        if ratio is not None and math.isfinite(ratio.mean)
        else None
        for name, ratio in ratios.items()
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in {**vars(row), **plain_ratios}.items()
    }
