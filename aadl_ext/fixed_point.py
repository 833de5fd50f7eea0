"""Fixed points x = f(x) of a batch of samples, by Anderson acceleration.

x         point of each sample, f(x) = y, and r = y - x             rows of ``[B, n]``
W, R      differences of stored x and r; rows hold W + R and R      ``history``
gamma     coefficients of each sample: least |r - R gamma|, or W (r - R gamma) = 0
x^{k+1}   x - W gamma + beta (r - R gamma)

A sample is a segment of the flat vector, so the optimizer's history and ops do a batch as they do
parameter tensors. What is known of a sample are entries of ``[B]`` tensors: nothing is read on the
host between checks. A sample that has ended is kept where it is by f(x) = x, one that goes back by
its last pair; so no number that is not finite gets into the history.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass, tree_leaves

from . import buffers, implicit, ops, transforms
from .buffers import zeros
from .ops.judge_fixed_points import CONVERGED, DIVERGED, RUNNING
from .ops.registry import asked, in_transform
from .options import AndersonMixing
from .safeguards import MAX_WAY
from .samples import Map, Samples, as_arrays, as_tensors, takes_arrays
from .secant_history import SecantHistory
from .type_one import GalerkinProducts

REASONS = ("max_steps", "converged", "diverged", "stagnated")  # one that runs has had all its steps
PATIENCE, PROGRESS = 100, 0.999  # evaluations in which the residual has to fall below this share
MAX_COEFFICIENTS = 1e10  # largest sum of magnitudes, so that points are numbers
FORGOTTEN = 1e300  # |error|^2 of a row that is to have no part in a solution
ELSEWHERE = 8  # steps between two checks on a device that the host would wait for


@dataclass(frozen=True)
class FixedPoint:
    """What :func:`fixed_point` has found.

    Attributes:
        solution: the visited point of least residual of each sample, in the structure of x0.
        residual: ``[*batch]`` float64 ``|f(x) - x|`` there; infinite if f was never finite.
        steps: ``[*batch]`` int64, evaluations of f until the sample ended.
        status: ``[*batch]`` uint8, index into ``REASONS``.
    """

    solution: Any
    residual: Any
    steps: Any
    status: Any

    @property
    def converged(self) -> Any:
        """``[*batch]`` bool."""
        return self.status == CONVERGED

    @property
    def reason(self) -> Any:
        """Why each sample ended, a name or nested lists of them; waits for the device.

        "converged"; "diverged": f is not finite, or too large to be squared, after a plain step;
        "stagnated": the residual has not fallen by a thousandth in 100 evaluations; "max_steps".
        """
        return _named(self.status.tolist())


register_dataclass(FixedPoint)  # a pytree, so that transforms may return it


def _named(status: Any) -> Any:
    return [_named(x) for x in status] if isinstance(status, list) else REASONS[status]


def fixed_point(
    f: Map,
    x0: Any,
    *,
    method: AndersonMixing | None = None,
    tol: float = 1e-5,
    abs_tol: float = 1e-8,
    max_steps: int = 200,
    batch_dims: int = 1,
    check_every: int | None = None,
    capture: bool = False,
    gradient: str | None = "implicit",
    gradient_terms: int = 5,
) -> FixedPoint:
    """Solve x = f(x) for each sample of a batch, with a history and an end of its own.

    A sample has converged when ``|f(x) - x| <= abs_tol + tol |f(x)|`` (Euclidean norms). It moves
    no more then, whatever becomes of others.

    Gradients flow to all that f depends on, x0 excepted, and no graph is kept of the iterations:

    - "implicit": the adjoint equation ``u = g + J' u`` is solved by the same method and
      tolerances; exact at a fixed point.
    - "truncated": ``gradient_terms`` terms of its Neumann series; one ignores the Jacobian.
    - "phantom": through ``gradient_terms`` damped plain steps from the solution, which is where
      they end (Geng et al. 2021). Only these can be differentiated again with ``create_graph``.
    - None: none.

    Transforms of ``torch.func`` may be within f and around the call; ``vmap`` maps over samples.

    Args:
        f: takes a pytree like x0 and returns one. It must treat samples apart from each other and
            must not change its argument, whose memory is used again: clone what is to be kept.
        x0: a tensor ``[*batch, ...]`` or a pytree of them, float64, float32, bfloat16, float16 or
            complex. Or NumPy arrays; f takes and returns arrays then, there are no gradients, and
            the result is made of arrays.
        method: :class:`AndersonMixing`; None for its defaults.
        tol: relative tolerance.
        abs_tol: absolute tolerance.
        max_steps: most evaluations of f, at least 1. Gradients take one more.
        batch_dims: leading dimensions of x0 that count samples; 0: one sample.
        check_every: steps after which the host asks whether all samples have ended. None: 1 on the
            CPU, 8 elsewhere.
        capture: whether to replay a CUDA graph of some steps, so many that the history comes round,
            which launches them at once; the host asks after each. The first steps run without.
            For f of few and small kernels, which a graph must be able to hold. Not with kind "I".
        gradient: see above.
        gradient_terms: of "truncated" and "phantom", at least 1.

    Returns:
        :class:`FixedPoint`.

    Raises:
        ValueError: an argument is out of range, x0 is not where it can be captured, f returns
            another structure, shape or kind of number than x0, or changes its argument in place.
    """
    method = method or AndersonMixing()
    _check(method, tol, abs_tol, max_steps, check_every, gradient, gradient_terms)
    if capture and (method.kind == "I" or check_every is not None):
        raise ValueError('capture=True goes neither with kind "I" nor with check_every')
    again = functools.partial(
        fixed_point,
        method=method,
        tol=tol,
        max_steps=max_steps,
        check_every=check_every,
        gradient_terms=gradient_terms,
    )
    if any(isinstance(leaf, (np.ndarray, np.generic)) for leaf in tree_leaves(x0)):
        solve = functools.partial(again, abs_tol=abs_tol, batch_dims=batch_dims, gradient=None)
        found: FixedPoint = as_arrays(solve(takes_arrays(f), as_tensors(x0), capture=capture))
        return found
    if in_transform():
        attaches = transforms.differentiates() and gradient is not None
        below = None if attaches and gradient == "phantom" else gradient
        solve = functools.partial(again, abs_tol=abs_tol, capture=capture, gradient=below)
        found = transforms.solve_below(solve, f, x0, batch_dims)
    else:
        attaches = gradient is not None
        samples = Samples.of(x0, batch_dims)
        every = check_every or (1 if samples.device.type == "cpu" else ELSEWHERE)
        found = _solve(f, samples, x0, method, (tol, abs_tol), max_steps, every, capture)
    if not attaches or not torch.is_grad_enabled():
        return found

    def adjoint(h: Map, g: Any) -> Any:
        found = again(h, g, abs_tol=0.0, batch_dims=batch_dims)
        missed = int((transforms.bare(found.status) != CONVERGED).sum())
        if missed:
            warnings.warn(
                f"the adjoint equation did not converge for {missed} samples: their gradients are "
                'inexact; allow more max_steps, or take gradient="truncated" or "phantom"',
                RuntimeWarning,
                stacklevel=2,
            )
        return found.solution

    if gradient == "phantom":
        solution = implicit.phantom(f, found.solution, gradient_terms, method.relaxation)
    else:
        solver = adjoint if gradient == "implicit" else implicit.truncated(gradient_terms)
        solution = implicit.attach(f, found.solution, solver)
    return replace(found, solution=solution)


def _solve(
    f: Map,
    samples: Samples,
    x0: Any,
    method: AndersonMixing,
    tolerances: tuple[float, float],
    max_steps: int,
    every: int,
    capture: bool,
) -> FixedPoint:
    """Iterate, without gradients."""
    if 0 in samples.shape:
        none = torch.zeros(samples.batch, dtype=torch.int64, device=samples.device)
        return FixedPoint(x0, none.double(), none, none.to(torch.uint8) + CONVERGED)
    it = Iteration.empty(samples, method, *tolerances, samples.rows(x0))
    if samples.device.type == "cpu":
        buffers.keep_freed()
    graph, recording = buffers.new_graph(samples.device) if capture else (None, None)
    cycle = every = it.cycle if capture else every
    with torch.no_grad():
        while it.k < max_steps:
            if graph is None or it.k < cycle or it.k + cycle > max_steps:
                it.step(it.evaluate(f))
            elif recording is None:
                graph.replay()
                it.k += cycle
            else:
                with recording:  # the host takes these steps, the device does not
                    for _ in range(cycle):
                        it.step(it.evaluate(f))
                recording = None
                graph.replay()
            if it.k % every == 0 and not it.check(narrow=not capture):
                break
    figures = (x.view(samples.batch) for x in (it.residuals[0], it.counts[1], it.status))
    return FixedPoint(samples.tree(it.solution), *figures)


def _check(
    method: Any, tol: Any, abs_tol: Any, max_steps: Any, check_every: Any, gradient: Any, terms: Any
) -> None:
    if not isinstance(method, AndersonMixing):
        raise ValueError(f"method is {method!r}; pass an AndersonMixing(...)")
    for name, value in (("tol", tol), ("abs_tol", abs_tol)):
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value!r}; it must be a number >= 0")
    counts = {"max_steps": max_steps, "check_every": check_every, "gradient_terms": terms}
    for name, value in counts.items():
        if name == "check_every" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be an integer >= 1")
    if gradient not in (None, *implicit.GRADIENTS):
        allowed = ", ".join(map(repr, implicit.GRADIENTS))
        raise ValueError(f"gradient is {gradient!r}; choose one of {allowed}, or None")


@dataclass(eq=False)
class Iteration:
    """``evaluate`` gives y = f(x), ``step`` moves x on; what changes is changed in place."""

    samples: Samples
    options: AndersonMixing
    tolerances: tuple[float, float]  #: relative, absolute
    rates: tuple[float]  #: one, of all
    history: SecantHistory
    products: GalerkinProducts | None  #: of type I
    best: Tensor  #: [B, n] point of least residual, unless that is the last stored one
    residuals: Tensor  #: [3, B] of the best point, the last stored pair, the last progress
    counts: Tensor  #: [2, B] int64 steps since then, and all
    status: Tensor  #: [B] uint8
    flags: Tensor  #: [2, B] bool, whether the best point is the stored one, and x extrapolated
    none: Tensor  #: [B, m] float64 coefficients of a plain step
    lengths: Tensor | None  #: [B, m] of the rows of steps, 0 for those forgotten; for "limits"
    busy: Tensor | None = None  #: samples that ran at the last check; None for all
    k: int = 0

    @classmethod
    def empty(
        cls, samples: Samples, options: AndersonMixing, tol: float, abs_tol: float, start: Tensor
    ) -> Iteration:
        """Allocate all buffers; ``start`` is ``[B, n]``."""
        layout, (count, _) = samples.layout(), samples.shape
        verdicts = ops.Verdicts.on(samples.device)
        verdicts.when.ready.fill_(True)
        history = SecantHistory.empty(layout, options.per_sample(), verdicts)
        sound = _norms(start) <= _limit(start)
        history.pair[0].copy_(torch.where(sound[:, None], start, 0.0).view(-1))
        tests = options.safeguard or ()
        return cls(
            samples,
            options,
            (tol, abs_tol),
            (1.0,),
            history,
            products=GalerkinProducts.empty(history) if options.kind == "I" else None,
            best=start.clone(),
            residuals=zeros((3, count), torch.float64, samples.device).add_(math.inf),
            counts=zeros((2, count), torch.int64, samples.device),
            status=(~sound).to(torch.uint8) * DIVERGED,
            flags=zeros((2, count), torch.bool, samples.device),
            none=layout.matrices(options.history_depth),
            lengths=layout.matrices(options.history_depth) if "limits" in tests else None,
        )

    # ---- the iteration ----------------------------------------------------------------------

    def evaluate(self, f: Map) -> Tensor:
        """``[B, n]`` f(x); x becomes what the leaves can hold of it."""
        x, samples = self.x, self.samples
        point = samples.tree(x)
        if self.history.layout.rounds:
            x.copy_(samples.rows(point))
        version = x._version
        y = samples.rows(f(point))
        if x._version != version:
            raise ValueError("f changes its argument in place; let it return new tensors")
        return y

    def step(self, y: Tensor) -> None:
        """From x and f(x) to the next x."""
        o, h = self.options, self.history
        y, size, sound = self._hold(y)
        begun, stores = h.begun, o.history_depth > 0 and self.k % o.store_each_nth == 0
        slot = h.slot if begun and stores else -1
        self.k += 1
        due = begun and self.k % o.frequency == 0
        h.push(y.view(-1), self.rates, stores, due)
        x, residual = h.pair
        if self.lengths is not None and slot >= 0:
            self.lengths[:, slot] = _norms(self._rows(h.step_rows[slot]))
        if h.systems is not None and (stores or due):
            norm = h.systems[:, -1, -1].sqrt()
        else:
            norm = _norms(self._rows(residual))
        y, back = self._judge(y, size, norm, sound, stores)
        if self.products:
            self.products.push(slot, residual)
        gamma = self._coefficients(residual, due, back)
        if stores:
            h.keep()
            h.verdicts.when.paired.fill_(True)
        after = h.pair[0]
        h.extrapolate_(after, x, y.view(-1), gamma, self.rates)
        if o.relaxation != 1:  # rows hold W + R
            live = slice(h.live_rows)
            rows, less = h.residual_rows[live], gamma[:, live] * (o.relaxation - 1)
            ops.extrapolate_(after, after, after, 1.0, rows, less, h.layout.offsets)
        if self.lengths is not None and due:
            self._limit_way(after, torch.lerp(x, y.view(-1), o.relaxation))
        if o.restart_each_nth and self.k % o.restart_each_nth == 0:
            h.clear()
            h.verdicts.when.restart.zero_()
            if self.lengths is not None:
                self.lengths.zero_()

    def _limit_way(self, after: Tensor, plain: Tensor) -> None:
        """Take the plain step where the way from it is long beside what the columns have seen."""
        assert self.lengths is not None
        after, plain = self._rows(after), self._rows(plain)
        short = _norms(after - plain) <= MAX_WAY * self.lengths.sum(dim=1)
        if asked((~short).any()):
            torch.where(short[:, None], after, plain, out=after)
        self.extrapolated.logical_and_(short)

    def _hold(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, n]`` y, x for samples that have ended or where f is no number; |y|; where it is."""
        x, limit = self.x, _limit(y)
        size = _norms(y)
        sound = size <= limit  # NaN is not
        if self.history.layout.rounds:  # what is too large for a leaf
            sound &= _norms(x) <= limit
            x.nan_to_num_(0.0, 0.0, 0.0)
        moves = self.running & sound
        if asked((~moves).any()):
            y = torch.where(moves[:, None], y, x)
        return y, size, sound

    def _judge(
        self, y: Tensor, size: Tensor, norm: Tensor, sound: Tensor, stores: bool
    ) -> tuple[Tensor, Tensor]:
        """Who has ended; the best points. Returns y that keeps those in place, and who goes back.

        ``size``, ``norm``: ``[B]`` |y|, |r|.
        """
        h, (tol, abs_tol) = self.history, self.tolerances
        (x, residual), (last_x, last_r) = (map(self._rows, z) for z in (h.pair, h.last_pair))
        lost, back, ended = ops.judge_fixed_points_(
            norm,
            size,
            sound,
            residuals=self.residuals,
            counts=self.counts,
            status=self.status,
            flags=self.flags,
            tol=tol,
            abs_tol=abs_tol,
            progress=PROGRESS,
            patience=PATIENCE,
            compares="residual" in self.tests,
            stores=stores,
        )
        if asked(lost.any()):  # a stored x is there until the next is stored
            torch.where(lost[:, None], last_x if stores else x, self.best, out=self.best)
        if asked(back.any()):
            rows = back[:, None]
            torch.where(rows, last_x, x, out=x)
            torch.where(rows, last_r, residual, out=residual)
            y = torch.where(rows, last_x + last_r, y)
            h.noise.masked_fill_(rows, FORGOTTEN)
            if self.lengths is not None:
                self.lengths.masked_fill_(rows, 0)
        if asked(ended.any()):
            y = torch.where(ended[:, None], x, y)
        return y, back

    def _coefficients(self, residual: Tensor, due: bool, back: Tensor) -> Tensor:
        """``[B, m]`` gamma, zero for samples that take a plain step."""
        if not due or not self.options.history_depth:
            self.extrapolated.zero_()
            return self.none
        only = self.busy
        if self.products:
            gamma = self.products.solve(only)
        else:
            gamma = self.history.solve(residual, only=only, condition=False).gamma
        if only is not None:
            gamma = self.none.index_copy(0, only, gamma)
        size = gamma.abs().sum(dim=1)
        fits = size <= MAX_COEFFICIENTS
        allowed = self.running & ~back & fits  # NaN does not fit
        torch.logical_and(allowed, size > 0, out=self.extrapolated)
        return torch.where(allowed[:, None], gamma, 0.0)

    def check(self, narrow: bool = True) -> bool:
        """Whether any sample still runs: the host waits. ``narrow``: others cost no solve then."""
        running = self.running
        count = int(running.sum())
        if narrow and count < len(running):
            self.busy = running.nonzero().squeeze(1)
        return count > 0

    # ---- views ------------------------------------------------------------------------------

    @property
    def cycle(self) -> int:
        """Steps after which the same slots, vectors and decisions come round, at least 8."""
        o = self.options
        q = o.store_each_nth
        steps = math.lcm(o.frequency, q, o.restart_each_nth or q * max(o.history_depth, 1))
        steps *= 1 + steps // q % 2  # each pair stored changes places with the last one
        return steps * math.ceil(ELSEWHERE / steps)

    @property
    def x(self) -> Tensor:
        """``[B, n]``."""
        return self._rows(self.history.pair[0])

    @property
    def solution(self) -> Tensor:
        """``[B, n]`` points of least residual."""
        last_x = self._rows(self.history.last_pair[0])
        return torch.where(self.flags[0, :, None], last_x, self.best)

    @property
    def extrapolated(self) -> Tensor:
        """``[B]`` bool, whether x was."""
        return self.flags[1]

    @property
    def running(self) -> Tensor:
        """``[B]`` bool."""
        return self.status == RUNNING

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the safeguards."""
        return tuple(self.options.safeguard or ())

    def _rows(self, flat: Tensor) -> Tensor:
        return flat.view(self.samples.shape)


def _limit(rows: Tensor) -> float:
    """Norms up to this have sums of squares that are numbers, also after an extrapolation."""
    return math.exp(0.45 * math.log(torch.finfo(rows.dtype).max))


def _norms(rows: Tensor) -> Tensor:
    """``[B]`` float64."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.double()
