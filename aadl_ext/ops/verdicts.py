"""Norms, verdicts and counters of a step: they stay on the device, and no line of the iteration reads
one. An op judges; others write only where one of its flags is true.

The three tensors of :class:`Verdicts` are changed in place by all ops here. An entry means:

==================  ===================================================================================
control, float64
norm                ``|r / rate|`` of the last step (Eq. 3)
max_step            ``max |r|`` of the last step that was not rejected
reduction           ``|r|`` after the last extrapolation over ``|r|`` before it
rejections          extrapolations rejected in a row
known               points in the window of the moving average
reference           recent norm of the gradient
trust_radius        longest step, in units of the last way between block means
damping             share of a step that is taken
excess, expected    sums over recent steps, fading: slopes after them, and their sizes before
slope               along the pending step, from the gradients before it; < 0
slope_sum           along the last step, over the samples of the block after it
share               of the step that is to be added, where it went beyond the minimum; < 0
noise_ratio         ``|noise|^2`` of a mean gradient over ``|its change|^2``
level_change        by how many powers of two blocks are to become longer: -1, 0 or 1
flags, bool
pending             the parameters are at an extrapolated point that the next step judges
paired              the last pair is one that the next one can be compared with
ready               a point may be extrapolated from here
accepted, declined  it was, or was not
rejected            the step under way began at a point that is to be left for where it came from
nonfinite           the reason is a gradient that is not finite
unsound             the step under way is not finite
lost                the same, by the base optimizer's own doing
restart             the history is to be cleared
write               the parameters are to be moved
oscillates, steady  whether the mean takes the place of the last point, or not
limited             the step would have been longer but for the trust radius
on_line             the block under way began with a step, whose slopes are summed up
beyond              that step went beyond the minimum along it
spoiled, complete   the block under way has a sample that cannot be used, or has none
==================  ===================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .library import DEVICES
from .registry import op

CONTROL = (
    "norm",
    "max_step",
    "reduction",
    "rejections",
    "known",
    "reference",
    "trust_radius",
    "damping",
    "excess",
    "expected",
    "slope",
    "slope_sum",
    "share",
    "noise_ratio",
    "level_change",
)
FLAGS = (
    "pending",
    "paired",
    "ready",
    "accepted",
    "declined",
    "rejected",
    "nonfinite",
    "unsound",
    "lost",
    "restart",
    "write",
    "oscillates",
    "steady",
    "limited",
    "on_line",
    "beyond",
    "spoiled",
    "complete",
)
COUNTS = (
    "pairs",
    "extrapolations",
    "accepted",
    "dropped",
    "shortened",
    "averaged",
    "skipped_nonfinite",
    "skipped_no_gradient",
    "rejected_nonfinite",
    "rejected_residual",
    "rejected_limits",
    "rejected_descent",
    "rejected_loss",
    "rejected_request",
    "restarts_rejections",
    "restarts_moved_outside",
)
PATIENCE = 2  # rejections in a row that clear the history
LEAST_TRUST, MOST_TRUST = 0.25, 1e6
LEAST_DAMPING, GAIN, FORGETTING = 0.02, 0.3, 0.7


@dataclass(eq=False)
class Verdicts:
    """The tensors that the ops here change, and a view of each entry by its name."""

    control: Tensor
    flags: Tensor
    counts: Tensor

    @classmethod
    def on(cls, device: torch.device) -> Verdicts:
        """All zero."""
        return cls(
            torch.zeros(len(CONTROL), dtype=torch.float64, device=device),
            torch.zeros(len(FLAGS), dtype=torch.bool, device=device),
            torch.zeros(len(COUNTS), dtype=torch.int64, device=device),
        )

    def __post_init__(self) -> None:
        self.now = SimpleNamespace(**dict(zip(CONTROL, self.control.unbind(), strict=True)))
        self.when = SimpleNamespace(**dict(zip(FLAGS, self.flags.unbind(), strict=True)))
        self.number = SimpleNamespace(**dict(zip(COUNTS, self.counts.unbind(), strict=True)))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """As the ops take them."""
        return self.control, self.flags, self.counts


def _verdict(arguments: str) -> Any:
    name, _, rest = arguments.partition("(")
    common = "Tensor(a!) control, Tensor(b!) flags, Tensor(c!) counts, "
    return op(f"{name}({common}{rest} -> ()", lambda control, *_: control.device.type in DEVICES)


def _views(control: Tensor, flags: Tensor, counts: Tensor) -> tuple[Any, Any, Any]:
    verdicts = Verdicts(control, flags, counts)
    return verdicts.now, verdicts.when, verdicts.number


def _release(c: Any, f: Any, n: Any, moved: Tensor | None, averages: bool) -> None:
    """Whoever moved the parameters since the last step wants them there: nothing is pending."""
    if moved is None:
        return
    n.dropped += moved & f.pending
    n.restarts_moved_outside += moved & (f.pending | ~f.lost if averages else f.pending)
    c.known.masked_fill_(moved, 1)
    f.pending.masked_fill_(moved, False)


@_verdict("judge_gradient_(Tensor squared_norm, Tensor? moved, float growth, bool averages)")
def judge_gradient_(
    control: Tensor,
    flags: Tensor,
    counts: Tensor,
    squared_norm: Tensor,
    moved: Tensor | None,
    growth: float,
    averages: bool,
) -> None:
    """Reject a pending step whose gradient is not finite, or has grown more than ``growth`` times.

    ``moved``, ``[]`` bool: whether something else has moved the parameters since.
    """
    c, f, n = _views(control, flags, counts)
    _release(c, f, n, moved, averages)
    norm = squared_norm.sqrt()
    f.nonfinite.copy_(f.pending & ~norm.isfinite())
    f.rejected.copy_(f.pending & (norm > growth * c.reference) | f.nonfinite)


@_verdict(
    "judge_residual_(Tensor figures, Tensor? moved, bool guarded, bool stores, bool averages)"
)
def judge_residual_(
    control: Tensor,
    flags: Tensor,
    counts: Tensor,
    figures: Tensor,
    moved: Tensor | None,
    guarded: bool,
    stores: bool,
    averages: bool,
) -> None:
    """Algorithm 1, lines 19 to 24, one step late: the residual must be smaller where a point was
    extrapolated to than where it came from. ``figures`` are those of ``push_secant``.
    """
    c, f, n = _views(control, flags, counts)
    _release(c, f, n, moved, averages)
    norm = figures[1].sqrt()
    sound = norm.isfinite()
    rejected = f.pending & ~(norm < c.norm) & guarded  # NaN is not smaller
    accepted = f.pending & ~rejected & guarded
    lost = ~(sound | rejected)
    rejections = torch.where(accepted, 0, c.rejections + rejected)
    restart = rejections >= PATIENCE
    n.pairs += sound & stores
    n.accepted += accepted
    n.rejected_nonfinite += rejected & ~sound
    n.rejected_residual += rejected & sound
    n.skipped_nonfinite += lost
    n.restarts_rejections += restart
    c.reduction.copy_(torch.where(f.accepted & sound, norm / c.norm, c.reduction))
    c.norm.copy_(norm)
    c.max_step.copy_(torch.where(rejected, c.max_step, figures[0]))
    c.rejections.copy_(rejections * ~restart)
    c.known.copy_((c.known + ~rejected) * ~lost)
    f.paired.copy_((f.paired | (sound & stores)) & ~restart)
    f.ready.copy_(sound & ~rejected & (norm > 0))
    f.pending.zero_()
    f.accepted.zero_()
    f.unsound.copy_(~sound)
    for flag, value in ((f.rejected, rejected), (f.write, rejected), (f.lost, lost)):
        flag.copy_(value)
    f.restart.copy_(restart)


@_verdict("arm_(Tensor possible, Tensor[] passes, int[] causes, bool guarded, bool patient)")
def arm_(
    control: Tensor,
    flags: Tensor,
    counts: Tensor,
    possible: Tensor,
    passes: Sequence[Tensor],
    causes: Sequence[int],
    guarded: bool,
    patient: bool,
) -> None:
    """Accept an extrapolated point, where one is ``possible``, if it ``passes`` all tests.

    ``causes`` are the positions of the tests in ``COUNTS``; the first one that fails is counted.
    If not ``guarded`` a point that is accepted is not judged later. ``patient``: rejections in a
    row clear the history.
    """
    c, f, n = _views(control, flags, counts)
    accepted = ready = f.ready & possible
    for passed, cause in zip(passes, causes, strict=True):
        counts[cause] += accepted & ~passed
        accepted = accepted & passed
    rejections = c.rejections + (ready & ~accepted)
    n.extrapolations += ready
    if not guarded:
        n.accepted += accepted
        rejections = rejections * ~accepted
    if patient:
        restart = rejections >= PATIENCE
        n.restarts_rejections += restart
        f.restart.logical_or_(restart)
        f.paired.logical_and_(~restart)
        rejections = rejections * ~restart
    c.rejections.copy_(rejections)
    f.pending.copy_(accepted & guarded)
    f.accepted.copy_(accepted)
    f.declined.copy_(~accepted)
    f.write.logical_or_(accepted)


@_verdict("average_(Tensor max_std, float threshold, int length)")
def average_(
    control: Tensor, flags: Tensor, counts: Tensor, max_std: Tensor, threshold: float, length: int
) -> None:
    """Eq. 16: the mean takes the place of the last point while ``max sqrt(S) > epsilon max |r|``."""
    c, f, n = _views(control, flags, counts)
    f.oscillates.copy_((max_std > threshold * c.max_step) & (c.known >= length))
    f.steady.copy_(~f.oscillates)
    f.write.logical_or_(f.oscillates)
    n.averaged += f.oscillates


@_verdict("judge_slope_(Tensor figures, bool judges)")
def judge_slope_(
    control: Tensor, flags: Tensor, counts: Tensor, figures: Tensor, judges: bool
) -> None:
    """Take in a sample, and with ``judges`` compare the slopes along a pending step at its ends.

    ``figures`` are those of ``add_sample_``. Beyond the minimum, ``share`` of the step leads back
    to the minimum of the parabola through both slopes.
    """
    c, f, n = _views(control, flags, counts)
    squared_norm, slope = figures.unbind()
    sound = squared_norm.isfinite()
    if judges:
        stands = f.pending & ~f.rejected
        n.accepted += stands
        n.rejected_nonfinite += f.nonfinite
        n.rejected_residual += f.rejected & ~f.nonfinite
        f.beyond.copy_(stands & (c.slope < 0) & (slope > -c.slope))
        longer = stands & (slope < -c.slope / 2) & f.limited
        n.shortened += f.beyond
        c.share.copy_(torch.where(f.beyond, c.slope / (c.slope - slope) - 1, 0.0))
        less = c.trust_radius * torch.where(f.rejected, 0.25, 0.5)
        more = (2 * c.trust_radius).clamp_max(MOST_TRUST)
        radius = torch.where(longer, more, c.trust_radius)
        shrunk = f.rejected | f.beyond
        c.trust_radius.copy_(torch.where(shrunk, less.clamp_min(LEAST_TRUST), radius))
        f.on_line.copy_(stands)
        c.slope_sum.zero_()
    spoilt = ~sound | f.rejected
    n.skipped_nonfinite += ~(sound | f.rejected)
    c.slope_sum.copy_(torch.where(spoilt, math.nan, c.slope_sum + slope))
    recent = torch.maximum(squared_norm.sqrt(), 0.9 * c.reference)
    c.reference.copy_(torch.where(spoilt, c.reference, recent))
    f.spoiled.logical_or_(spoilt)
    f.complete.copy_(~f.spoiled)
    f.pending.zero_()
    f.rejected.zero_()
    f.nonfinite.zero_()


@_verdict("learn_(int samples, Tensor change, Tensor noise, int noise_slot, int level)")
def learn_(
    control: Tensor,
    flags: Tensor,
    counts: Tensor,
    samples: int,
    change: Tensor,
    noise: Tensor,
    noise_slot: int,
    level: int,
) -> None:
    """At the end of a block: how much of a step to take, and how long blocks are to be.

    The slope before a step is what noise and the choice of the direction make of it; that after it,
    the mean over the next block, is measured with new samples. Where steps go uphill, as they do at
    the noise floor, it is positive, and where they could be longer it is negative. Blocks become
    longer while steps go too far because of noise, shorter while all is well; a noise of .3 is much
    (1/2 is all), but what looks like noise may be an oscillation, which does no harm.

    Args:
        samples: in the block.
        change: ``[S]`` float64 ``|change of the mean gradient|^2``, 0 after the first block.
        noise: ``[S, J]`` float64 ``|noise|^2`` of the last J blocks; J may be 0.
        noise_slot: where the block's own is.
        level: of the length of blocks, 0 for the usual one.
    """
    c, f, n = _views(control, flags, counts)
    after = c.slope_sum / samples
    known = f.on_line & (c.slope < 0) & after.isfinite()
    excess = FORGETTING * c.excess + torch.minimum(after, -3 * c.slope)
    expected = FORGETTING * c.expected - c.slope
    damping = c.damping * (-GAIN * (excess / expected).clamp_min(-1)).exp()
    c.excess.copy_(torch.where(known, excess, c.excess))
    c.expected.copy_(torch.where(known, expected, c.expected))
    c.damping.copy_(torch.where(known, damping.clamp(LEAST_DAMPING, 1), c.damping))
    if noise.shape[1]:
        total, both = change.sum(), noise[:, noise_slot].sum() + noise[:, noise_slot - 1].sum()
        ratio = torch.where(total > 0, both / 2 / total, math.inf)
        ratio = torch.where(f.complete, ratio, c.noise_ratio)
        c.noise_ratio.copy_(ratio)
        whole = c.damping > 0.95
        longer = c.damping < 0.8 if level < 0 else (ratio > 0.3) & (c.damping < 0.7)
        shorter = (ratio < 0.1) | whole if level > 0 else (ratio < 0.01) & whole
        c.level_change.copy_(torch.where(longer, 1.0, -(shorter.double())))
    n.pairs += f.complete
    f.ready.copy_(f.complete)
    f.paired.logical_or_(f.complete)
    f.spoiled.zero_()
    f.on_line.zero_()
