"""How much of a jump is made and how long blocks are, learned from what earlier jumps brought."""

from __future__ import annotations

from typing import Any

from .decisions import (
    Delayed,
    Flag,
    Number,
    choose,
    exp,
    finite,
    larger,
    possible,
    smaller,
    told,
)

LEAST_DAMPING, GAIN, FORGETTING = 0.02, 0.3, 0.7
SHORTEST, LONGEST = -2, 2  # blocks: powers of two of their usual length


class Pace:
    """Damping of jumps and length of blocks; ``usual`` samples in a block, if they never change."""

    damping: Number  # share of a jump that is made
    level: int  # of the length of a block
    _excess: Number  # recent slopes after jumps, and their sizes before; sums that fade
    _expected: Number

    def __init__(self, usual: int) -> None:
        self.usual = usual
        self.damping, self.level = 1.0, 0
        self._excess = self._expected = 0.0
        self._change = Delayed()

    @property
    def block_length(self) -> int:
        """Samples of a block; short ones are even, so that what is not noise cancels in theirs."""
        if self.level >= 0:
            return self.usual << self.level
        return min(2 * max(round(self.usual * 2.0**self.level / 2), 1), self.usual)

    def learn(self, before: Number, after: Number, when: Flag) -> None:
        """Shorter jumps while they end, on average, beyond the minimum along them.

        The slope before a jump is what noise and the choice of the direction make of it; that
        after it, the mean over the next block, is measured with new samples. Where jumps go uphill,
        as they do at the noise floor, it is positive, and where they could be longer it is
        negative.
        """
        known = when & (before < 0) & finite(after)
        if not possible(known):
            return
        excess = FORGETTING * self._excess + smaller(after, -3 * before)
        expected = FORGETTING * self._expected - before
        damping = self.damping * exp(-GAIN * larger(excess / expected, -1.0))
        damping = smaller(larger(damping, LEAST_DAMPING), 1.0)
        self._excess = choose(known, excess, self._excess)
        self._expected = choose(known, expected, self._expected)
        self.damping = choose(known, damping, self.damping)

    def adapt_block(self, noise: Number) -> None:
        """Longer blocks while jumps go too far because of noise, shorter ones while all is well.

        ``noise`` is |noise|^2 of a mean gradient over |its change|^2; .3 is much (1/2 is all), but
        what looks like noise may be an oscillation, which does no harm. A device tells its
        decision a block later.
        """
        whole = self.damping > 0.95
        longer = self.damping < 0.8 if self.level < 0 else (noise > 0.3) & (self.damping < 0.7)
        shorter = (noise < 0.1) | whole if self.level > 0 else (noise < 0.01) & whole
        change = int(self._change.exchange(choose(longer, 1, choose(shorter, -1, 0))))
        self.level = min(max(self.level + change, SHORTEST), LONGEST)

    def state_dict(self) -> dict[str, Any]:
        """All of it, on the host."""
        return {
            "damping": told(self.damping),
            "level": self.level,
            "excess": told(self._excess),
            "expected": told(self._expected),
            "change": self._change.value,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.damping, self.level = state["damping"], state["level"]
        self._excess, self._expected = state["excess"], state["expected"]
        self._change = Delayed(state["change"])
