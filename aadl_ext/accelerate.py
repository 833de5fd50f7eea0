"""The drop-in entry: tie an accelerator to an optimizer, find it again, take it off."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from . import optimizer_hook
from .accelerator import Accelerator
from .options import Anderson, Method, Storage, SubspaceNewton
from .ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.optim import Optimizer

UNSET: Any = type("Unset", (), {"__repr__": lambda _: "default"})()
AnyOptimizer = TypeVar("AnyOptimizer", bound="Optimizer")

# AADL's names of its types, in any case.
AADL_TYPES: dict[str, dict[str, Any]] = {
    "anderson": {},
    "anderson_normal_equation": {"solver": "gram"},
    "identity": {"history_depth": 0},
}


def accelerate(
    optimizer: AnyOptimizer,
    method: Method | str | None = None,
    relaxation: float = UNSET,
    wait_iterations: int = UNSET,
    history_depth: int = UNSET,
    store_each_nth: int = UNSET,
    frequency: int = UNSET,
    reg_acc: float = UNSET,
    average: bool = UNSET,
    history_device: Any = None,
    compute_device: Any = None,
    distributed: bool = False,
    sync_frequency: int = 1,
    *,
    acceleration_type: str | None = None,
    total_steps: int | None = None,
    process_group: ProcessGroup | None = None,
) -> AnyOptimizer:
    """Accelerate ``optimizer`` from its next ``step()`` on.

    The optimizer keeps its class, its ``step`` and its ``state_dict``; steps are watched
    through its hooks. After an extrapolation the parameters are provisional until the next step
    has judged it (safeguard "residual"): where it did harm, that step rejects it: the
    parameters roll back, and the base optimizer's own step is left out::

        accelerate(optimizer)                                  # SubspaceNewton()
        accelerate(optimizer, SubspaceNewton(history_depth=6))
        accelerate(optimizer, Anderson(frequency=10, relaxation=1))

    Calls written for ORNL's AADL run unchanged, by position or by name: the arguments after
    ``method`` have its names, its order and its meaning, and select :class:`Anderson`.

    Args:
        optimizer: any ``torch.optim.Optimizer`` over dense real parameters. In a wrapper whose
            groups and state are those of the optimizer inside (HF Accelerate, Lightning, Opacus)
            that one is accelerated.
        method: :class:`SubspaceNewton`, which works under any base optimizer and with mini-batches,
            or :class:`Anderson`, Algorithm 1 of the paper, with their options; or AADL's name of a
            type: "anderson", "anderson_normal_equation" (with ``solver="gram"``) or "identity" (no
            extrapolation, useful with ``average``).
        relaxation: of :class:`Anderson`, as the five after it.
        wait_iterations: likewise.
        history_depth: likewise.
        store_each_nth: likewise.
        frequency: likewise.
        reg_acc: likewise.
        average: likewise.
        history_device: ``Storage.device``.
        compute_device: ``Storage.compute_device``.
        distributed: whether all ranks train one model, as ``process_group`` with all of them.
        sync_frequency: accepted for AADL's sake, and warned about: what ranks tell each other is
            needed at once.
        acceleration_type: AADL's name of ``method``.
        total_steps: how often ``step()`` will be called in all, if that is known: the last call
            leaves no extrapolation that nobody has judged. Under ``GradScaler``, which leaves steps
            out, call :func:`finish` instead.
        process_group: the ranks whose optimizers hold the parameters of one model, such as the
            stages of a pipeline. Of DTensors (FSDP2, tensor parallelism), FSDP1 and
            ZeroRedundancyOptimizer it is found. Ranks with equal copies of all parameters (DDP)
            need none, unless losses are compared (safeguard "loss"): their mean over it counts.

    Returns:
        The same optimizer.

    Raises:
        TypeError: ``optimizer`` is not a ``torch.optim.Optimizer`` whose step hooks run, or it does
            more than hand its steps to one inside (Lookahead, SAM); or ``method`` is no method.
        ValueError: an option is out of range, a parameter is complex, sparse or of a tensor class
            with a storage of its own, steps are to be differentiated, or the optimizer is
            accelerated already. Of several ranks all raise it, with the reason of the one that has
            it; also where their options differ, or their process group is not known.
    """
    if optimizer_hook.find(optimizer) is not None:
        raise ValueError(
            f"this {type(optimizer).__name__} is accelerated already; call "
            "remove_acceleration(optimizer) first to change its options"
        )
    stepping = optimizer_hook.stepping(optimizer)
    given: dict[str, Any] = {
        "relaxation": relaxation,
        "wait_iterations": wait_iterations,
        "history_depth": history_depth,
        "store_each_nth": store_each_nth,
        "frequency": frequency,
        "reg_acc": reg_acc,
        "average": average,
        "history_device": UNSET if history_device is None else history_device,
        "compute_device": UNSET if compute_device is None else compute_device,
    }
    given = {name: value for name, value in given.items() if value is not UNSET}
    if acceleration_type is not None and method is not None:
        raise ValueError(
            f"acceleration_type is {acceleration_type!r}, but method is {method!r}; give one"
        )
    options = _method(acceleration_type if method is None else method, given)
    if sync_frequency != 1:
        warnings.warn(
            f"sync_frequency={sync_frequency} has no effect: all ranks solve one problem, from a "
            "few figures that they tell each other in the steps that need them",
            stacklevel=2,
        )
    ranks = Ranks.find(stepping, process_group, distributed)
    if ranks is None and "loss" in options.tests and Ranks.several():
        warnings.warn(
            'safeguard="loss" compares the losses of this rank, though there are others: where '
            "each has its own batch they come to different verdicts and drift apart. Give "
            "accelerate(..., process_group=torch.distributed.group.WORLD), then the mean counts",
            stacklevel=2,
        )
    accelerator = Accelerator(stepping.param_groups, options, total_steps, ranks)
    optimizer_hook.OptimizerHook(stepping, accelerator)
    return optimizer


def _method(method: Method | str | None, given: dict[str, Any]) -> Method:
    """The method that is asked for; ``given`` are arguments of AADL."""
    if isinstance(method, str):
        known = AADL_TYPES.get(method.lower())
        if known is None:
            names = ", ".join(map(repr, AADL_TYPES))
            raise ValueError(
                f"acceleration_type is {method!r}; AADL's types are {names}, and the methods of "
                "this package are given as objects: accelerate(optimizer, SubspaceNewton(...))"
            )
        return _anderson({**given, **known})
    if isinstance(method, (Anderson, SubspaceNewton)):
        if given:
            raise ValueError(
                f"{min(given)} is given beside {type(method).__name__}(...); give it to that"
            )
        return method
    if method is not None:
        advice = f"; write {method.__name__}()" if isinstance(method, type) else ""
        raise TypeError(f"expected Anderson(...) or SubspaceNewton(...), got {method!r}{advice}")
    if given:
        warnings.warn(
            f"{min(given)} is an argument of AADL and selects Anderson acceleration; to keep the "
            "default method call accelerate(optimizer, SubspaceNewton(...)), and to silence this "
            "accelerate(optimizer, Anderson(...))",
            stacklevel=3,
        )
        return _anderson(given)
    return SubspaceNewton()


def _anderson(given: dict[str, Any]) -> Anderson:
    devices = {"history_device": "device", "compute_device": "compute_device"}
    storage = Storage(**{devices[name]: given[name] for name in devices if name in given})
    return Anderson(**{x: y for x, y in given.items() if x not in devices}, storage=storage)


distributed_accelerate = accelerate  # AADL's name for data-parallel training


def get_accelerator(optimizer: Optimizer) -> Accelerator:
    """The accelerator of ``optimizer``.

    Raises:
        ValueError: the optimizer is not accelerated.
    """
    return _find(optimizer).accelerator


def reset_acceleration_history(optimizer: Optimizer) -> None:
    """Forget all stored pairs, iterates and any pending extrapolation; the parameters stay.

    Raises:
        ValueError: the optimizer is not accelerated.
    """
    _find(optimizer).accelerator.reset()


def remove_acceleration(optimizer: Optimizer) -> None:
    """Make ``optimizer`` a plain one again and free the history.

    The parameters stay, but for an extrapolation that is to be judged, which is rolled back. An
    optimizer that is not accelerated is left alone, as in AADL.
    """
    hook = optimizer_hook.find(optimizer)
    if hook is not None:
        hook.accelerator.roll_back()
        hook.remove()


def settled(optimizer: Optimizer) -> AbstractContextManager[None]:
    """Judged parameters, for as long as the block lasts; training then goes on as without it.

    To evaluate and to save::

        with aadl_ext.settled(optimizer):
            evaluate(model)
            torch.save(model.state_dict(), "model.pt")

    After an extrapolation the parameters are provisional until the next step has judged them. Such
    a point is set aside here: :meth:`Accelerator.settled`. Any optimizer may be given, also a plain
    one. A step within raises RuntimeError.
    """
    hook = optimizer_hook.find(optimizer)
    return nullcontext() if hook is None else hook.accelerator.settled()


def finish(optimizer: Optimizer) -> None:
    """End training at judged parameters: roll an extrapolation back that is still to be judged.

    Where the number of steps is known beforehand, ``accelerate(..., total_steps=...)`` does it.
    """
    hook = optimizer_hook.find(optimizer)
    if hook is not None:
        hook.accelerator.roll_back()


def _find(optimizer: Optimizer) -> optimizer_hook.OptimizerHook:
    hook = optimizer_hook.find(optimizer)
    if hook is None:
        raise ValueError(
            f"this {type(optimizer).__name__} is not accelerated: call "
            "aadl_ext.accelerate(optimizer) first. Copies and unpickled copies of an "
            "accelerated optimizer are plain ones"
        )
    return hook
