"""A model of any size on any mesh, without memory or other processes; for the command line."""

from __future__ import annotations

import ast
import math

import torch
import torch.distributed as dist
from torch import nn

from .options import Anderson, Method, Storage, SubspaceNewton


def imagined_model(parameters: float, dtype: torch.dtype, mesh: str) -> nn.Module:
    """One parameter with so many entries on device "meta", as a DTensor if the mesh is not 1.

    ``mesh``: sizes such as "64x8"; one that begins with r has copies. Begins ``torch.distributed``
    with torch's fake process group, as the first of all ranks.

    Raises:
        ValueError: the mesh cannot be read, or there is less than one entry a rank.
    """
    names = mesh.lower().split("x")
    copies = [name.startswith("r") for name in names]
    try:
        sizes = [int(name.removeprefix("r")) for name in names]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ValueError(f"mesh is {mesh!r}; expected sizes such as 8, 64x8 or r64x8")
    shards = math.prod(size for size, copy in zip(sizes, copies, strict=True) if not copy)
    entries = math.ceil(parameters / shards)
    if not math.isfinite(parameters) or parameters < shards:
        raise ValueError(f"{parameters:g} parameters cannot be divided among {shards} ranks")
    shard = torch.empty(entries, dtype=dtype, device="meta")
    if math.prod(sizes) > 1:
        shard = _placed(shard, sizes, copies)
    return nn.ParameterList([nn.Parameter(shard)])


def _placed(shard: torch.Tensor, sizes: list[int], copies: list[bool]) -> torch.Tensor:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=math.prod(sizes))
    names = tuple(f"dimension {i}" for i in range(len(sizes)))
    mesh = init_device_mesh("cpu", tuple(sizes), mesh_dim_names=names)
    placements = [Replicate() if copy else Shard(0) for copy in copies]
    return DTensor.from_local(shard, mesh, placements, run_check=False)


def settings(method: str, options: list[str]) -> Method:
    """The method with options "name=value"; those of :class:`Storage` are given as its.

    Raises:
        TypeError: there is no such option.
        ValueError: a value is not allowed.
    """
    given = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"{option!r} is no option; expected name=value")
        try:
            given[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            given[name] = text
    if "dtype" in given:
        given["dtype"] = getattr(torch, str(given["dtype"]))
    if storage := {name: given.pop(name) for name in ("dtype", "offload") if name in given}:
        given["storage"] = Storage(**storage)
    return (SubspaceNewton if method == "newton" else Anderson)(**given)
