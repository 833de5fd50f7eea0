"""What all callbacks do: judged weights whenever no step is under way, and a state to keep."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .. import optimizer_hook
from ..accelerate import accelerate, finish, get_accelerator, settled
from ..options import Method

if TYPE_CHECKING:
    from torch.optim import Optimizer


class BetweenSteps:
    """The accelerated optimizers of a training whose loop is a framework's.

    Between two steps a framework, or another callback, may evaluate, save or average the weights at
    any time. So a pending extrapolation is set aside after each step, and back before the next.
    """

    def __init__(self, method: Method | None = None) -> None:
        self.method = method
        self._optimizers: list[Optimizer] = []
        self._settled = ExitStack()
        self._saved: list[dict[str, Any]] = []  # until the optimizers are known

    def begin(self, optimizers: Iterable[Optimizer]) -> None:
        """Before the first step; if none of them is accelerated yet, all are."""
        given = list(optimizers)
        self._optimizers = [x for x in given if optimizer_hook.find(x) is not None]
        if not self._optimizers:
            self._optimizers = [accelerate(x, self.method) for x in given]
        if self._saved:
            for optimizer, saved in zip(self._optimizers, self._saved, strict=True):
                get_accelerator(optimizer).load_state_dict(saved)
            self._saved = []
        self.after_step()

    def before_step(self) -> None:
        """Back to the extrapolation that the step is to judge."""
        self._settled.close()

    def after_step(self) -> None:
        """To judged weights."""
        self._settled.close()
        for optimizer in self._optimizers:
            self._settled.enter_context(settled(optimizer))

    def end(self) -> None:
        """After the last step: judged weights for good."""
        self._settled.close()
        for optimizer in self._optimizers:
            finish(optimizer)

    @property
    def spread(self) -> bool:
        """Whether others have a part of the state."""
        return any(get_accelerator(x).ranks for x in self._optimizers)

    def state(self) -> list[dict[str, Any]]:
        """Of each accelerator."""
        return [get_accelerator(x).state_dict() for x in self._optimizers] or self._saved

    def load(self, saved: list[dict[str, Any]]) -> None:
        """Take over what :meth:`state` gave, as training begins: after model and optimizers."""
        self._saved = saved
