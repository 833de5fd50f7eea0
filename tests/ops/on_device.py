"""Ops on tensors of the CPU, done by the kernels of another device.

``AADL_TEST_DEVICE=cpu`` takes the tensors to the CPU instead of a GPU, to try the way there and
back.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from aadl_ext.ops import library

DEVICE = os.environ.get("AADL_TEST_DEVICE", "cuda")


def gpu_missing() -> str | None:
    """Why no op runs on a GPU here."""
    if DEVICE != "cuda" or (library.cuda_missing is None and torch.cuda.is_available()):
        return None
    return f"no CUDA kernels: {library.cuda_missing}" if library.cuda_missing else "no GPU"


class OnDevice(TorchDispatchMode):
    """While it is entered, all ops of ``aadl_ext`` work on copies that lie on a device.

    Memory is copied as a whole, there and, where something is changed, back: so what shares memory
    still does, and what is written beside a tensor is seen.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        here = all(t.device.type == "cpu" and type(t) in (Tensor, Parameter) for t in given)
        if func.namespace != "aadl_ext" or not here:  # or tensors without data
            return func(*args, **kwargs)
        memory = {_memory(t).data_ptr(): _memory(t) for t in given}
        copies = {place: m.to(self.device, copy=True) for place, m in memory.items()}

        def twin(tensor: Tensor) -> Tensor:
            copy = torch.empty(0, dtype=tensor.dtype, device=self.device)
            storage = copies[_memory(tensor).data_ptr()].untyped_storage()
            place = tensor.storage_offset(), tensor.shape, tensor.stride()
            copy = copy.set_(storage, *place)
            return copy._neg_view() if tensor.is_neg() else copy

        result = func(*tree_map_only(Tensor, twin, args), **tree_map_only(Tensor, twin, kwargs))
        names = [x.name for x in func._schema.arguments]
        values = {**dict(zip(names, args, strict=False)), **kwargs}
        for written in (values.get(x.name) for x in func._schema.arguments if x.is_write):
            for tensor in tree_leaves(written):
                if isinstance(tensor, Tensor):
                    place = _memory(tensor).data_ptr()
                    memory[place].copy_(copies[place])
        return tree_map_only(Tensor, Tensor.cpu, result)


def _memory(tensor: Tensor) -> Tensor:
    """All bytes of the storage that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
