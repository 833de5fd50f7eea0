"""Tests that an extrapolated point must pass before it is taken.

Each is a function of a :class:`Candidate` that returns ``[]`` bool, on the device, whether it
passes; one that is asked by name is in ``TESTS``. Comparisons are written so that NaN never passes.
The test called "residual" comes later: the next training step makes it (``ops.judge_residual_``,
``ops.judge_gradient_``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import ops
from .ops.verdicts import COUNTS
from .options import Method
from .parameters import Layout

Evaluate = Callable[[], float]
MAX_WAY = 10.0  # of an extrapolation, in units of the way that its columns have seen


@dataclass
class Candidate:
    """An extrapolated point beside that of the base step, where the parameters are."""

    layout: Layout
    verdicts: ops.Verdicts
    base: Tensor  #: [N]
    point: Tensor  #: [N]
    largest: Tensor  #: [] max |point|
    possible: Tensor  #: [] bool, whether it is an extrapolation at all
    evaluate: Evaluate | None  #: the loss at the present parameters
    slope: Tensor | None = None  #: [] of the loss along the way to it, where that is known
    way: tuple[Tensor, Tensor] | None = None  #: [] its largest entry, and that of all columns
    late: bool = False  #: whether the next step is told if some rank cannot hold the point
    passed: list[Tensor] = field(default_factory=list)  #: results of the tests so far


def arm(candidate: Candidate, safeguards: tuple[str, ...], guarded: bool, patient: bool) -> None:
    """Ask all tests: ``verdicts.when.accepted`` tells whether the point is to be taken.

    ``guarded``: the next step judges it. ``patient``: rejections in a row clear the history.
    """
    tests, causes = _tests(safeguards)
    for test in tests:
        candidate.passed.append(test(candidate))
    tensors, possible = candidate.verdicts.tensors, candidate.possible
    ops.arm_(*tensors, possible, candidate.passed, causes, guarded, patient)


@functools.cache
def _tests(names: tuple[str, ...]) -> tuple[list[Callable[[Candidate], Tensor]], list[int]]:
    """The functions to ask, and the positions of their names in ``COUNTS``."""
    tests = {"nonfinite": fits, **{name: TESTS[name] for name in TESTS if name in names}}
    return list(tests.values()), [COUNTS.index(f"rejected_{name}") for name in tests]


def fits(candidate: Candidate) -> Tensor:
    """Every entry is a number that the parameters can hold."""
    if candidate.late:
        assert candidate.slope is not None
        return candidate.slope.isfinite()
    return torch.le(candidate.largest, candidate.layout.limit)


def has_limits(candidate: Candidate) -> Tensor:
    """The way is not long beside that which the columns have seen: they know nothing of it."""
    assert candidate.way is not None
    way, path = candidate.way
    return torch.le(way, MAX_WAY * path)


def descends(candidate: Candidate) -> Tensor:
    """The loss falls along the way; or, as far as is known, it leads on, not back."""
    assert candidate.slope is not None
    return torch.lt(candidate.slope, 0)


def lowers_loss(candidate: Candidate) -> Tensor:
    """The loss of the same batch is smaller than after the base step (the test of AADL).

    Reads whether the other tests are passed, and if so evaluates both. The parameters end at the
    point of the base step, also if that raises. Of several ranks the mean loss counts.
    """
    ready: Tensor = candidate.verdicts.when.ready & candidate.possible
    if not ready & torch.stack(candidate.passed).all():
        return ready  # nobody asks
    assert candidate.evaluate is not None  # the step has asked for a closure
    try:
        before = candidate.evaluate()
        candidate.layout.write(candidate.point)
        after = candidate.evaluate()
    except BaseException:
        candidate.verdicts.number.extrapolations += 1
        candidate.verdicts.number.dropped += 1
        raise
    finally:
        candidate.layout.write(candidate.base)
    losses = torch.tensor([before, after], dtype=torch.float64, device=ready.device)
    before, after = candidate.layout.joint(losses)[0].tolist()
    return torch.full_like(ready, after < before and math.isfinite(after))


# In the order in which they are asked; the loss waits for the device, so it comes last.
TESTS: dict[str, Callable[[Candidate], Tensor]] = {
    "limits": has_limits,
    "descent": descends,
    "loss": lowers_loss,
}


def ask_for_closure(options: Method, has_closure: bool) -> None:
    """Raise RuntimeError if losses are to be compared and there is nothing to evaluate them."""
    if options.history_depth and "loss" in options.tests and not has_closure:
        raise RuntimeError(
            'safeguard="loss" compares losses, but step() was called without a closure: '
            'call step(closure), or accelerate with safeguard="residual"'
        )
