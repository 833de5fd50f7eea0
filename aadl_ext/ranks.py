"""The ranks that hold the parameters of one problem together, and what they tell each other.

Everything goes through ``torch.distributed``. A DTensor says on which ranks its shards are; of
other sharded parameters the types are known, or the user gives the process group.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .trust_region import Delayed

Groups = list[dict[str, Any]]


def is_dtensor(tensor: Any) -> bool:
    """Whether it is a ``DTensor``; their module takes a second to import, so this does not."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_partial(tensor: Any) -> bool:
    """Whether it is a DTensor of terms that are still to be summed."""
    return is_dtensor(tensor) and any(x.is_partial() for x in tensor.placements)


def local(tensor: Tensor) -> Tensor:
    """The entries on this rank, without a graph: the shard of a DTensor, or the tensor itself."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        shard: Any = tensor.to_local()  # type: ignore[attr-defined]
    shard = shard.wait() if hasattr(shard, "trigger_wait") else shard  # still on its way
    return shard  # type: ignore[no-any-return]


def local_gradient(parameter: Tensor) -> Tensor | None:
    """The entries of its gradient on this rank, laid out as those of the parameter."""
    gradient = parameter.grad
    if gradient is None or not is_dtensor(gradient):
        return gradient
    if gradient.placements != parameter.placements:  # type: ignore[attr-defined]
        gradient = gradient.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]
    return local(gradient)


def as_placed(part: Tensor, parameter: Tensor) -> Tensor:
    """Of a DTensor: one made of the parts ``[..., *shape]`` on all ranks, placed as it is."""
    if not is_dtensor(parameter):
        return part
    lead, like = part.shape[: part.ndim - parameter.ndim], cast("Any", parameter)
    shape = torch.Size((*lead, *parameter.shape))
    return type(like).from_local(  # type: ignore[no-any-return]
        part,
        like.device_mesh,
        [_behind(x, len(lead)) for x in like.placements],
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def _behind(placement: Any, dimensions: int) -> Any:
    """The same placement, of a tensor with further dimensions in front."""
    if placement.is_replicate():
        return placement
    split = {"split_factor": placement.split_factor} if hasattr(placement, "split_factor") else {}
    return type(placement)(placement.dim + dimensions, **split)


@dataclass(eq=False)
class Ranks:
    """A process group whose ranks solve one problem; on each the same calls in the same order.

    Where there is no mesh, what is trained may change on one rank alone. Then that tells the
    others, beside its next figures, which are NaN; all have ``heard`` it at the call after that.
    There the host is never more than one call ahead of the device.
    """

    group: dist.ProcessGroup
    device: torch.device  #: of what is sent
    members: tuple[int, ...]  #: their global ranks
    mesh: Any = None  #: the widest DeviceMesh of the parameters, if there is one
    names: dict[int, str] = field(default_factory=dict)  #: by id, of those of a ZeRO optimizer
    changed: bool = False  #: whether the parameters of this rank have
    heard: bool = False  #: whether those of some rank have
    _news: Delayed = field(default_factory=Delayed)

    @classmethod
    def find(
        cls,
        optimizer: torch.optim.Optimizer,
        group: dist.ProcessGroup | None = None,
        every: bool = False,
    ) -> Ranks | None:
        """Those over which the trainable parameters are spread, or None for this one alone.

        ``every``: all, if no group is given.

        Raises:
            ValueError: it cannot be told which they are, or this rank is none of them.
        """
        if not cls.several():
            return None
        parameters = list(_trainable(optimizer.param_groups))
        meshes = {p.device_mesh for p in parameters if is_dtensor(p)}  # type: ignore[attr-defined]
        zero = _zero_around(optimizer)
        if group is None and every:
            group = dist.group.WORLD
        if group is None and meshes:
            group = _group_of(meshes)
        elif group is None and any(map(is_flattened, parameters)):
            group = dist.group.WORLD  # whole copies on some ranks weigh all entries alike
        elif group is None and zero is not None:
            group = zero.process_group
        if group is None or dist.get_world_size(group) == 1:
            return None
        members = tuple(dist.get_process_group_ranks(group))
        if dist.get_rank() not in members:
            raise ValueError(
                f"rank {dist.get_rank()} is not in the process group, which has ranks "
                f"{list(members)}; accelerate on these only, or give the group of all ranks that "
                "hold parameters"
            )
        anywhere = [p for x in optimizer.param_groups for p in x["params"]]
        device = anywhere[0].device if anywhere else torch.device("cpu")
        names = _places(zero.param_groups) if zero is not None else {}
        return cls(group, device, members, _widest(meshes), names)

    @staticmethod
    def several() -> bool:
        """Whether this is one of several processes of ``torch.distributed``."""
        begun = dist.is_available() and dist.is_initialized()
        return begun and dist.get_world_size() > 1

    @property
    def index(self) -> int:
        """Of this rank among them."""
        return self.members.index(dist.get_rank())

    def count(self, parameter: Tensor) -> bool:
        """Whether this rank counts its entries: the first of those that have the same.

        On dimensions of the widest mesh that its own has not, and on all if it is no DTensor,
        there are copies of it.
        """
        if self.mesh is None or is_flattened(parameter):
            return True
        mesh, sharded = self.mesh, set()
        if is_dtensor(parameter):
            own: Any = parameter.device_mesh  # type: ignore[attr-defined]
            mesh = self.mesh if {*_dimensions(own)} <= {*_dimensions(self.mesh)} else own
            placed = zip(_dimensions(own), parameter.placements, strict=True)  # type: ignore[attr-defined]
            sharded = {name for name, placement in placed if not placement.is_replicate()}
        place = mesh.get_coordinate()
        if place is None:
            return False
        names = zip(_dimensions(mesh), place, strict=True)
        holders = mesh.mesh[tuple(i if name in sharded else slice(None) for name, i in names)]
        present = [rank for rank in holders.flatten().tolist() if rank in self.members]
        return min(present, default=None) == dist.get_rank()

    def gather(self, *figures: Tensor) -> list[Tensor]:
        """``[ranks, *shape]`` float64 of each, in the order of the ranks: the same bits on all.

        One collective for all figures; the devices of the figures, which are one.
        """
        mine = torch.cat([x.detach().double().reshape(-1) for x in figures]).to(self.device)
        if self.mesh is None:
            news = mine.new_full((1,), self.changed)
            mine = torch.cat([news, mine.masked_fill(news > 0, math.nan)])
        every = mine.new_empty(len(self.members), mine.numel())
        dist.all_gather(list(every.unbind()), mine, group=self.group)
        if self.mesh is None:
            self.heard = self._news.exchange(every[:, 0].amax()) > 0
            every = every[:, 1:]
        sizes = [x.numel() for x in figures]
        parts = every.to(figures[0].device).split_with_sizes(sizes, dim=1)
        return [part.reshape(len(part), *x.shape) for part, x in zip(parts, figures, strict=True)]

    def total(self, *figures: Tensor | None) -> list[Any]:
        """Sums over the ranks, float64; of flags whether they are true on any; None for None.

        One collective.
        """
        told = iter(self.gather(*(x for x in figures if x is not None)))
        return [None if x is None else _added(next(told), x.dtype) for x in figures]

    def forget_news(self) -> None:
        """All know of what has changed."""
        self.changed, self.heard, self._news = False, False, Delayed()

    def exchange(self, fact: Any) -> list[Any]:
        """What each rank has to say, in the order of the ranks; waits."""
        facts = [None] * len(self.members)
        dist.all_gather_object(facts, fact, group=self.group)
        return facts

    def agree(self, name: str, fact: Any) -> None:
        """Raise ValueError, on all ranks, unless the fact is the same on all of them."""
        facts = self.exchange(fact)
        other = next((i for i, x in enumerate(facts) if x != facts[0]), None)
        if other is not None:
            raise ValueError(
                f"{name} must be the same on all ranks, but is {facts[0]!r} on rank "
                f"{self.members[0]} and {facts[other]!r} on rank {self.members[other]}"
            )


def _added(gathered: Tensor, dtype: torch.dtype) -> Tensor:
    return gathered.any(dim=0) if dtype == torch.bool else gathered.sum(dim=0)


def _trainable(groups: Groups) -> Iterator[Tensor]:
    return (p for group in groups for p in group["params"] if p.requires_grad)


def _dimensions(mesh: Any) -> tuple[Any, ...]:
    """Their names, or numbers of a mesh without."""
    return mesh.mesh_dim_names or tuple(range(mesh.ndim))


def _widest(meshes: set[Any]) -> Any:
    return max(meshes, key=lambda mesh: mesh.size(), default=None)


def _group_of(meshes: set[Any]) -> dist.ProcessGroup | None:
    """The process group of all ranks of these meshes."""
    widest = _widest(meshes)
    ranks = {rank for mesh in meshes for rank in mesh.mesh.flatten().tolist()}
    if widest.ndim == 1 and len(ranks) == widest.size():
        return widest.get_group()  # type: ignore[no-any-return]
    if len(ranks) == dist.get_world_size():
        return dist.group.WORLD
    raise ValueError(
        f"the parameters lie on ranks {sorted(ranks)}, which is neither a mesh of one dimension "
        "nor all ranks, so their process group is not known: give it, "
        "accelerate(..., process_group=torch.distributed.new_group(...))"
    )


def _zero_around(optimizer: torch.optim.Optimizer) -> Any:
    """The ZeroRedundancyOptimizer whose share on this rank it steps, or None."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    if module is None:
        return None
    zero = module.ZeroRedundancyOptimizer
    around = (x for x in gc.get_objects() if issubclass(type(x), zero))
    return next((x for x in around if getattr(x, "optim", None) is optimizer), None)


def _places(groups: Groups) -> dict[int, str]:
    """By id: group and place of each parameter."""
    listed = ((i, group["params"]) for i, group in enumerate(groups))
    return {id(p): f"{i}.{place}" for i, members in listed for place, p in enumerate(members)}


def is_flattened(parameter: Tensor) -> bool:
    """Whether FSDP1 keeps it in a flat parameter, of which each rank has a part."""
    return bool(getattr(parameter, "_fsdp_flattened", False))
