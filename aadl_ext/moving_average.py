"""Moving average over the last iterates, and the criterion that switches it (Eq. 11, 15, 16)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from . import ops
from .options import Averaging
from .parameters import Layout
from .ranks import Ranks
from .state import Entries, Scratch


@dataclass(eq=False)
class MovingAverage:
    """The last ``t`` iterates; a mean takes the place of the iterate that it was made from.

    So the window holds means too, as in Algorithm 1. The criterion is applied once the window is
    full; ``verdicts.now.known`` tells how many of its points count.
    """

    options: Scratch[Averaging]
    verdicts: Scratch[ops.Verdicts]
    iterates: Entries[list[Tensor]]  #: newest last
    pushed: int = 0
    ranks: Scratch[Ranks | None] = None  #: that hold the other entries

    @classmethod
    def empty(cls, layout: Layout, options: Averaging, verdicts: ops.Verdicts) -> MovingAverage:
        """Allocate it."""
        iterates = [layout.vector() for _ in range(options.window)]
        return cls(options, verdicts, iterates, ranks=layout.ranks)

    @property
    def newest(self) -> Tensor:
        """The iterate that was pushed last, or the mean in its place."""
        return self.iterates[-1]

    def clear(self) -> None:
        """Forget all iterates."""
        self.pushed = 0
        self.verdicts.now.known.zero_()

    def start_at(self, point: Tensor, moved: Tensor | None) -> None:
        """Begin anew with ``point`` where something else has ``moved`` it there, or at first."""
        if not self.pushed:
            self.newest.copy_(point)
            self.pushed = 1
            self.verdicts.now.known.fill_(1)
        elif moved is not None:
            ops.gather((point,), self.newest, when=moved)

    def push(self, point: Tensor, maybe_rejected: bool) -> Tensor:
        """Append an iterate, in the place of the newest where that was rejected.

        Returns the vector that has left the window.
        """
        if maybe_rejected:  # the newest goes: those before it move up
            for older, newer in reversed(list(pairwise(self.iterates))):
                ops.gather((older,), newer, when=self.verdicts.when.rejected)
        self.iterates.append(point)
        self.pushed += 1
        return self.iterates.pop(0)

    def smooth(self, spare: Tensor) -> Tensor:
        """Let the mean, made in ``spare``, replace the newest iterate while they oscillate.

        Returns the vector that is spare now.
        """
        if self.pushed < self.options.window:
            return spare
        max_std = ops.window_statistics(self.iterates, spare)
        if self.ranks:
            max_std = self.ranks.gather(max_std)[0].amax().to(max_std)
        threshold, length = self.options.threshold, self.options.window
        ops.average_(*self.verdicts.tensors, max_std, threshold, length)
        # Mostly they do: then nothing is copied.
        ops.gather((self.newest,), spare, when=self.verdicts.when.steady)
        self.iterates[-1], spare = spare, self.newest
        return spare
