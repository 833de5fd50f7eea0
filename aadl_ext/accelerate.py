"""The drop-in entry: tie an accelerator to an optimizer, find it again, take it off."""

from __future__ import annotations

from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from .accelerator import Accelerator
from .hooks import StepHooks
from .options import Options, as_device

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

_hooks: WeakKeyDictionary[Optimizer, StepHooks] = WeakKeyDictionary()


def accelerate(
    optimizer: AnyOptimizer,
    acceleration_type: str = "anderson",
    relaxation: float = 0.1,
    wait_iterations: int = 1,
    history_depth: int = 15,
    store_each_nth: int = 1,
    frequency: int = 1,
    reg_acc: float = 0.0,
    average: bool = False,
    history_device: torch.device | str | None = None,
    compute_device: torch.device | str | None = None,
    distributed: bool = False,
    sync_frequency: int = 1,
    *,
    mixing: str = "paper",
    safeguard: str | None = "residual",
    residual: str = "step",
    average_window: int = 5,
    average_threshold: float = 0.1,
    scope: str = "all",
    solver: str = "auto",
    history_dtype: torch.dtype | None = None,
) -> AnyOptimizer:
    """Accelerate ``optimizer`` from its next ``step()`` on (Algorithm 1 of the paper).

    Positional arguments carry the names, the order and the meaning of ORNL's AADL, so that
    a call written for it runs unchanged. The optimizer keeps its class, its ``step`` and
    its ``state_dict``; steps are watched through its hooks.

    After a jump the parameters are provisional until the next step has judged it
    (``safeguard="residual"``).

    Args:
        optimizer: any ``torch.optim.Optimizer`` over dense real parameters.
        acceleration_type: "anderson"; "anderson_normal_equation", the same with
            ``solver="gram"``; "identity", no extrapolation (useful with ``average``).
        relaxation: beta, 0 < beta <= 1, see ``mixing``.
        wait_iterations: no extrapolation at steps k <= this, counting from k = 0.
        history_depth: m, columns of the least-squares problem (AADL counts iterates: its
            depth d gives d - 2 columns).
        store_each_nth: q, steps between two stored pairs.
        frequency: p, steps between two extrapolations.
        reg_acc: ridge of the least-squares problem in units of the squared column lengths
            (in AADL an absolute number).
        average: whether to average the last iterates while they oscillate (Eq. 11, 16).
        history_device: device of the history and of all passes over it; None: the device of
            the parameters.
        compute_device: device of the small m x m solve; None: as the history.
        distributed: accepted for AADL's sake. Data-parallel ranks hold equal parameters and
            compute equal jumps, so nothing needs to be averaged.
        sync_frequency: likewise.
        mixing: "paper", Eq. 6: (1 - beta) w + beta (w + r - (W + R) gamma); "anderson", the
            classic damping: w - W gamma + beta (r - R gamma).
        safeguard: "residual" takes a jump back unless the next step's residual is smaller
            (Algorithm 1; no extra evaluation); "loss" calls the closure of ``step(closure)``
            twice more per jump and keeps the jump only if it lowers the loss of the batch
            below that of the plain step (BatchNorm statistics and gradients of parameters
            that are not this optimizer's see the calls); None keeps every finite jump.
        residual: "step", r = G(w) - w as in the paper.
        average_window: t >= 2, iterates in the moving average.
        average_threshold: epsilon > 0 of Eq. 16.
        scope: "all", one gamma for all parameters; "group", one per parameter group (AADL);
            "tensor", one per parameter tensor.
        solver: "gram", float64 normal equations; "tsqr", orthogonal; "auto", "tsqr" for a
            float64 history and else "gram".
        history_dtype: dtype of the stored rows; None: float64 if any parameter is, else
            float32. bfloat16 and float16 halve the memory.

    Returns:
        The same optimizer.

    Raises:
        TypeError: ``optimizer`` is not a ``torch.optim.Optimizer``.
        ValueError: an option is out of range, a parameter is complex or sparse, or the
            optimizer is accelerated already.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if optimizer in _hooks:
        raise ValueError(
            f"this {type(optimizer).__name__} is accelerated already; call "
            "remove_acceleration(optimizer) first to change its options"
        )
    options = Options(
        acceleration_type=acceleration_type,
        relaxation=relaxation,
        wait_iterations=wait_iterations,
        history_depth=history_depth,
        store_each_nth=store_each_nth,
        frequency=frequency,
        reg_acc=reg_acc,
        average=average,
        history_device=as_device("history_device", history_device),
        compute_device=as_device("compute_device", compute_device),
        mixing=mixing,
        safeguard=safeguard,
        residual=residual,
        average_window=average_window,
        average_threshold=average_threshold,
        scope=scope,
        solver=solver,
        history_dtype=history_dtype,
    )
    _hooks[optimizer] = StepHooks(optimizer, Accelerator(optimizer.param_groups, options))
    return optimizer


def distributed_accelerate(optimizer: AnyOptimizer, *args: Any, **kwargs: Any) -> AnyOptimizer:
    """AADL's name for data-parallel training: the same as :func:`accelerate`."""
    return accelerate(optimizer, *args, **kwargs)


def get_accelerator(optimizer: Optimizer) -> Accelerator:
    """The accelerator of ``optimizer``.

    Raises:
        ValueError: the optimizer is not accelerated.
    """
    return _find(optimizer).accelerator


def reset_acceleration_history(optimizer: Optimizer) -> None:
    """Forget all stored pairs, iterates and any pending jump; the parameters stay.

    Raises:
        ValueError: the optimizer is not accelerated.
    """
    _find(optimizer).accelerator.reset()


def remove_acceleration(optimizer: Optimizer) -> None:
    """Make ``optimizer`` a plain one again and free the history; the parameters stay.

    An optimizer that is not accelerated is left alone, as in AADL.
    """
    hooks = _hooks.pop(optimizer, None)
    if hooks is not None:
        hooks.remove()


def _find(optimizer: Optimizer) -> StepHooks:
    if optimizer not in _hooks:
        raise ValueError(
            f"this {type(optimizer).__name__} is not accelerated: call "
            "aadl_ext.accelerate(optimizer) first. Copies and unpickled copies of an "
            "accelerated optimizer are plain ones"
        )
    return _hooks[optimizer]
