"""What acceleration will cost, before anything is allocated: counted on device "meta"."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from . import optimizer_hook, state
from .accelerator import Accelerator
from .ops.chunks import undivided
from .ops.traffic import Traffic
from .options import Method, SubspaceNewton
from .quasi_newton import FOLLOW
from .race import FIRST, SETTLES, TRIAL
from .ranks import Ranks, local
from .trust_region import Delayed

REPEATING = "where gradients repeat, as on full batches"


@dataclass
class Plan:
    """Costs on one rank; of a step the mean over accepted ones once the history is full."""

    ranks: int  #: that solve one problem
    entries: int  #: of the parameters on this rank
    bytes_held: int  #: memory of all buffers, as ``Stats.bytes_held``
    bytes_offloaded: int  #: of these, in host memory, with parameters on another device
    bytes_moved: float  #: read and written in a step, beyond the base optimizer's
    collectives: float  #: in a step
    bytes_sent: float  #: in a step, to each other rank
    most_sent: int  #: in one collective
    #: the same of quasi-Newton steps, where gradients repeat; None for a method without them
    repeating: Plan | None = None

    @property
    def vectors(self) -> float:
        """Memory in units of the parameters in float32."""
        return self.bytes_held / max(4 * self.entries, 1)

    def seconds(self, bandwidth: float, network: float, latency: float) -> float:
        """Of a step, at bytes a second of memory and network and seconds a collective."""
        received = self.bytes_sent * self.ranks
        return self.bytes_moved / bandwidth + received / network + self.collectives * latency

    def __str__(self) -> str:
        ranks = f"one of {self.ranks:,} ranks" if self.ranks > 1 else "one process"
        lines = [
            f"on {ranks}, which holds {self.entries:,} entries of the parameters",
            *self.costs(),
        ]
        if self.repeating:
            lines += [REPEATING, *self.repeating.costs()]
        return "\n".join(lines)

    def costs(self) -> list[str]:
        """A line for each kind."""
        vectors = f"{self.vectors:.4g} times the parameters in float32"
        if self.bytes_offloaded:
            vectors += f", of which {_bytes(self.bytes_offloaded)} in host memory"
        lines = [
            f"memory       {_bytes(self.bytes_held)}, {vectors}",
            f"moved        {_bytes(self.bytes_moved)} a step, beside the base optimizer's",
        ]
        if self.ranks > 1:
            sent = f"{_bytes(self.bytes_sent)} a step to each other rank"
            lines += [
                f"collectives  {self.collectives:.3g} a step",
                f"sent         {sent}, at most {_bytes(self.most_sent)} at once",
            ]
        return lines


def _bytes(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    power = min(int(math.log10(max(count, 1)) // 3), len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"


def plan(
    target: nn.Module | Optimizer, method: Method | None = None, process_group: Any = None
) -> Plan:
    """What it costs to accelerate the parameters of a model or of an optimizer.

    Shapes, dtypes and placements are looked at, on any device, "meta" included; nothing is
    allocated, changed or sent, so that one rank may ask alone.

    Args:
        target: its trainable parameters count; in their groups, if it is an optimizer.
        method: of an accelerated optimizer, else :class:`SubspaceNewton`, if None.
        process_group: as in :func:`~aadl_ext.accelerate`.
    """
    optimizer = SGD(target.parameters()) if isinstance(target, nn.Module) else target
    hook = optimizer_hook.find(optimizer)
    method = method or (hook.accelerator.options if hook else SubspaceNewton())
    ranks = Ranks.find(optimizer, process_group)
    shapes = [
        [(tuple(local(p).shape), p.dtype) for p in group["params"] if p.requires_grad]
        for group in optimizer.param_groups
    ]
    method = replace(method, storage=replace(method.storage, device=None, compute_device=None))
    imitation = _Imitation(shapes, method, ranks)
    found = Plan(
        ranks=len(ranks.members) if ranks else 1,
        entries=imitation.accelerator.layout.size,
        bytes_held=state.bytes_held(imitation.accelerator.iteration),
        bytes_offloaded=imitation.accelerator.iteration.bytes_offloaded,
        **_costs(shapes, method, ranks),
    )
    if isinstance(method, SubspaceNewton) and method.uses_quasi_newton:
        imitation.repeat()
        costs = _costs_of(imitation, shapes, FIRST + TRIAL + SETTLES, FOLLOW)
        held = state.bytes_held(imitation.accelerator.iteration)
        found.repeating = replace(found, bytes_held=held, **costs)
    return found


def _costs(shapes: Any, method: Method, ranks: Ranks | None) -> dict[str, Any]:
    if isinstance(method, SubspaceNewton):  # the host would have to read how long blocks are
        method = replace(method, adaptive_blocks=False, quasi_newton=False)
        cycle = method.block_length
        full = cycle * (max(method.history_depth, method.noise_samples) + 2)
    else:
        cycle = math.lcm(method.frequency, method.store_each_nth)
        full = cycle + max(
            method.wait_iterations,
            (method.history_depth + 2) * method.store_each_nth,
            method.averaging.window if method.averaging else 0,
        )
    return _costs_of(_Imitation(shapes, method, ranks), shapes, full, cycle)


def _costs_of(imitation: _Imitation, shapes: Any, full: int, cycle: int) -> dict[str, Any]:
    """Fields of a :class:`Plan`, over the ``cycle`` steps after ``full`` others."""
    with undivided():
        bare = _moved(_Imitation(shapes, None, None), 1, cycle)
        moved = _moved(imitation, full, cycle)
    ever = imitation.ranks.told if imitation.ranks else [[]] * cycle
    told = ever[-cycle:]
    return {
        "bytes_moved": (moved - bare) / cycle,
        "collectives": sum(map(len, told)) / cycle,
        "bytes_sent": sum(map(sum, told)) / cycle,
        "most_sent": max((size for sizes in ever for size in sizes), default=0),
    }


@dataclass(eq=False)
class _Told(Ranks):
    """Says nothing to others, and counts what it would."""

    told: list[list[int]] = field(default_factory=list)  # bytes of the collectives of each step

    def count(self, parameter: Tensor) -> bool:
        return True

    def gather(self, *figures: Tensor) -> list[Tensor]:
        if self.told:
            self.told[-1].append(8 * sum(x.numel() for x in figures))
        return [x.double().expand(len(self.members), *x.shape) for x in figures]

    def exchange(self, fact: Any) -> list[Any]:
        return [fact] * len(self.members)


class _Imitation:
    """An accelerated optimizer over parameters of these shapes, on device "meta"."""

    def __init__(self, shapes: list[Any], method: Method | None, ranks: Ranks | None) -> None:
        groups = [
            {"params": [nn.Parameter(torch.empty(x, dtype=y, device="meta")) for x, y in group]}
            for group in shapes
        ]
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer, self.ranks = SGD(groups, lr=0.1), None
        if ranks is not None:
            self.ranks = _Told(ranks.group, torch.device("meta"), ranks.members)
        self.accelerator: Any = None
        if method is not None:
            groups = self.optimizer.param_groups
            self.accelerator = Accelerator(groups, method, ranks=self.ranks)
            optimizer_hook.OptimizerHook(self.optimizer, self.accelerator)

    def repeat(self) -> None:
        """Gradients repeat, and the host keeps on hearing of it."""
        steps = self.accelerator.iteration.quasi_newton
        steps.begin()
        steps.known = _Yes()

    def step(self) -> None:
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)
        if self.ranks:
            self.ranks.told.append([])
        self.optimizer.step()


class _Yes(Delayed):
    def exchange(self, number: Tensor) -> float:
        return 1


class _Usual(Traffic):  # type: ignore[no-untyped-call]
    """Traffic of steps that no safeguard objects to: other flags than these are false."""

    def __init__(self, imitation: _Imitation) -> None:
        super().__init__()
        when = imitation.accelerator.iteration.verdicts.when if imitation.accelerator else None
        self.usual = [when.write, when.accepted, when.ready] if when else []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        when = (kwargs or {}).get("when")
        if when is None or any(when is flag for flag in self.usual):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs)


def _moved(imitation: _Imitation, full: int, cycle: int) -> int:
    """Bytes of the last ``cycle`` steps."""
    for _ in range(full):
        imitation.step()
    with _Usual(imitation) as traffic:
        for _ in range(cycle):
            imitation.step()
    moved: int = traffic.read + traffic.written
    return moved
