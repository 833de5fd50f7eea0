"""Parameters <-> flat vector: which parameter lies where, and in which segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from . import ops
from .buffers import unset, zeros
from .ranks import Ranks, as_placed, is_dtensor, is_flattened, is_partial, local, local_gradient

PADDING = 64  # entries; rows of the history start on a multiple
Order = tuple[int, ...] | None  # dimensions from the outermost in memory on; None if row-major


@dataclass(eq=False)
class Layout:
    """Table of the accelerated parameters in one flat vector.

    Parameters that are frozen (``requires_grad=False``) or empty have no place in it. Each lies
    there in the order that its entries have in memory, so that a channels_last weight is copied as
    it lies; in checkpoints all are in logical order. Segments are the blocks with one learning rate
    and one least-squares problem: a parameter group each, or a tensor each with
    ``scope="tensor"``. Padding belongs to the last segment and stays zero.

    Where parameters are spread over ``ranks`` the vector holds the entries of this one. Copies of
    entries that another rank counts are a segment of their own, behind that of their problem:
    they are moved like all others, but have no part in products and norms.
    """

    parameters: tuple[Tensor, ...]
    size: int  #: entries without padding
    offsets: tuple[int, ...]  #: [S + 1] segment bounds, in entries
    groups: tuple[int, ...]  #: [S] parameter group of each segment
    dtype: torch.dtype  #: of working vectors: float64 if any parameter is, else float32
    device: torch.device  #: of working vectors
    limit: float  #: largest value that every parameter can hold
    rounding: tuple[float, ...]  #: [S] half of the machine epsilon of the coarsest parameter
    rounds: bool  #: whether some parameter is narrower than the working vectors
    trained: Trained | None  #: what is laid out; None: nothing that steps can go on with
    local_shapes: tuple[torch.Size, ...] = ()  #: of the entries of each parameter on this rank
    orders: tuple[Order, ...] = ()  #: of their dimensions, in the flat vector
    names: tuple[str, ...] = ()  #: of the parameters, in checkpoints
    owners: tuple[int, ...] = ()  #: parameter group of each parameter
    problems: tuple[int, ...] = ()  #: [S] problem of each segment, which copies share; or its own
    ranks: Ranks | None = None  #: that hold the other parameters
    entries: int = 0  #: of all ranks, each counted once

    @classmethod
    def build(
        cls,
        param_groups: list[dict[str, Any]],
        scope: str,
        device: torch.device | None,
        ranks: Ranks | None = None,
    ) -> Layout:
        """Lay out the trainable parameters of ``param_groups``; on all ``ranks`` at once.

        Raises:
            ValueError: a parameter is complex, sparse, not floating point, not initialized yet, or
                of a tensor class with a storage of its own; on any of the ranks, or they do not
                have the same problems.
        """
        if ranks is None:
            return cls._of_this_rank(param_groups, scope, device, None)
        layout, reason = None, ""
        try:
            layout = cls._of_this_rank(param_groups, scope, device, ranks)
        except ValueError as error:
            reason = str(error)
        reasons = ranks.exchange(reason)
        for rank, reason in zip(ranks.members, reasons, strict=True):
            if reason:
                raise ValueError(f"rank {rank}: {reason}")
        assert layout is not None
        return layout._agreed(ranks, _problems(param_groups, scope))

    @classmethod
    def _of_this_rank(
        cls,
        param_groups: list[dict[str, Any]],
        scope: str,
        device: torch.device | None,
        ranks: Ranks | None,
    ) -> Layout:
        parameters: list[Tensor] = []
        owners: list[int] = []
        names = _names(param_groups, ranks)
        offsets, groups, rounding = [0], [], []
        problems: list[int] = []
        entries = 0
        for index, group in enumerate(param_groups):
            members = [p for p in _checked(group["params"]) if _takes_part(p, ranks)]
            joint = [members] if members or ranks else []
            for problem in [[p] for p in members] if scope == "tensor" else joint:
                counted = [p for p in problem if ranks is None or ranks.count(p)]
                copies = [p for p in problem if not any(p is x for x in counted)]
                entries += sum(local(p).numel() for p in counted)
                for segment in (counted, copies) if copies else (counted,):
                    offsets.append(offsets[-1] + sum(local(p).numel() for p in segment))
                    groups.append(index)
                    problems.append(len({*problems}) - (segment is copies))
                    rounding.append(max((torch.finfo(p.dtype).eps / 2 for p in problem), default=0))
                    parameters += [p for p in segment if is_dtensor(p) or p.numel()]
                    owners += [index] * (len(parameters) - len(owners))
        size = offsets[-1]
        offsets[-1] = -(-max(size, ranks is not None) // PADDING) * PADDING
        wide = any(p.dtype == torch.float64 for p in parameters)
        dtype = torch.float64 if wide else torch.float32
        somewhere = parameters or _listed(param_groups)
        return cls(
            parameters=tuple(parameters),
            local_shapes=tuple(local(p).shape for p in parameters),
            orders=tuple(memory_order(local(p)) for p in parameters),
            owners=tuple(owners),
            names=tuple(names[id(p)] for p in parameters),
            size=size,
            offsets=tuple(offsets),
            groups=tuple(groups),
            problems=tuple(problems),
            dtype=dtype,
            device=device or (somewhere[0].device if somewhere else torch.device("cpu")),
            limit=min((torch.finfo(p.dtype).max for p in parameters), default=0.0),
            rounding=tuple(rounding),
            rounds=any(p.dtype != dtype for p in parameters),
            trained=Trained(param_groups),
            ranks=ranks,
            entries=entries,
        )

    def _agreed(self, ranks: Ranks, problems: list[Any]) -> Layout:
        """With the dtype, the limit and the errors of all ranks."""
        ranks.agree("the list of problems", problems)
        wide = self.dtype == torch.float64
        told = ranks.exchange((self.size, self.entries, wide, self.limit, self._of_problems()))
        sizes, entries, widths, limits, rounding = zip(*told, strict=True)
        dtype = torch.float64 if any(widths) else torch.float32
        errors = [max(errors) for errors in zip(*rounding, strict=True)]
        return replace(
            self,
            entries=sum(entries),
            dtype=dtype,
            limit=min((x for x, size in zip(limits, sizes, strict=True) if size), default=0.0),
            rounding=tuple(errors[problem] for problem in self.problems),
            rounds=any(p.dtype != dtype for p in self.parameters),
        )

    def _of_problems(self) -> list[float]:
        """Rounding of each problem."""
        return list(dict(zip(self.problems, self.rounding, strict=True)).values())

    def fits(self, param_groups: list[dict[str, Any]]) -> bool:
        """Whether the same parameters are still trained, with the same types and places."""
        return self.trained is not None and self.trained.fits(param_groups)

    def stand_in_(self, point: Tensor) -> None:
        """Put a tensor at ``point`` in the place of each parameter that lost its shape or values.

        The others can be read and written then, wherever they are now; but nothing fits any more.
        """
        lost = [
            x.shape != shape or (x.is_meta and not point.is_meta)
            for x, shape in zip(self.local, self.local_shapes, strict=True)
        ]
        if any(lost):
            choices = zip(lost, self._parts(point), self.parameters, strict=True)
            self.parameters = tuple(part if gone else p for gone, part, p in choices)
            self.trained = None
            self.__dict__.pop("in_place", None)

    @property
    def bounds(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where segments begin and end."""
        return self.offsets[:-1], self.offsets[1:]

    @property
    def padded(self) -> int:
        """Length of a working vector."""
        return self.offsets[-1]

    def within(self, part: slice) -> tuple[int, ...]:
        """``[S + 1]`` segment bounds of a part of a vector."""
        if part == slice(None):
            return self.offsets
        start, stop, _ = part.indices(self.padded)
        return tuple(min(max(x, start), stop) - start for x in self.offsets)

    def vector(self, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros: ``[N]``, or ``[rows, N]``."""
        shape = (self.padded,) if rows is None else (rows, self.padded)
        return zeros(shape, dtype or self.dtype, self.device)

    def without_parameters(self, size: int) -> Layout:
        """One problem over vectors of ``size`` entries, which are not those of parameters."""
        return Layout(
            parameters=(),
            size=size,
            offsets=(0, size),
            groups=(0,),
            dtype=self.dtype,
            device=self.device,
            limit=self.limit,
            rounding=(0.0,),
            rounds=False,
            trained=None,
            problems=(0,),
            entries=size,
        )

    def numbers(self, count: int) -> Tensor:
        """Zeros: ``[count]`` of the dtype of vectors."""
        return zeros((count,), self.dtype, self.device)

    def matrices(self, *shape: int) -> Tensor:
        """Zeros for small problems, one a segment: ``[S, *shape]`` float64."""
        return zeros((len(self.groups), *shape), torch.float64, self.device)

    def differ(self, now: Tensor, before: Tensor, largest: Tensor, rounding: float = 0.0) -> Tensor:
        """``[]`` bool, whether two points are not the same, up to eight roundings of the largest.

        Swapping other values in and out again, as schedule-free optimizers do, rounds them.
        ``rounding``: relative, if one is coarser than those of the parameters were at first.
        """
        now, before = now[: self.size], before[: self.size]  # padding is no parameter
        return ops.differs(now, before, largest, 8 * max((*self.rounding, rounding)))

    def moved(self, now: Tensor, before: Tensor, largest: Tensor) -> bool:
        """The same on the host; on all ranks at once, whether they do on any.

        Parameters that have another dtype since have not moved.
        """
        rounding = max((torch.finfo(p.dtype).eps / 2 for p in self.parameters), default=0.0)
        return bool(self.joint(self.differ(now, before, largest, rounding))[0])

    def joint(self, *figures: Tensor | None) -> Sequence[Any]:
        """What :meth:`Ranks.total` makes of them; of this rank alone they are what they are."""
        return self.ranks.total(*figures) if self.ranks else figures

    def read(self, out: Tensor) -> None:
        """Copy the parameters into ``out``, zeros into its padding."""
        ops.gather(self.ordered(self.local), out)

    def write(self, flat: Tensor, when: Tensor | None = None) -> None:
        """Copy ``flat`` into the parameters; ``flat`` takes over what they could hold of it.

        Nothing happens where ``when`` is false.
        """
        tensors = self.ordered(self.local)
        ops.scatter_(tensors, flat, when=when)
        if self.rounds:
            ops.gather(tensors, flat, when=when)

    def ordered(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Views of one tensor a parameter, of its shape, whose logical order is the flat vector's.

        They are copied fastest where they are contiguous: where strides are those that the
        parameter had at first.
        """
        if not self.reordered:
            return tensors
        return [ordered(x, order) for x, order in zip(tensors, self.orders, strict=True)]

    @cached_property
    def reordered(self) -> bool:
        """Whether some parameters lie in another order than that of their dimensions."""
        return any(self.orders)

    @property
    def local(self) -> Sequence[Tensor]:
        """Entries of the parameters on this rank; they may lie elsewhere in the next step."""
        return [local(p) for p in self.parameters] if self.sharded else self.parameters

    @property
    def gradients(self) -> list[Tensor | None]:
        """Entries of the gradients on this rank."""
        if self.sharded:
            return [local_gradient(p) for p in self.parameters]
        return [p.grad for p in self.parameters]

    @cached_property
    def in_place(self) -> bool:
        """Whether vectors are on the device of all parameters."""
        return all(p.device == self.device for p in self.parameters)

    @cached_property
    def sharded(self) -> bool:
        """Whether some are shards of a DTensor."""
        return any(is_dtensor(p) for p in self.parameters)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters, by name, over all ranks."""
        return dict(
            sorted((x, tuple(p.shape)) for x, p in zip(self.names, self.parameters, strict=True))
        )

    # ---- checkpoints ----------------------------------------------------------------------

    def by_parameter(self, vectors: Tensor) -> dict[str, Tensor]:
        """Copies of the entries of ``[..., N]``, a parameter each: ``[..., *shape]``.

        Those of a DTensor are one, with the same placements.
        """
        parts = zip(self.names, self._parts(vectors), self.parameters, strict=True)
        return {name: as_placed(part, parameter) for name, part, parameter in parts}

    def _parts(self, vectors: Tensor) -> Iterator[Tensor]:
        lead, start = vectors.shape[:-1], 0
        for shape, order in zip(self.local_shapes, self.orders, strict=True):
            part = vectors.new_empty((*lead, *shape))
            target = ordered(part, order, len(lead))
            target.copy_(vectors[..., start : start + shape.numel()].reshape(target.shape))
            yield part
            start += shape.numel()

    def fill(self, vectors: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Inverse of :meth:`by_parameter`, in place."""
        start = 0
        for name, shape, order in zip(self.names, self.local_shapes, self.orders, strict=True):
            part = vectors[..., start : start + shape.numel()]
            source = ordered(local(state[name]), order, vectors.ndim - 1)
            part.copy_(source.reshape(part.shape))
            start += shape.numel()
        return vectors

    # ---- figures of segments, and of problems; the same but for copies ------------------------

    @cached_property
    def _counted(self) -> Tensor | None:
        """Segment of each problem that this rank counts, if there are others."""
        first = {problem: i for i, problem in reversed([*enumerate(self.problems)])}
        index = [first[problem] for problem in sorted(first)]
        copies = len(index) < len(self.problems)
        return torch.tensor(index, device=self.device) if copies else None

    @cached_property
    def _problems(self) -> Tensor:
        return torch.tensor(self.problems, device=self.device)

    def counted(self, figures: Any) -> Any:
        """``[problems, ...]`` out of ``[S, ...]``, without copies; or of a tuple."""
        if self._counted is None:
            return figures
        if isinstance(figures, tuple):
            return tuple(figures[i] for i in self._counted.tolist())
        return figures[self._counted]

    def each(self, figures: Tensor) -> Tensor:
        """``[S, ...]`` out of ``[problems, ...]``, or ``[1, ...]`` of a joint one as it is."""
        joint = self._counted is None or len(figures) == 1
        return figures if joint else figures[self._problems]

    def without_copies(self, figures: Tensor) -> Tensor:
        """``[S, ...]`` out of ``[problems, ...]``, zero for copies."""
        if self._counted is None:
            return figures
        whole = figures.new_zeros(len(self.problems), *figures.shape[1:])
        whole[self._counted.to(whole.device)] = figures
        return whole

    def of_all(self, figures: Any) -> Any:
        """Inverse of :meth:`counted`."""
        if isinstance(figures, Tensor):
            return self.without_copies(figures)
        return tuple(figures[problem] for problem in self.problems)

    def products(self, rows: Tensor, *vectors: Tensor) -> Tensor:
        """``[m, k]`` float64 products of m rows with k vectors, or ``[k]`` of one; no copies."""
        products: Tensor = self.counted(
            ops.cross_products(rows.view(-1, self.padded), vectors, self.offsets)
        )
        return products.sum(dim=0).view(*rows.shape[:-1], len(vectors))

    @property
    def has_copies(self) -> bool:
        """Whether some entries are counted by another rank."""
        return self._counted is not None


@dataclass(eq=False)
class Room:
    """Point and gradient of a step: vectors that nobody needs while a model computes."""

    layout: Layout
    vectors: list[Tensor] = field(default_factory=list)  #: both, or none

    @property
    def point(self) -> Tensor:
        """``[N]`` w."""
        return self._vector(0)

    @property
    def gradient(self) -> Tensor:
        """``[N]`` g."""
        return self._vector(1)

    def _vector(self, index: int) -> Tensor:
        if not self.vectors:
            shape, dtype, device = (self.layout.padded,), self.layout.dtype, self.layout.device
            self.vectors = [unset(shape, dtype, device) for _ in range(2)]
        return self.vectors[index]

    def free(self) -> None:
        """Until one is asked for again."""
        self.vectors = []


def memory_order(tensor: Tensor) -> Order:
    """In which its dimensions lie in memory; None if row-major, or with gaps or overlaps."""
    if tensor.is_contiguous():
        return None
    order = tuple(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    return order if tensor.permute(order).is_contiguous() else None


def ordered(tensor: Tensor, order: Order, lead: int = 0) -> Tensor:
    """A view with the dimensions behind the first ``lead`` in this order."""
    if order is None:
        return tensor
    return tensor.detach().permute(*range(lead), *(lead + dimension for dimension in order))


def _takes_part(parameter: Tensor, ranks: Ranks | None) -> bool:
    """Whether it has a place; over several ranks also if it has entries on others only."""
    spread = ranks is not None and not is_dtensor(parameter)
    return parameter.requires_grad and (spread or parameter.numel() > 0)


def _names(param_groups: list[dict[str, Any]], ranks: Ranks | None) -> dict[int, str]:
    """By id: the name that the optimizer knows, or group and place; and the rank, if it matters."""
    names = dict(ranks.names) if ranks else {}
    for index, group in enumerate(param_groups):
        known = group.get("param_names")
        for place, parameter in enumerate(group["params"]):
            if id(parameter) in names:
                continue
            name = known[place] if known else f"{index}.{place}"
            alone = ranks is not None and not ranks.mesh and (not known or is_flattened(parameter))
            names[id(parameter)] = f"rank{ranks.index}.{name}" if ranks and alone else name
    return names


def _problems(param_groups: list[dict[str, Any]], scope: str) -> list[Any]:
    """What tells the problems apart, on all ranks alike."""
    if scope != "tensor":
        return list(range(len(param_groups)))
    trained = (p for group in param_groups for p in group["params"] if p.requires_grad)
    return [() if is_flattened(p) else tuple(p.shape) for p in trained]


def _checked(parameters: list[Tensor]) -> Iterator[Tensor]:
    """These; ValueError for one that is trained and cannot be laid out."""
    for tensor in parameters:
        kind = type(local(tensor))
        if is_lazy(tensor):
            raise ValueError(
                f"a parameter is a {kind.__name__}, whose shape is not known yet; run the model "
                "once, then make the optimizer and accelerate it"
            )
        if tensor.requires_grad:
            _check(tensor, kind)
        yield tensor


def _check(tensor: Tensor, kind: type[Tensor]) -> None:
    shape = tuple(tensor.shape)
    if is_partial(tensor):
        raise ValueError(
            f"a parameter of shape {shape} is a DTensor of partial sums, "
            f"{tensor.placements}; accelerated can be shards and copies: redistribute it first"  # type: ignore[attr-defined]
        )
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise ValueError(
            f"a parameter of shape {shape} is a {kind.__module__}.{kind.__qualname__}, a tensor "
            "class that keeps its entries in its own way; accelerated can be plain tensors and "
            "parameters: freeze it, or optimize it with another optimizer"
        )
    if tensor.is_complex():
        raise ValueError(
            f"a parameter of shape {shape} is {tensor.dtype}; complex parameters cannot be "
            "accelerated: optimize torch.view_as_real of them instead"
        )
    if tensor.layout != torch.strided:
        raise ValueError(
            f"a parameter of shape {shape} has layout {tensor.layout}; only dense parameters can "
            "be accelerated (sparse gradients of dense ones are fine)"
        )
    if tensor.dtype not in ops.STORAGE_DTYPES:
        raise ValueError(
            f"a parameter of shape {shape} is {tensor.dtype}; allowed are float64, float32, "
            "bfloat16 and float16"
        )


class Trained:
    """Which parameters each group had, and what they were.

    The layout holds them, so that an id cannot be given to another tensor.
    """

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        listed = _listed(param_groups)
        self._ids, self._facts = _ids(param_groups), _facts(listed)
        self._unchanged = _quick_check(listed)

    def fits(self, param_groups: list[dict[str, Any]]) -> bool:
        """Whether they still are the same, with the same types and places."""
        if self._ids != _ids(param_groups):
            return False
        listed = _listed(param_groups)
        return self._unchanged(*listed) or self._facts == _facts(listed)


def _listed(param_groups: list[dict[str, Any]]) -> list[Tensor]:
    return [p for group in param_groups for p in group["params"]]


def _ids(param_groups: list[dict[str, Any]]) -> list[list[int]]:
    return [[*map(id, group["params"])] for group in param_groups]


def _facts(tensors: list[Tensor]) -> list[Any]:
    return [*map(attrgetter("requires_grad", "shape", "dtype", "device"), tensors)]


def _quick_check(tensors: list[Tensor]) -> Callable[..., bool]:
    """Whether tensors are what these were, in a quarter of the time; false where it cannot tell.

    It is what torch's compiler asks before it runs what it has compiled.
    """
    try:
        sizes: Any = [[*x.shape] for x in tensors]
        strides: Any = [[*x.stride()] for x in tensors]
        guards: Any = torch._C._dynamo.guards.TensorGuards(
            *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
        )
    except Exception:  # not in this torch, or not for such tensors
        return lambda *_: False
    return guards.check  # type: ignore[no-any-return]
