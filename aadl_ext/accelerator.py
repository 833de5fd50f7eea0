"""An iteration over the parameters of an optimizer, and what users ask and tell it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ops, state
from .anderson import AndersonIteration
from .newton import NewtonIteration
from .ops.verdicts import PATIENCE
from .options import Anderson, Method, as_dict
from .parameters import Layout
from .safeguards import Evaluate, ask_for_closure
from .stats import Journal, Stats

if TYPE_CHECKING:
    from .optimizer_hook import Gradients

logger = logging.getLogger("aadl_ext")

Groups = list[dict[str, Any]]


class Accelerator:
    """Obtained with :func:`aadl_ext.get_accelerator`.

    ``stats`` tells what was done, ``state_dict`` and ``load_state_dict`` carry it over a restart,
    ``roll_back`` undoes an extrapolation that no step has judged yet.
    """

    layout: Layout
    iteration: AndersonIteration | NewtonIteration
    rates: tuple[float, ...]  # learning rate of each segment

    def __init__(self, param_groups: Groups, options: Method) -> None:
        self.options = options
        self.loaded: set[str] = set()  # since the last step: "optimizer" state, or own "history"
        self._skip: str | None = None
        self._journal = Journal()
        self._counts: dict[str, Counter[str]] = {"skipped": Counter(), "restarts": Counter()}
        self._lay_out(param_groups)

    # ---- what users ask and tell --------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether the parameters are at a point that the next step may reject; waits."""
        return self.iteration.pending and bool(self.iteration.verdicts.when.pending)

    @property
    def stats(self) -> Stats:
        """What was done so far; waits for the device."""
        iteration, now = self.iteration, self.iteration.verdicts.now
        stats = Stats.read(iteration.verdicts, self._counts, iteration.k)
        self._journal.tell(stats)
        buffers = {x.data_ptr(): x.nbytes for x in state.tensors(iteration)}
        stats.bytes_held = sum(buffers.values())
        if isinstance(iteration, NewtonIteration):
            stats.trust_radius, stats.damping = now.trust_radius.item(), now.damping.item()
        solution = iteration.solution
        if isinstance(solution, ops.SecantSolution):
            stats.gamma, stats.rank, stats.condition, stats.predicted_reduction = solution
            reduction = now.reduction.item()
            stats.actual_reduction = None if math.isnan(reduction) else reduction
        elif solution is not None:
            stats.gamma, stats.rank = solution.coefficients, solution.rank
            stats.predicted_reduction = solution.reduction
        return stats

    @torch.no_grad()
    def reset(self) -> None:
        """Forget pairs, iterates and a pending extrapolation; the parameters stay."""
        self._restart("request")
        self._drop_pending()
        self.iteration.forget_place()

    @torch.no_grad()
    def roll_back(self) -> bool:
        """Undo a pending extrapolation now instead of waiting for the next step to judge it.

        Returns whether the parameters were moved; they are not where nothing is pending, or
        where something else has moved them since. For callers who know more than the next
        step will tell: under ``GradScaler`` a step with infinite gradients never happens, so an
        extrapolation to where all gradients overflow would stay. Counted as
        ``rejected["request"]``. Waits for the device.
        """
        if not self.pending:
            return False
        iteration, verdicts = self.iteration, self.iteration.verdicts
        point = self.layout.vector()
        self.layout.read(point)
        if ops.differs(point, iteration.left_at):
            return False
        iteration.roll_back()
        verdicts.number.rejected_request += 1
        verdicts.now.rejections += 1
        if isinstance(iteration, AndersonIteration) and verdicts.now.rejections >= PATIENCE:
            self._restart("rejections")
        return True

    # ---- what the hooks of an optimizer ask and tell ------------------------------------

    def before_step(
        self, param_groups: Groups, rates: list[float], has_closure: bool, skip: str | None
    ) -> None:
        """Look at w^k; ``skip`` names why this step does not count.

        Raises:
            RuntimeError: ``safeguard="loss"`` and there is no closure.
        """
        if self.loaded:
            self._tell_if_resumed_without_history()
        self._skip = skip or self._follow(param_groups, rates)
        if self._counts_now:
            ask_for_closure(self.options, has_closure)
            self.iteration.before()

    @property
    def wants_gradient(self) -> bool:
        """Whether the gradient at w^k has to be seen before the base optimizer uses it."""
        return self._counts_now and self.iteration.wants_gradient

    def see_gradient(self, gradients: Gradients) -> Tensor | None:
        """Look at the gradient at w^k; ``[]`` bool whether the base step is to be left out."""
        return self.iteration.see_gradient(gradients)

    def after_step(self, evaluate: Evaluate | None) -> None:
        """Look at w^k + r^k and move the parameters on to w^{k+1}.

        ``evaluate`` returns the loss at the present parameters.
        """
        if self._skip:
            self._counts["skipped"][self._skip] += 1
        elif self._counts_now:
            self.iteration.step(self.rates, evaluate)
        else:
            self.iteration.k += 1
        self._journal.look(self.iteration.verdicts, self._counts, self.iteration.k)

    @property
    def _counts_now(self) -> bool:
        return not self._skip and bool(self.layout.parameters)

    # ---- what happens between steps -----------------------------------------------------

    def _follow(self, param_groups: Groups, rates: list[float]) -> str | None:
        """Notice changed parameters and learning rates; returns why this step cannot count."""
        if not self.layout.fits(param_groups):
            self._counts["restarts"]["parameters"] += 1
            self._drop_pending()
            self._lay_out(param_groups)
        now = tuple(rates[index] for index in self.layout.groups)
        if now and not any(now):
            return "zero_lr"
        if self.rates and [not rate for rate in now] != [not rate for rate in self.rates]:
            self._restart("learning_rate")
        self.rates = now
        return None

    def _tell_if_resumed_without_history(self) -> None:
        if "history" not in self.loaded:
            logger.info(
                "the optimizer goes on from an earlier state, but the accelerator without what it "
                "had learned until then; to keep that over a restart, save "
                "get_accelerator(optimizer).state_dict() too, and load it as well"
            )
        self.loaded.clear()

    def _restart(self, cause: str) -> None:
        self._counts["restarts"][cause] += 1
        self.iteration.verdicts.now.rejections.zero_()
        self.iteration.clear()

    def _drop_pending(self) -> None:
        verdicts = self.iteration.verdicts
        verdicts.number.dropped += verdicts.when.pending

    def _lay_out(self, param_groups: Groups) -> None:
        storage, last = self.options.storage, getattr(self, "iteration", None)
        self.layout = Layout.build(param_groups, self.options.scope, storage.device)
        self.rates = ()
        verdicts = ops.Verdicts.on(self.layout.device)
        if isinstance(self.options, Anderson):
            self.iteration = AndersonIteration.empty(self.layout, self.options, verdicts)
        else:
            self.iteration = NewtonIteration.empty(self.layout, self.options, verdicts)
        if last is not None:
            self.iteration.k = last.k
            verdicts.counts.copy_(last.verdicts.counts)

    # ---- checkpoints --------------------------------------------------------------------

    @torch.inference_mode(False)
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit for bit; tensors are copies."""
        self._wait()
        return {
            **self._signature(),
            "rates": self.rates,
            "counts": {name: dict(counts) for name, counts in self._counts.items()},
            "iteration": state.state_dict(self.iteration),
        }

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; load model and optimizer as well.

        Raises:
            ValueError: the state belongs to other parameters or other options.
        """
        for name, own in self._signature().items():
            if saved.get(name) != own:
                raise ValueError(
                    f"the accelerator state was saved with {name} = {saved.get(name)!r}, but "
                    f"here it is {own!r}; accelerate with the same options and parameters, or "
                    "go on without the state: the history then starts anew"
                )
        self._wait()
        state.load_state_dict(self.iteration, saved["iteration"])
        self.loaded.add("history")
        self.rates = tuple(saved["rates"])
        self._counts = {name: Counter(counts) for name, counts in saved["counts"].items()}
        self._journal.take_over(Stats.read(self.iteration.verdicts, self._counts, self.iteration.k))

    def _wait(self) -> None:
        """A number may be on its way to the host (``trust_region.Delayed``)."""
        if self.layout.device.type == "cuda":
            torch.cuda.synchronize(self.layout.device)

    def _signature(self) -> dict[str, Any]:
        return {
            "version": 2,
            "options": as_dict(self.options),
            "offsets": self.layout.offsets,
            "dtype": self.layout.dtype,
        }
