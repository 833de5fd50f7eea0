"""An iteration over the parameters of an optimizer, and what users ask and tell it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ops, state
from .anderson import AndersonIteration
from .newton import NewtonIteration
from .ops.verdicts import PATIENCE
from .options import Anderson, Method, as_dict
from .parameters import Layout
from .ranks import Ranks
from .safeguards import Evaluate, ask_for_closure
from .stats import Journal, Stats

if TYPE_CHECKING:
    from .optimizer_hook import Gradients

logger = logging.getLogger("aadl_ext")

Groups = list[dict[str, Any]]

#: What the host counts.
CAUSES = {
    "skipped": ("found_inf", "zero_lr", "rolled_back", "high_rate"),
    "restarts": ("learning_rate", "parameters", "rejections", "request", "interrupted"),
}


class Accelerator:
    """Obtained with :func:`aadl_ext.get_accelerator`.

    ``stats`` tells what was done, ``state_dict`` and ``load_state_dict`` carry it over a restart.
    An extrapolation that no step has judged yet is set aside within ``settled``, and undone by
    ``roll_back``.
    """

    layout: Layout
    iteration: AndersonIteration | NewtonIteration
    rates: tuple[float, ...]  # learning rate of each segment; infinite before the first step
    _rates_of_groups: list[float]

    def __init__(
        self,
        param_groups: Groups,
        options: Method,
        total_steps: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if total_steps is not None and (type(total_steps) is not int or total_steps < 1):
            raise ValueError(f"total_steps is {total_steps!r}; it must be an integer >= 1, or None")
        self.options = options
        self.total_steps = total_steps
        self.ranks = ranks
        if ranks:
            ranks.agree("the method", (as_dict(options), total_steps))
        self._calls = 0  # of step()
        self._settled = False  # whether a pending extrapolation is set aside
        self.loaded: set[str] = set()  # since the last step: "optimizer" state, or own "history"
        self._skip: str | None = None
        self._journal = Journal()
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in CAUSES}
        self._begin(self._lay_out(param_groups))

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
        stats.bytes_held = state.bytes_held(iteration)
        stats.bytes_offloaded = iteration.bytes_offloaded
        if isinstance(iteration, NewtonIteration):
            stats.trust_radius, stats.damping = now.trust_radius.item(), now.damping.item()
        else:
            stats.unresolved = int(iteration.history.unresolved)
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
        """Forget pairs, iterates, rates and a pending extrapolation; the parameters stay."""
        self._restart("request")
        self.iteration.forget_rates()
        self._drop_pending()
        self._settled = False  # what is set aside is forgotten, too
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
        if self._pending_point() is None:
            return False
        self._settled = False  # what is set aside does not come back
        iteration, verdicts = self.iteration, self.iteration.verdicts
        iteration.roll_back()
        verdicts.number.rejected_request += 1
        verdicts.now.rejections += 1
        if isinstance(iteration, AndersonIteration) and verdicts.now.rejections >= PATIENCE:
            self._restart("rejections")
        return True

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Within it a pending extrapolation is set aside: evaluate and save judged parameters.

        At the end it is back, bit for bit, for the next step to judge, unless something else has
        moved the parameters meanwhile. A state that is saved within goes on from the extrapolation
        when it is loaded, the model's before the accelerator's. Waits for the device.
        """
        point = None if self._settled else self._pending_point()
        if point is None:
            yield
            return
        fallback = self.iteration.fallback
        self._settled = True
        self._change(point, fallback)
        try:
            yield
        finally:
            if self._settled:
                self._settled = False
                self._change(fallback, point)

    @torch.no_grad()
    def _pending_point(self) -> Tensor | None:
        """Where the parameters are, if that is where an extrapolation or ``settled`` left them."""
        if not self.pending:
            return None
        iteration = self.iteration
        return self._unmoved(iteration.fallback if self._settled else iteration.left_at)

    @torch.no_grad()
    def _change(self, start: Tensor, end: Tensor) -> None:
        """Move the parameters from one point to another, unless something else has moved them."""
        if self._unmoved(start) is not None:
            self.layout.write(end)

    def _unmoved(self, expected: Tensor) -> Tensor | None:
        """Where the parameters are, if that is where they are expected."""
        now = self.layout.vector()
        self.layout.stand_in_(expected)
        self.layout.read(now)
        return None if self.layout.moved(now, expected, self.iteration.largest) else now

    # ---- what the hooks of an optimizer ask and tell ------------------------------------

    def before_step(
        self,
        param_groups: Groups,
        rates: list[float],
        has_closure: bool,
        skip: str | None,
        shown: bool,
    ) -> None:
        """Look at w^k; ``skip`` names why this step does not count.

        ``shown``: its gradient is shown next, before anything moves the parameters.

        Raises:
            RuntimeError: ``safeguard="loss"`` and there is no closure, or within ``settled``.
        """
        if self._settled:
            raise RuntimeError("step() within settled(): leave it first, to train on")
        if self.loaded:
            self._notice_what_was_loaded()
        self._skip = skip or self._follow(param_groups, rates)
        if self._counts_now:
            ask_for_closure(self.options, has_closure)
            self.iteration.before(shown)

    @property
    def wants_gradient(self) -> bool:
        """Whether the gradient at w^k has to be seen before the base optimizer uses it."""
        alone = self._skip in ("zero_lr", "rolled_back")
        return alone or (self._counts_now and self.iteration.wants_gradient)

    def see_gradient(self, gradients: Gradients) -> Tensor | None:
        """Look at the gradient at w^k; ``[]`` bool whether the base step is to be left out."""
        if self._skip == "zero_lr":
            # Such a step cannot judge, nor perhaps any after it. With a gradient of zero it is none
            # at all: checkpoints make them to create the optimizer's state.
            (squared_norm,) = self.layout.joint(gradients.squared_norm(self.layout))
            if squared_norm != 0:
                self._calls += 1
                self.roll_back()
            return None
        if self._skip == "rolled_back":  # the gradient is that of the point that was left
            return torch.ones((), dtype=torch.bool, device="cpu")
        return self.iteration.see_gradient(gradients)

    def after_step(self, evaluate: Evaluate | None) -> None:
        """Look at w^k + r^k and move the parameters on to w^{k+1}.

        ``evaluate`` returns the loss at the present parameters.
        """
        self._calls += not self._skip
        if self._skip:
            self._counts["skipped"][self._skip] += 1
        elif self._counts_now:
            self.iteration.step(self.rates, evaluate)
        else:
            self.iteration.k += 1
        if self._calls == self.total_steps:
            self.roll_back()
        self._journal.look(self.iteration.verdicts, self._counts, self.iteration.k)

    @torch.no_grad()
    def break_off(self) -> None:
        """After an error within ``after_step``: to judged parameters, with a new history."""
        iteration, when = self.iteration, self.iteration.verdicts.when
        if iteration.pending:
            self.layout.write(iteration.fallback, when=when.pending | when.rejected)
        self._drop_pending()
        when.rejected.zero_()
        self._restart("interrupted")
        iteration.forget_place()

    @property
    def _counts_now(self) -> bool:
        return not self._skip and bool(self.layout.parameters or self.ranks)

    # ---- what happens between steps -----------------------------------------------------

    def _follow(self, param_groups: Groups, rates: list[float]) -> str | None:
        """Notice changed parameters and learning rates; returns why this step cannot count."""
        if self._changed(param_groups):
            self._counts["restarts"]["parameters"] += 1
            layout = self._lay_out(param_groups)  # or an error, before anything is done
            rolled_back = self.layout.device.type != "meta" and self.roll_back()
            if not rolled_back:
                self._drop_pending()
            self._begin(layout)
            if rolled_back:  # the new history cannot judge it
                self._calls += 1
                return "rolled_back"
        rates = rates + self._rates_of_groups[len(rates) :]  # of groups that others do not miss yet
        self._rates_of_groups = rates
        now = tuple(rates[index] for index in self.layout.groups)
        if now and not any(now):
            return "zero_lr"
        begun = math.inf not in self.rates
        if begun and [not rate for rate in now] != [not rate for rate in self.rates]:
            self._restart("learning_rate")
        self.rates = now
        if self.iteration.rests(tuple(rates)):  # on a rank without parameters, too
            self._calls += 1
            return "high_rate"
        return None

    def _changed(self, param_groups: Groups) -> bool:
        """Whether what is trained is no longer what is laid out; over ranks once all know of it.

        Until then what it still has goes on.
        """
        changed, ranks = not self.layout.fits(param_groups), self.ranks
        if ranks is None or ranks.mesh is not None:  # it has changed on all ranks
            return changed
        if ranks.heard:
            ranks.forget_news()
            return True
        ranks.changed |= changed
        if changed:
            self.layout.stand_in_(self.iteration.left_at)
        return False

    def _notice_what_was_loaded(self) -> None:
        if "history" not in self.loaded:
            self.iteration.forget_rates()  # those since then, such as a search for the best one
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

    def _lay_out(self, param_groups: Groups) -> Layout:
        options = self.options
        return Layout.build(param_groups, options.scope, options.storage.device, self.ranks)

    def _begin(self, layout: Layout) -> None:
        self.layout, last = layout, getattr(self, "iteration", None)
        self.rates = (math.inf,) * len(self.layout.groups)
        self._rates_of_groups = []
        verdicts = ops.Verdicts.on(self.layout.device)
        if isinstance(self.options, Anderson):
            self.iteration = AndersonIteration.empty(self.layout, self.options, verdicts)
        else:
            self.iteration = NewtonIteration.empty(self.layout, self.options, verdicts)
        if last is not None:
            self.iteration.k = last.k
            if last.layout.device.type != "meta":  # its parameters had no values
                verdicts.counts.copy_(last.verdicts.counts)

    # ---- checkpoints --------------------------------------------------------------------

    @torch.inference_mode(False)
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit for bit; tensors are copies."""
        if self.ranks:
            self._join(self.ranks)
        self._wait()
        return {
            **self._signature(),
            "rates": self.layout.counted(self.rates),
            "calls": self._calls,
            "settled": self._settled,
            "counts": {x: {y: self._counts[x][y] for y in CAUSES[x]} for x in CAUSES},
            "iteration": state.state_dict(self.iteration, self.layout),
        }

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; load model and optimizer as well.

        Raises:
            ValueError: the state belongs to other parameters or other options; on all ranks, if it
                does on any.
        """
        reason = self._difference(saved)
        reasons = self.ranks.exchange(reason) if self.ranks else [reason]
        if any(reasons):
            raise ValueError(next(filter(None, reasons)))
        self._wait()
        state.load_state_dict(self.iteration, saved["iteration"], self.layout)
        if saved["settled"]:
            self._change(self.iteration.fallback, self.iteration.left_at)
        self.loaded.add("history")
        self._calls = saved["calls"]
        self.rates = self.layout.of_all(saved["rates"])
        self._counts = {name: +Counter(counts) for name, counts in saved["counts"].items()}
        self._journal.take_over(Stats.read(self.iteration.verdicts, self._counts, self.iteration.k))

    def _difference(self, saved: dict[str, Any]) -> str:
        """Why a state cannot be loaded, or nothing."""
        for name, own in self._signature().items():
            then, now = saved.get(name), own
            if then == now:
                continue
            if isinstance(then, dict) and isinstance(now, dict):  # only what differs
                names = [x for x in {**then, **now} if then.get(x) != now.get(x)]
                then, now = ({x: y.get(x) for x in names} for y in (then, now))
            over = ""
            if self.ranks:
                named = not any(x.startswith("rank") for x in self.layout.names)
                over = (
                    f", over as many ranks{' or by torch.distributed.checkpoint' if named else ''}"
                )
            return (
                f"the accelerator state was saved with {name} = {then!r}, but here it is "
                f"{now!r}; accelerate with the same options and parameters in the same version "
                f"of aadl_ext{over}, or go on without the state: the history then starts anew"
            )
        return ""

    def _join(self, ranks: Ranks) -> None:
        """Leave nothing that only this rank knows."""
        iteration = self.iteration
        if isinstance(iteration, NewtonIteration):
            iteration.history.judge_waiting()
        (sizes,) = ranks.gather(iteration.sizes)
        iteration.sizes = sizes.amax(dim=0).to(iteration.sizes)

    def _wait(self) -> None:
        """A number may be on its way to the host (``trust_region.Delayed``)."""
        if self.layout.device.type == "cuda":
            torch.cuda.synchronize(self.layout.device)

    def _signature(self) -> dict[str, Any]:
        return {
            "version": 9,
            "options": as_dict(self.options),
            "parameters": self.layout.shapes,
            "dtype": self.layout.dtype,
        }
