"""Norms, verdicts and counters of a step, which stay on the device.

No line of the iteration reads one: an op judges, others write only where one of its flags is true.

The three tensors of :class:`Verdicts` are changed in place by all ops here. An entry means:

==================  ==============================================================================
control, float64
norm                ``|r / rate|`` of the last step (Eq. 3)
max_step            ``max |r|`` of the last step that was not rejected
reduction           ``|r|`` after the last extrapolation over ``|r|`` before; NaN for none yet
rejections          extrapolations rejected in a row
known               points in the window of the moving average
reference           recent norm of the gradient
trust_radius        longest step, in units of the last way between block means
damping             share of a step that is taken
excess, expected    sums over recent steps, fading: slopes after them, and their sizes before
slope               along the pending step, from the gradients before it; < 0
slope_sum           along the last step, over the samples of the block after it
share               of the step that is too much, where it went beyond the minimum
noise_ratio         ``|noise|^2`` of a mean gradient over ``|its change|^2``
roughness           ``|noise|^2`` of a gradient over its recent ``|g|^2``
level_change        by how many powers of two blocks are to become longer: -1, 0 or 1
tries               points in a row that were rejected along one quasi-Newton direction
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
exact               gradients repeat: steps are quasi-Newton's
held                the parameters stay, so that the next gradient has to be the same
anew                a new direction is to be taken
==================  ==============================================================================
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..buffers import zeros
from .registry import op, seen

CONTROL = tuple(
    """
    norm max_step reduction rejections known reference trust_radius damping excess expected
    slope slope_sum share noise_ratio roughness level_change tries
    """.split()
)
FLAGS = tuple(
    """
    pending paired ready accepted declined rejected nonfinite unsound lost restart write
    oscillates steady limited on_line beyond spoiled complete exact held anew
    """.split()
)
COUNTS = tuple(
    """
    pairs extrapolations accepted dropped shortened averaged skipped_nonfinite
    skipped_no_gradient rejected_nonfinite rejected_residual rejected_limits
    rejected_descent rejected_loss rejected_request restarts_rejections
    restarts_moved_outside
    """.split()
)
PATIENCE = 2  # rejections in a row that clear the history
LEAST_TRUST, MOST_TRUST = 0.25, 1e6
LEAST_DAMPING, GAIN, FORGETTING = 0.02, 0.3, 0.7
REPEATS = 1e-4  # relative; gradients at one point that differ less are the same
STEEP = 0.9  # slope uphill after a quasi-Newton step over that downhill before it
TRIES = 6  # points along one direction


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
            zeros((len(CONTROL),), torch.float64, device),
            zeros((len(FLAGS),), torch.bool, device),
            zeros((len(COUNTS),), torch.int64, device),
        )

    def __post_init__(self) -> None:
        self.now = SimpleNamespace(**dict(zip(CONTROL, self.control.unbind(), strict=True)))
        self.when = SimpleNamespace(**dict(zip(FLAGS, self.flags.unbind(), strict=True)))
        self.number = SimpleNamespace(**dict(zip(COUNTS, self.counts.unbind(), strict=True)))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """As the ops take them."""
        return self.control, self.flags, self.counts


Numbers = SimpleNamespace  # of floats, bools and counts: Python's where the host sees them anyway,
Number = Any  # else 0-dim tensors; the definitions below are the same for both


def _verdict(arguments: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a definition over the numbers that the tensors hold."""
    name, _, rest = arguments.partition("(")
    schema = f"{name}(Tensor(a!) control, Tensor(b!) flags, Tensor(c!) counts, {rest} -> ()"

    def register(definition: Callable[..., None]) -> Callable[..., None]:
        @op(schema, infinite=("growth", "threshold"))
        @functools.wraps(definition)
        def judge(control: Tensor, flags: Tensor, counts: Tensor, *others: Any) -> None:
            held = (CONTROL, control), (FLAGS, flags), (COUNTS, counts)
            numbers = [Numbers(**dict(zip(x, _numbers(y), strict=True))) for x, y in held]
            definition(*numbers, *others)
            for (names, tensor), values in zip(held, numbers, strict=True):
                tensor.copy_(_vector([getattr(values, x) for x in names], tensor))

        return judge

    return register


def _numbers(tensor: Tensor) -> list[Number]:
    flat = tensor.flatten()
    return flat.tolist() if seen(tensor) else list(flat.unbind())


def _vector(numbers: list[Number], like: Tensor) -> Tensor:
    if seen(like):
        return torch.tensor(numbers, dtype=like.dtype, device=like.device)
    return torch.stack([torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in numbers])


def _not(flag: Number) -> Number:
    return flag ^ True


def _where(flag: Number, yes: Number, no: Number) -> Number:
    if isinstance(flag, Tensor):
        return torch.where(flag, yes, no)
    return yes if flag else no


def _larger(one: Number, other: Number) -> Number:
    """The second if they cannot be compared."""
    return _where(one > other, one, other)


def _smaller(one: Number, other: Number) -> Number:
    """The second if they cannot be compared."""
    return _where(one < other, one, other)


def _finite(x: Number) -> Number:
    return x - x == 0


def _repeats(change: Number, squared_norm: Number) -> Number:
    """Whether a gradient is that of another step, by the squared norm of their difference."""
    return _finite(squared_norm) & (change <= REPEATS**2 * squared_norm)


def _root(x: Number) -> Number:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def _ratio(one: Number, other: Number) -> Number:
    """0 for a denominator of 0."""
    zero = other == 0
    return _where(zero, 0.0, one / _where(zero, 1.0, other))


def _release(c: Numbers, f: Numbers, n: Numbers, moved: Tensor | None, averages: bool) -> None:
    """Whoever moved the parameters since the last step wants them there: nothing is pending."""
    if moved is None:
        return
    (away,) = _numbers(moved)
    watched = f.pending | _not(f.lost) if averages else f.pending
    n.dropped = n.dropped + (away & f.pending)
    n.restarts_moved_outside = n.restarts_moved_outside + (away & watched)
    c.known = _where(away, 1.0, c.known)
    f.pending = f.pending & _not(away)


@_verdict("judge_gradient_(Tensor figures, Tensor? moved, float growth, bool averages)")
def judge_gradient_(
    c: Numbers,
    f: Numbers,
    n: Numbers,
    figures: Tensor,
    moved: Tensor | None,
    growth: float,
    averages: bool,
) -> None:
    """Judge a pending step by the gradient where it has led.

    It is rejected if that is not finite, has grown more than ``growth`` times, or if the loss grows
    there along the way from the base step: it went beyond the minimum.

    Args:
        figures: ``[1]`` float64, squared norm of the gradient; or ``[3]``, besides its products
            with the point and with that of the base step: their difference is the slope.
        moved: ``[]`` bool, whether something else has moved the parameters since; None for no.
        growth: of the norm of the gradient over its recent one.
        averages: whether there is a moving average.
    """
    _release(c, f, n, moved, averages)
    squared_norm, *ends = _numbers(figures)
    norm = _root(squared_norm)
    f.nonfinite = f.pending & _not(_finite(norm))
    f.rejected = f.pending & (norm > growth * c.reference) | f.nonfinite
    if ends:
        f.rejected = f.rejected | f.pending & _not(ends[0] <= ends[1])


@_verdict(
    "judge_residual_(Tensor figures, Tensor? moved, bool compares, bool stores, bool averages)"
)
def judge_residual_(
    c: Numbers,
    f: Numbers,
    n: Numbers,
    figures: Tensor,
    moved: Tensor | None,
    compares: bool,
    stores: bool,
    averages: bool,
) -> None:
    """Algorithm 1, lines 19 to 24, one step late: the residual must be smaller where a point was
    extrapolated to than where it came from, if ``compares``; and the step must be finite, which one
    that ``judge_gradient_`` has rejected is not. ``figures`` are those of ``push_secant``.
    """
    _release(c, f, n, moved, averages)
    max_step, squared_norm, *_ = _numbers(figures)
    norm = _root(squared_norm)
    sound = _finite(norm)
    before = f.rejected & _not(f.nonfinite)  # by the gradient
    larger = _not(norm < c.norm)  # or NaN
    f.rejected = f.pending & (larger & compares | _not(sound))
    accepted = f.pending & _not(f.rejected)
    f.lost = _not(sound | f.rejected)
    rejections = _where(accepted, 0.0, c.rejections + f.rejected)
    f.restart = rejections >= PATIENCE
    n.pairs = n.pairs + (sound & stores)
    n.accepted = n.accepted + accepted
    n.rejected_nonfinite = n.rejected_nonfinite + (f.rejected & _not(sound | before))
    n.rejected_descent = n.rejected_descent + (f.rejected & _not(sound) & before)
    n.rejected_residual = n.rejected_residual + (f.rejected & sound)
    n.skipped_nonfinite = n.skipped_nonfinite + f.lost
    n.restarts_rejections = n.restarts_rejections + f.restart
    c.reduction = _where(f.accepted & sound, _ratio(norm, c.norm), c.reduction)
    c.norm = norm
    c.max_step = _where(f.rejected, c.max_step, max_step)
    c.rejections = _where(f.restart, 0.0, rejections)
    c.known = _where(f.lost, 0.0, c.known + _not(f.rejected))
    f.paired = (f.paired | (sound & stores)) & _not(f.restart)
    f.ready = sound & _not(f.rejected) & (norm > 0)
    f.unsound = _not(sound)
    f.write = f.rejected
    f.pending = f.accepted = False


@_verdict("arm_(Tensor possible, Tensor[] passes, int[] causes, bool guarded, bool patient)")
def arm_(
    c: Numbers,
    f: Numbers,
    n: Numbers,
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
    f.accepted = ready = f.ready & _numbers(possible)[0]
    for passed, cause in zip(passes, causes, strict=True):
        passes_it, name = _numbers(passed)[0], COUNTS[cause]
        setattr(n, name, getattr(n, name) + (f.accepted & _not(passes_it)))
        f.accepted = f.accepted & passes_it
    n.extrapolations = n.extrapolations + ready
    c.rejections = c.rejections + (ready & _not(f.accepted))
    if not guarded:
        n.accepted = n.accepted + f.accepted
        c.rejections = _where(f.accepted, 0.0, c.rejections)
    if patient:
        restart = c.rejections >= PATIENCE
        n.restarts_rejections = n.restarts_rejections + restart
        f.restart = f.restart | restart
        f.paired = f.paired & _not(restart)
        c.rejections = _where(restart, 0.0, c.rejections)
    f.pending = f.accepted & guarded
    f.declined = _not(f.accepted)
    f.write = f.write | f.accepted


@_verdict("average_(Tensor max_std, float threshold, int length)")
def average_(
    c: Numbers, f: Numbers, n: Numbers, max_std: Tensor, threshold: float, length: int
) -> None:
    """Eq. 16: the mean replaces the last point while ``max sqrt(S) > epsilon max |r|``."""
    spread = _numbers(max_std)[0]
    f.oscillates = (spread > threshold * c.max_step) & (c.known >= length)
    f.steady = _not(f.oscillates)
    f.write = f.write | f.oscillates
    n.averaged = n.averaged + f.oscillates


@_verdict("judge_slope_(Tensor figures, bool judges)")
def judge_slope_(c: Numbers, f: Numbers, n: Numbers, figures: Tensor, judges: bool) -> None:
    """Take in a sample, and with ``judges`` compare the slopes along a pending step at its ends.

    ``figures`` are those of ``add_sample_``. Beyond the minimum, a ``share`` of the step
    less is the minimum of the parabola through both slopes.
    """
    squared_norm, slope = _numbers(figures)
    sound = _finite(squared_norm)
    if judges:
        stands = f.pending & _not(f.rejected)
        f.beyond = stands & (c.slope < 0) & (slope > -c.slope)
        n.accepted = n.accepted + stands
        n.rejected_nonfinite = n.rejected_nonfinite + f.nonfinite
        n.rejected_residual = n.rejected_residual + (f.rejected & _not(f.nonfinite))
        n.shortened = n.shortened + f.beyond
        c.share = _where(f.beyond, 1 - _ratio(c.slope, c.slope - slope), 0.0)
        less = c.trust_radius * _where(f.rejected, 0.25, 0.5)
        longer = stands & (slope < -c.slope / 2) & f.limited
        radius = _where(longer, _smaller(2 * c.trust_radius, MOST_TRUST), c.trust_radius)
        c.trust_radius = _where(f.rejected | f.beyond, _larger(less, LEAST_TRUST), radius)
        f.on_line = stands
        c.slope_sum = 0.0
    spoilt = f.rejected | _not(sound)
    n.skipped_nonfinite = n.skipped_nonfinite + _not(sound | f.rejected)
    c.slope_sum = _where(spoilt, math.nan, c.slope_sum + slope)
    recent = _larger(_root(squared_norm), 0.9 * c.reference)
    c.reference = _where(spoilt, c.reference, recent)
    f.spoiled = f.spoiled | spoilt
    f.complete = _not(f.spoiled)
    f.pending = f.rejected = f.nonfinite = False


@_verdict("learn_(int samples, Tensor change, Tensor noise, int noise_slot, int level)")
def learn_(
    c: Numbers,
    f: Numbers,
    n: Numbers,
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
    after = c.slope_sum / samples
    known = f.on_line & (c.slope < 0) & _finite(after)
    excess = FORGETTING * c.excess + _smaller(after, -3 * c.slope)
    expected = FORGETTING * c.expected - c.slope
    power = -GAIN * _larger(_ratio(excess, expected), -1.0)
    damping = c.damping * (power.exp() if isinstance(power, Tensor) else math.exp(power))
    damping = _smaller(_larger(damping, LEAST_DAMPING), 1.0)
    c.excess = _where(known, excess, c.excess)
    c.expected = _where(known, expected, c.expected)
    c.damping = _where(known, damping, c.damping)
    if noise.shape[1]:
        (total,) = _numbers(change.sum())
        now, before = _numbers(noise[:, [noise_slot, noise_slot - 1]].sum(dim=0))
        samples_of_it = (now > 0) * 1 + (before > 0) * 1  # a block that was dropped has none
        mean = (now + before) / _larger(samples_of_it, 1)
        ratio = _where(total > 0, _ratio(mean, total), math.inf)
        c.noise_ratio = ratio = _where(f.complete, ratio, c.noise_ratio)
        c.roughness = _where(f.complete, _ratio(samples * now, c.reference * c.reference), math.inf)
        whole = c.damping > 0.95
        longer = c.damping < 0.8 if level < 0 else (ratio > 0.3) & (c.damping < 0.7)
        shorter = (ratio < 0.1) | whole if level > 0 else (ratio < 0.01) & whole
        change_of_level = _where(longer, 1.0, _where(shorter, -1.0, 0.0))
        c.level_change = _where(f.complete, change_of_level, 0.0)
    n.pairs = n.pairs + f.complete
    f.ready = f.complete
    f.paired = f.paired | f.complete
    f.spoiled = f.on_line = False


@_verdict("compare_(Tensor squared_norm, Tensor change)")
def compare_(c: Numbers, f: Numbers, n: Numbers, squared_norm: Tensor, change: Tensor) -> None:
    """Whether a gradient repeats: ``change`` is the squared norm of its difference to another.

    One that is not finite does not.
    """
    f.exact = _repeats(_numbers(change)[0], _numbers(squared_norm)[0])


@_verdict(
    "judge_line_(Tensor figures, Tensor change, Tensor? moved, Tensor base, float growth, "
    "bool hold)"
)
def judge_line_(
    c: Numbers,
    f: Numbers,
    n: Numbers,
    figures: Tensor,
    change: Tensor,
    moved: Tensor | None,
    base: Tensor,
    growth: float,
    hold: bool,
) -> None:
    """Judge the point of a quasi-Newton step by its gradient.

    It is left, for a point nearer to where the step began, if its gradient is not finite, has grown
    more than ``growth`` times, or its slope rises nearly as steeply as it fell before; after
    ``TRIES`` of these for another direction. Quasi-Newton steps end where the gradient does not
    repeat, and where something else has moved the parameters.

    Args:
        figures: ``[2]`` float64, squared norm of the gradient and its slope along the step.
        change: ``[]`` float64, ``|gradient - that where the step began|^2``.
        moved: ``[]`` bool, whether something else has moved the parameters; None for no.
        base: ``[]`` bool, whether the step was the base optimizer's, which may rise.
        growth: of the norm of the gradient over its recent one.
        hold: whether to stay a step at a point that is good, to see whether the gradient repeats.
    """
    waits, held = f.pending, f.held
    _release(c, f, n, moved, False)
    squared_norm, slope = _numbers(figures)
    norm = _root(squared_norm)
    sound = _finite(squared_norm)
    repeats = _repeats(_numbers(change)[0], squared_norm)
    exact = f.exact & (f.pending | _not(waits)) & (repeats | _not(held)) & (sound | f.pending)
    judged = exact & f.pending & _not(held)
    (by_base,) = _numbers(base)
    low = (slope <= STEEP * abs(c.slope)) | by_base
    good = judged & sound & low & (norm <= growth * c.reference)
    bad = judged & _not(good)
    taken = good & _not(by_base)
    n.accepted = n.accepted + taken
    n.shortened = n.shortened + (taken & (c.tries > 0))
    tries = _where(bad, c.tries + 1, _where(judged, 0.0, c.tries))
    f.rejected = tries > TRIES
    c.tries = _where(f.rejected, 0.0, tries)
    n.rejected_residual = n.rejected_residual + (f.rejected & sound)
    n.rejected_nonfinite = n.rejected_nonfinite + (f.rejected & _not(sound))
    n.skipped_nonfinite = n.skipped_nonfinite + _not(sound | f.pending)
    f.complete = sound & f.paired
    f.ready = exact & (good | _not(f.pending))
    f.anew = f.ready | exact & f.rejected
    back = exact & bad & _not(f.rejected)
    less = _larger(_smaller(_ratio(c.slope, c.slope - slope), 0.9), 0.05)
    c.share = _where(f.anew, 0.0, _where(back, _where(sound, less, 0.1), 1.0))
    f.held = exact & (back & (c.tries == 2) | f.ready & hold)
    recent = _larger(norm, 0.9 * c.reference)
    c.reference = _where(f.ready & _not(by_base), recent, c.reference)
    n.pairs = n.pairs + (exact & f.complete)
    f.exact = exact


@_verdict("take_line_(Tensor slope, Tensor moves, Tensor fits, Tensor base)")
def take_line_(
    c: Numbers, f: Numbers, n: Numbers, slope: Tensor, moves: Tensor, fits: Tensor, base: Tensor
) -> None:
    """Whether to go on along a direction; to stay where it leads nowhere.

    Args:
        slope: ``[]`` float64, along it, where it begins.
        moves: ``[]`` bool, whether its end is another point.
        fits: ``[]`` bool, whether that is one that the parameters may take; else
            quasi-Newton steps end.
        base: ``[]`` bool, whether it is the base optimizer's step.
    """
    c.slope, by_base = _numbers(slope)[0], _numbers(base)[0]
    descends = c.slope < 0
    exact = f.exact & _numbers(fits)[0]
    f.held = exact & (f.held | _not(descends & _numbers(moves)[0] | by_base))
    f.declined = f.held | f.exact & _not(exact | f.ready)
    f.accepted = exact
    f.write = exact | f.declined
    n.extrapolations = n.extrapolations + (exact & f.anew & descends & _not(by_base))
    f.paired = f.paired | f.ready
    f.exact = f.pending = exact
    f.rejected = False
