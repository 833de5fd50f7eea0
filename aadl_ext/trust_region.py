"""How long blocks are, a block late; what steps are worth is learned by ``ops.learn_``."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .buffers import CPU, captured, zeros
from .state import Scratch

SHORTEST, LONGEST = -2, 2  # blocks: powers of two of their usual length


@dataclass(eq=False)
class Delayed:
    """Lets the host learn a number of a device without waiting: the next time that it asks.

    It does wait where it has asked again before the number came, a whole block ahead of the device.
    To go on without would let lengths of blocks depend on timing, and differ between ranks.
    """

    number: Tensor = field(default_factory=lambda: zeros((), torch.float64, CPU))
    arrived: Scratch[torch.cuda.Event | None] = None

    def exchange(self, number: Tensor) -> float:
        """Send a number; returns the one sent before.

        Nothing is sent while a CUDA graph is captured, nor on device "meta"; 0 is returned.
        """
        if number.is_meta or captured(number.device):
            return 0
        if self.arrived is not None:
            self.arrived.synchronize()
        before = self.number.item()
        self.number = zeros((), number.dtype, CPU, pinned=number.is_cuda)
        self.number.copy_(number, non_blocking=True)
        if number.is_cuda:
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record()
        return before


@dataclass(eq=False)
class BlockLength:
    """Samples of a block."""

    usual: Scratch[int]
    adaptive: Scratch[bool]
    level: int = 0  #: powers of two of the usual length
    change: Delayed = field(default_factory=Delayed)

    @property
    def samples(self) -> int:
        """Short ones are even, so that what is not noise cancels in their alternating sums."""
        if self.level >= 0:
            return self.usual << self.level
        return min(2 * max(round(self.usual * 2.0**self.level / 2), 1), self.usual)

    def follow(self, level_change: Tensor) -> None:
        """Become longer or shorter as the block before the last has asked."""
        if self.adaptive:
            asked = self.change.exchange(level_change)  # -1, 0 or 1
            level = self.level + (asked > 0) - (asked < 0)
            self.level = min(max(level, SHORTEST), LONGEST)
