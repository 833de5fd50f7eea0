"""What the state machines share: following the parameters, verdicts, buffers, checkpoints."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import safeguards
from .decisions import (
    Flag,
    Number,
    Scalars,
    any_of,
    choose,
    differ,
    negate,
    number,
    possible,
    smaller,
    told,
)
from .flat import Layout
from .gradients import Gradients
from .options import Options
from .stats import Stats

logger = logging.getLogger("aadl_ext")

Groups = list[dict[str, Any]]
Evaluate = Callable[[], float]


class Machine(ABC):
    """A state machine around ``step()``: ``before_step`` sees w^k, ``after_step`` w^k + r^k.

    Obtained with :func:`aadl_ext.get_accelerator`: ``stats`` tells what was done,
    ``state_dict`` and ``load_state_dict`` carry it over a restart.
    """

    patience: int | None = None  # rejections in a row that clear the history
    layout: Layout
    rates: tuple[float, ...]  # learning rate of each segment
    jump: Any  # the next step judges it if it is `made`; has a vector `plain` to go back to
    _left_at: Tensor | None  # where the parameters were left, if it matters
    _watched: Flag  # whether it does
    _momentum_factor: Number | None
    _rejections_in_a_row: Number

    def __init__(self, param_groups: Groups, options: Options) -> None:
        self.options = options
        self._stats = Stats()
        self.k = 0
        self._lay_out(param_groups)

    # ---- what a machine adds ----------------------------------------------------------

    @abstractmethod
    def before_step(
        self, param_groups: Groups, has_closure: bool = False, skip: str | None = None
    ) -> None:
        """Look at w^k; ``skip`` names why this step does not count.

        Raises:
            RuntimeError: ``safeguard="loss"`` and there is no closure.
        """

    @property
    @abstractmethod
    def wants_gradient(self) -> bool:
        """Whether the gradient at w^k has to be seen before the base optimizer uses it."""

    @abstractmethod
    def see_gradient(self, gradients: Gradients) -> Flag:
        """Look at the gradient at w^k; whether the base step is to be held back."""

    @abstractmethod
    def after_step(self, evaluate: Evaluate | None = None) -> None:
        """Look at w^k + r^k and move the parameters on to w^{k+1}.

        ``evaluate`` returns the loss at the present parameters.
        """

    @abstractmethod
    def _undo(self, jump: Any, when: Flag) -> None:
        """Put the parameters back to where ``jump`` began, and forget what was seen since."""

    @abstractmethod
    def _start(self) -> None:
        """Allocate what the layout asks for, and begin without history."""

    def _forget_place(self, when: Flag = True) -> None:
        """Forget what refers to the present place of the parameters."""
        if when is True:
            self._left_at = None

    @abstractmethod
    def _clear_history(self, when: Flag) -> None: ...

    def _held(self) -> list[Tensor | None]:
        """Working vectors in use."""
        return [self._left_at, self.jump and self.jump.plain]

    @abstractmethod
    def _tensors(self) -> list[Tensor]:
        """Buffers besides the working vectors."""

    @abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abstractmethod
    def _take_state(self, state: dict[str, Any]) -> None: ...

    # ---- what hooks and users ask and tell --------------------------------------------

    @property
    def stats(self) -> Stats:
        """What was done so far; waits for the device."""
        self._stats.bytes_held = sum(x.nbytes for x in (*self._tensors(), *self._vectors))
        return self._stats.read()

    @property
    def skips(self) -> bool:
        """Whether the step under way does not count."""
        return self._skip is not None

    @property
    def jump_pending(self) -> bool:
        """Whether the parameters are at a jump that the next step may take back."""
        return self.jump is not None

    def take_momentum_factor(self) -> Number | None:
        """What the base optimizer's first moments are to be multiplied by, told once."""
        factor, self._momentum_factor = self._momentum_factor, None
        return factor

    def reset(self) -> None:
        """Forget pairs, iterates and a pending jump; the parameters stay where they are."""
        self._restart("request")
        self._drop_jump()
        self._forget_place()

    @torch.no_grad()
    def take_back(self) -> bool:
        """Undo a pending jump now instead of waiting for the next step to judge it.

        Returns whether the parameters were moved; they are not where nothing is pending, or
        where something else has moved them since. For callers who know more than the next
        step will tell: under ``GradScaler`` a step with infinite gradients never happens, so a
        jump to where all gradients overflow would stay. Counted as ``rejected["request"]``.
        """
        if self.jump is None:
            return False
        self._notice_moves(self.layout.gather(self._spare()))
        jump, self.jump, self._left_at = self.jump, None, None
        if jump is None or not jump.made:
            return False
        self._undo(jump, True)
        self._count_verdict(accepted=False, request=True)
        return True

    # ---- jumps and verdicts -------------------------------------------------------------

    def _rescale_momentum(self, reduction: Tensor, made: Flag) -> None:
        """``reduction [systems]`` of the residual that a jump predicts, if it was just made."""
        if self.options.momentum == "keep" or not possible(made):
            return
        factor: Number = 0.0
        if self.options.momentum == "scale":
            factor = smaller(number(reduction.max().to(self.layout.device)), 1.0)
        self._momentum_factor = choose(made, factor, 1.0)

    def _count_verdict(self, *, accepted: Flag, **faults: Flag) -> None:
        """At most one of the flags is true: a jump stands, or why it does not."""
        for cause, fault in faults.items():
            self._stats.count("rejected", fault, cause)
        self._stats.count("accepted", accepted)
        rejected = any_of(*faults.values())
        in_a_row = choose(accepted, 0, self._rejections_in_a_row + rejected)
        self._rejections_in_a_row = in_a_row
        if self.patience is not None:
            self._restart("rejections", in_a_row >= self.patience)

    def _lowers_loss(self, plain: Tensor, candidate: Tensor, evaluate: Evaluate | None) -> bool:
        assert evaluate is not None  # before_step has asked for it
        try:
            return safeguards.loss_decreases(self.layout, plain, candidate, evaluate)
        except BaseException:
            self._stats.count("dropped")
            raise

    def _restart(self, cause: str, when: Flag = True) -> None:
        if not possible(when):
            return
        self._stats.count("restarts", when, cause)
        self._rejections_in_a_row = choose(when, 0, self._rejections_in_a_row)
        self._clear_history(when)

    def _drop_jump(self, when: Flag = True) -> None:
        if self.jump is None:
            return
        self._stats.count("dropped", self.jump.made & when)
        self.jump = None if when is True else replace(self.jump, made=self.jump.made & negate(when))

    # ---- what happens between steps -----------------------------------------------------

    def _follow(self, param_groups: Groups) -> str | None:
        """Notice changed parameters and learning rates; returns why this step cannot count."""
        if not self.layout.fits(param_groups):
            logger.info("parameters were added, (un)frozen or moved: the history starts anew")
            self._stats.count("restarts", cause="parameters")
            self._drop_jump()
            self._lay_out(param_groups)
        given = [param_groups[index].get("lr", 1.0) for index in self.layout.groups]
        rates = tuple(map(self._scalars.read, given))
        if rates and not any(rates):
            return "zero_lr"
        if self.rates and [not rate for rate in rates] != [not rate for rate in self.rates]:
            self._restart("learning_rate")
        self.rates = rates
        return None

    def _notice_moves(self, before: Tensor) -> Flag:
        """Whoever moved the parameters since the last step wants them there: do not undo it."""
        moved = self._left_at is not None and differ(self._left_at, before)
        if possible(moved):
            self._stats.count("restarts", moved & self._watched, "moved_outside")
            self._drop_jump(moved)
            self._forget_place(moved)
        return moved

    # ---- buffers and checkpoints --------------------------------------------------------

    def _lay_out(self, param_groups: Groups) -> None:
        self.layout = Layout.build(param_groups, self.options.scope, self.options.history_device)
        self.rates = ()
        self._scalars = Scalars()
        self.jump = self._left_at = None
        self._watched = True
        self._skip: str | None = None
        self._momentum_factor = None
        self._rejections_in_a_row = 0
        self._vectors: list[Tensor] = []
        self._start()

    def _spare(self, *busy: Tensor) -> Tensor:
        """A working vector that nobody needs."""
        held = [*busy, *self._held()]
        for vector in self._vectors:
            if all(vector is not other for other in held):
                return vector
        self._vectors.append(self.layout.vector())
        return self._vectors[-1]

    def _copy(self, vector: Tensor) -> Tensor:
        """A working vector with these entries."""
        self._vectors.append(self.layout.vector().copy_(vector))
        return self._vectors[-1]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit for bit; tensors are copies."""
        return {
            "version": 1,
            "options": self.options.as_dict(),
            "offsets": self.layout.offsets,
            "dtype": self.layout.dtype,
            "k": self.k,
            "rates": self.rates,
            "left_at": None if self._left_at is None else self._left_at.clone(),
            "rejections_in_a_row": told(self._rejections_in_a_row),
            "stats": self.stats.state_dict(),
            **self._state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; load model and optimizer as well.

        Raises:
            ValueError: the state belongs to other parameters or other options.
        """
        mine = {"options": self.options.as_dict(), "offsets": self.layout.offsets}
        for name, own in {"version": 1, "dtype": self.layout.dtype, **mine}.items():
            if state.get(name) != own:
                raise ValueError(
                    f"the accelerator state was saved with {name} = {state.get(name)!r}, but "
                    f"here it is {own!r}; accelerate with the same options and parameters, or "
                    "go on without the state: the history then starts anew"
                )
        self.k, self.rates = state["k"], tuple(state["rates"])
        self._vectors = []
        self._take_state(state)
        left_at = state["left_at"]
        self._left_at = None if left_at is None else self._copy(left_at)
        self._rejections_in_a_row = state["rejections_in_a_row"]
        self._stats.load_state_dict(state["stats"])
