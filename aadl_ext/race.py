"""Whether quasi-Newton steps or those of the base optimizer gain more.

The loss is never evaluated: along a step it changes by the mean of the slopes at both ends (the
trapezoid rule). From time to time the base optimizer has a trial, and what it gains is compared
with what as many quasi-Newton steps before it have gained. If that is more the base optimizer goes
on, if it is a loss the parameters go back to where the trial began. Where steps jump in and out of
steep places the rule is wrong, and finds gains; so the slopes at the two ends of the whole trial
have to tell of a gain, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .buffers import zeros
from .parameters import Layout
from .state import Scratch

OPENING = 4  # base steps before the first quasi-Newton step
FIRST, RARER = 24, 8  # steps before the first trial; how many times as many before the next
TRIAL = 16  # steps of a trial
LEAST = 0.25  # of what it has to gain is to be there after the first half
STRAIGHT = 1 / 3  # likewise, by the slopes at the ends of the trial only
SETTLES = 8  # steps after a trial, until what it has told is done


@dataclass(eq=False)
class Race:
    """When trials are, and what they tell."""

    layout: Scratch[Layout]
    start: Scratch[Tensor]  #: where the trial began, in a vector that nobody needs meanwhile
    gradient: Scratch[Tensor]  #: that there
    squared_norm: Tensor  #: [] float64, of that gradient
    loss: Tensor  #: [3] its changes since steps began: now, at a trial's start, TRIAL steps before
    by_base: Tensor  #: [] bool, whether the pending step is the base optimizer's
    over: Tensor  #: [] bool, whether the trial is lost already
    back: Tensor  #: [] bool, whether to go back to its start
    at: int = FIRST  #: age at which the next trial begins

    @classmethod
    def empty(cls, layout: Layout, start: Tensor, gradient: Tensor) -> Race:
        """Allocate what is small."""
        loss = zeros((3,), torch.float64, layout.device)
        squared_norm = zeros((), torch.float64, layout.device)
        by_base, over, back = (zeros((), torch.bool, layout.device) for _ in range(3))
        return cls(layout, start, gradient, squared_norm, loss, by_base, over, back)

    def begin(self) -> None:
        """Nothing is known."""
        self.at = FIRST
        for numbers in (self.loss, self.by_base, self.over, self.back):
            numbers.zero_()

    def tries(self, age: int) -> bool:
        """Whether the step at this age is one of a trial."""
        return self.at <= age < self.at + TRIAL

    def decided(self, age: int) -> bool:
        """Whether a trial has ended a few steps ago."""
        return self.at > FIRST and 0 <= age - self.at // RARER - TRIAL <= SETTLES

    def whose(self, age: int, anew: Tensor) -> Tensor:
        """``[]`` bool, whether the next step is the base optimizer's; ``anew``: or a shorter one
        along the same line.
        """
        if age <= OPENING:
            mine = anew
        elif self.tries(age):
            mine = anew & ~self.over
        else:
            mine = torch.zeros_like(anew)
        return self.by_base.copy_(mine | self.by_base & ~anew)

    def follow(self, v: ops.Verdicts, pending: Tensor, slope: Tensor) -> None:
        """A step has been judged; ``slope``: along it, at its end."""
        stands = pending & v.when.ready
        self.loss[0] += torch.where(stands, (v.now.slope + slope) / 2, 0.0)
        wild = self.by_base & pending & ~stands
        self.over |= wild
        self.back |= wild

    def may_go_back(self, age: int) -> bool:
        """Whether the parameters may go back to where the trial began, at this age."""
        return self.at < age <= self.at + TRIAL or self.decided(age)

    def look(
        self,
        age: int,
        v: ops.Verdicts,
        point: Tensor,
        gradient: Tensor,
        squared_norm: Tensor,
        way: Tensor,
    ) -> Tensor:
        """Begin a trial, or end one; at its end there is a collective.

        ``point`` and ``gradient``, with its ``squared_norm``, are those that stand; they are
        changed to those where the trial began where that is gone back to. ``way`` is free to be
        used. Returns ``[]`` bool, whether it is.
        """
        when, loss, at = v.when, self.loss, self.at
        now, start, before = loss.clone().unbind()
        if age == at - TRIAL:
            loss[2] = now
        elif age == at:
            loss[1] = now
            self.over.zero_()
            self.back.zero_()
            self.start.copy_(point)
            self.gradient.copy_(gradient)
            self.squared_norm.copy_(squared_norm)
        elif age == at + TRIAL // 2:
            self.over |= now - start > LEAST * (start - before)
            self.back |= self.over & (now >= start)
        elif age == at + TRIAL:
            self.at *= RARER
            torch.sub(point, self.start, out=way)
            (ends,) = self.layout.joint(self.layout.products(way, self.gradient, gradient))
            path, chord, goal = now - start, ends.sum() / 2, start - before
            won = when.ready & ~self.over & (path < goal) & (chord < STRAIGHT * goal)
            when.exact &= ~won
            self.back |= ~(won | self.over) & ((path >= 0) | (chord >= 0))
        if not self.may_go_back(age):
            return torch.zeros_like(self.back)
        back: Tensor = self.back & when.ready
        ops.gather((self.start,), point, when=back)
        ops.gather((self.gradient,), gradient, when=back)
        squared_norm.copy_(torch.where(back, self.squared_norm, squared_norm))
        loss[0] = torch.where(back, loss[1], loss[0])
        self.back &= ~back
        return back
