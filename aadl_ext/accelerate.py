"""The drop-in entry: tie an accelerator to an optimizer, find it again, take it off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from .accelerator import Accelerator
from .hooks import StepHooks
from .machine import Machine
from .options import Options, as_device
from .subspace import SubspaceAccelerator

DEFAULT: Any = type("Default", (), {"__repr__": lambda _: "default of the type"})()
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

_hooks: WeakKeyDictionary[Optimizer, StepHooks] = WeakKeyDictionary()


def accelerate(
    optimizer: AnyOptimizer,
    acceleration_type: str = DEFAULT,
    relaxation: float = DEFAULT,
    wait_iterations: int = DEFAULT,
    history_depth: int = DEFAULT,
    store_each_nth: int = DEFAULT,
    frequency: int = DEFAULT,
    reg_acc: float = DEFAULT,
    average: bool = DEFAULT,
    history_device: torch.device | str | None = None,
    compute_device: torch.device | str | None = None,
    distributed: bool = False,
    sync_frequency: int = 1,
    *,
    safeguard: str | Sequence[str] | None = DEFAULT,
    residual: str = DEFAULT,
    momentum: str = DEFAULT,
    scope: str = DEFAULT,
    history_dtype: torch.dtype | None = DEFAULT,
    mixing: str = DEFAULT,
    solver: str = DEFAULT,
    average_window: int = DEFAULT,
    average_threshold: float = DEFAULT,
    coefficient_limit: float = DEFAULT,
    gradient_guard: float = DEFAULT,
    trust: float = DEFAULT,
    adapt_blocks: bool = DEFAULT,
    noise_rows: int = DEFAULT,
    noise_shrinkage: float = DEFAULT,
    curvature_floor: float = DEFAULT,
    memory_light: bool = False,
) -> AnyOptimizer:
    """Accelerate ``optimizer`` from its next ``step()`` on.

    The optimizer keeps its class, its ``step`` and its ``state_dict``; steps are watched
    through its hooks. After a jump the parameters are provisional until the next step has
    judged it (``safeguard="residual"``): where the jump did harm, that step takes it back
    and the base optimizer's own step is left out.

    There are two methods. ``accelerate(optimizer)`` takes ``"subspace_newton"``, which works
    under any base optimizer and with mini-batches. A call with any of AADL's arguments
    (``relaxation`` to ``compute_device``) takes ``"anderson"``, Algorithm 1 of the paper:
    those arguments carry the names, the order and the meaning of ORNL's AADL, so that a call
    written for it runs unchanged.

    Args:
        optimizer: any ``torch.optim.Optimizer`` over dense real parameters.
        acceleration_type: "subspace_newton"; "anderson"; "anderson_normal_equation", the same
            with ``solver="gram"``; "identity", no extrapolation (useful with ``average``).
        relaxation: beta, 0 < beta <= 1 (0.1; 1 for "subspace_newton"): see ``mixing``; with
            gradients the share of each jump that is taken.
        wait_iterations: no extrapolation at steps k <= this, counting from k = 0 (1; 0 for
            "subspace_newton").
        history_depth: m, columns of the small problem (15; 8 for "subspace_newton"; AADL
            counts iterates: its depth d gives d - 2 columns).
        store_each_nth: q, steps between two stored pairs (1). For "subspace_newton" the steps
            of a block: the means of points and gradients over a block are a pair (10).
        frequency: p, steps between two extrapolations (1). With gradients an extrapolation
            comes at the end of a block, p steps or more after the last.
        reg_acc: ridge of the least-squares problem in units of the squared column lengths (0;
            in AADL an absolute number). For "subspace_newton" the share of the largest
            eigenvalue below which directions count as dependent (1e-4).
        average: whether to average the last iterates while they oscillate (Eq. 11, 16; False).
            Not for "subspace_newton".
        history_device: device of the history and of all passes over it; None: the device of
            the parameters.
        compute_device: device of the small m x m solve; None: as the history.
        distributed: accepted for AADL's sake. Data-parallel ranks hold equal parameters and
            compute equal jumps, so nothing needs to be averaged.
        sync_frequency: likewise.
        safeguard: tests that a jump must pass, one name or several, or None: every finite jump
            is kept.
            "residual" (default) takes a jump back unless the next step's residual is smaller
            (Algorithm 1), or with gradients if the next gradient is more than
            ``gradient_guard`` times as large as recent ones; no extra evaluation.
            "loss" calls the closure of ``step(closure)`` twice more per jump and keeps the
            jump only if it lowers the loss of the batch below that of the plain step
            (BatchNorm statistics and gradients of parameters that are not this optimizer's
            see the calls).
            "limits" refuses coefficients whose magnitudes sum to more than
            ``coefficient_limit`` and, with gradients, cuts jumps to the trust radius.
            "descent" (with gradients only) refuses jumps along which the loss grows.
            "subspace_newton" has "residual", "descent" and "limits" by default, "anderson" with
            gradients "residual" and "descent".
        residual: "step", r = G(w) - w as in the paper; "gradient", r = -grad, where pairs are
            means over blocks of ``store_each_nth`` steps, under any base optimizer; "auto",
            "step" for SGD without momentum and else "gradient". "subspace_newton" takes
            gradients.
        momentum: after a jump, "keep" the first moments of the base optimizer; "reset" them to
            zero; "scale" them by the reduction of the residual that the jump predicts (for
            "subspace_newton" within its span only, so nearly zero).
        scope: "all", one small problem for all parameters; "group", one per parameter group
            (AADL); "tensor", one per parameter tensor.
        history_dtype: dtype of the stored rows; None: float64 if any parameter is, else
            float32. bfloat16 and float16 halve the memory.
        mixing: "paper", Eq. 6: (1 - beta) w + beta (w + r - (W + R) gamma); "anderson", the
            classic damping: w - W gamma + beta (r - R gamma).
        average_window: t >= 2, iterates in the moving average (5).
        average_threshold: epsilon > 0 of Eq. 16 (0.1).
        solver: "gram", float64 normal equations; "tsqr", orthogonal; "auto", "tsqr" for a
            float64 history and else "gram". With gradients always "gram".
        coefficient_limit: largest sum of |gamma| under safeguard "limits" (100).
        gradient_guard: largest growth of the gradient's norm that a jump may cause (2).
        trust: first limit of a jump under safeguard "limits", in units of the way between the
            last two block means; it doubles where jumps could have been longer and shrinks
            where they went too far (4).
        adapt_blocks: whether blocks grow up to four times ``store_each_nth`` while jumps go too
            far because of noise, and shrink to a quarter of it while there is hardly any and
            whole jumps are right (True with "subspace_newton", where ``noise_rows`` are kept to
            measure it).
        noise_rows: of "subspace_newton": noise samples kept, each a vector (9; 0: no shrinkage).
        noise_shrinkage: of "subspace_newton": weight of the noise that reduces each direction's
            step (4).
        curvature_floor: of "subspace_newton": least curvature taken for a direction, relative to
            the largest (0.01).
        memory_light: of "subspace_newton": 23 vectors of the size of the parameters in place of
            35, by ``history_depth`` 5 and ``noise_rows`` 3 unless they are given.

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
    devices = {
        "history_device": as_device("history_device", history_device),
        "compute_device": as_device("compute_device", compute_device),
    }
    of_anderson = _given(
        relaxation=relaxation,
        wait_iterations=wait_iterations,
        history_depth=history_depth,
        store_each_nth=store_each_nth,
        frequency=frequency,
        reg_acc=reg_acc,
        average=average,
        mixing=mixing,
        solver=solver,
        average_window=average_window,
        average_threshold=average_threshold,
    )
    of_both = _given(
        safeguard=safeguard,
        residual=residual,
        momentum=momentum,
        scope=scope,
        history_dtype=history_dtype,
        coefficient_limit=coefficient_limit,
        gradient_guard=gradient_guard,
        trust=trust,
        adapt_blocks=adapt_blocks,
    )
    of_newton = _given(
        noise_rows=noise_rows,
        noise_shrinkage=noise_shrinkage,
        curvature_floor=curvature_floor,
    )
    if acceleration_type is DEFAULT:
        as_aadl = of_anderson or any(devices.values()) or residual == "step"
        if as_aadl and of_newton:  # they would be ignored
            raise ValueError(
                f"{min(of_newton)} is for 'subspace_newton', but another argument asks for "
                "'anderson', as all arguments of AADL do; name the method: "
                "acceleration_type='subspace_newton'"
            )
        acceleration_type = "anderson" if as_aadl else "subspace_newton"
    given = {**of_anderson, **of_both, **of_newton, **devices}
    options = Options.of(acceleration_type, memory_light, **given)
    gradients = options.uses_gradients(optimizer)
    machine = SubspaceAccelerator if gradients else Accelerator
    _hooks[optimizer] = StepHooks(optimizer, machine(optimizer.param_groups, options))
    return optimizer


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not DEFAULT}


def distributed_accelerate(optimizer: AnyOptimizer, *args: Any, **kwargs: Any) -> AnyOptimizer:
    """AADL's name for data-parallel training: the same as :func:`accelerate`."""
    return accelerate(optimizer, *args, **kwargs)


def get_accelerator(optimizer: Optimizer) -> Machine:
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
