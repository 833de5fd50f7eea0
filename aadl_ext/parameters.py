"""Parameters <-> flat vector: which parameter lies where, and in which segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from . import ops
from .buffers import zeros

PADDING = 64  # entries; rows of the history start on a multiple


@dataclass(frozen=True, eq=False)
class Layout:
    """Table of the accelerated parameters in one flat vector.

    Parameters that are frozen (``requires_grad=False``) or empty have no place in it.
    Segments are the blocks with one learning rate and one least-squares problem: a
    parameter group each, or a tensor each with ``scope="tensor"``. Padding belongs to
    the last segment and stays zero.
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
    signature: tuple[Any, ...]

    @classmethod
    def build(
        cls, param_groups: list[dict[str, Any]], scope: str, device: torch.device | None
    ) -> Layout:
        """Lay out the trainable parameters of ``param_groups``.

        Raises:
            ValueError: a parameter is complex, sparse, not floating point, not initialized yet, or
                of a tensor class with a storage of its own.
        """
        parameters: list[Tensor] = []
        offsets, groups, rounding = [0], [], []
        for index, group in enumerate(param_groups):
            members = [p for p in _checked(group["params"]) if p.requires_grad and p.numel()]
            alone = [[p] for p in members]
            for segment in alone if scope == "tensor" or not members else [members]:
                offsets.append(offsets[-1] + sum(p.numel() for p in segment))
                groups.append(index)
                rounding.append(max(torch.finfo(p.dtype).eps for p in segment) / 2)
            parameters += members
        size = offsets[-1]
        offsets[-1] = -(-size // PADDING) * PADDING
        wide = any(p.dtype == torch.float64 for p in parameters)
        dtype = torch.float64 if wide else torch.float32
        return cls(
            parameters=tuple(parameters),
            size=size,
            offsets=tuple(offsets),
            groups=tuple(groups),
            dtype=dtype,
            device=device or (parameters[0].device if parameters else torch.device("cpu")),
            limit=min((torch.finfo(p.dtype).max for p in parameters), default=0.0),
            rounding=tuple(rounding),
            rounds=any(p.dtype != dtype for p in parameters),
            signature=_signature(param_groups),
        )

    def fits(self, param_groups: list[dict[str, Any]]) -> bool:
        """Whether the same parameters are still trained, with the same types and places."""
        return self.signature == _signature(param_groups)

    @property
    def holds(self) -> bool:
        """Whether its own parameters still have their shapes and places, trained or not."""
        known = {parameter: (shape, device) for _, parameter, _, shape, _, device in self.signature}
        return all(known[id(p)] == (p.shape, p.device) for p in self.parameters)

    @property
    def bounds(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where segments begin and end."""
        return self.offsets[:-1], self.offsets[1:]

    @property
    def padded(self) -> int:
        """Length of a working vector."""
        return self.offsets[-1]

    def vector(self, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros: ``[N]``, or ``[rows, N]``."""
        shape = (self.padded,) if rows is None else (rows, self.padded)
        return zeros(shape, dtype or self.dtype, self.device)

    def numbers(self, count: int) -> Tensor:
        """Zeros: ``[count]`` of the dtype of vectors."""
        return zeros((count,), self.dtype, self.device)

    def matrices(self, *shape: int) -> Tensor:
        """Zeros for small problems, one a segment: ``[S, *shape]`` float64."""
        return zeros((len(self.groups), *shape), torch.float64, self.device)

    def differ(self, now: Tensor, before: Tensor, largest: Tensor) -> Tensor:
        """``[]`` bool, whether two points are not the same, up to eight roundings of the largest.

        Swapping other values in and out again, as schedule-free optimizers do, rounds them.
        """
        return ops.differs(now, before, largest, 8 * max(self.rounding, default=0.0))

    def read(self, out: Tensor) -> None:
        """Copy the parameters into ``out``, zeros into its padding."""
        ops.gather(self.parameters, out)

    def write(self, flat: Tensor, when: Tensor | None = None) -> None:
        """Copy ``flat`` into the parameters; ``flat`` takes over what they could hold of it.

        Nothing happens where ``when`` is false.
        """
        ops.scatter_(self.parameters, flat, when=when)
        if self.rounds:
            ops.gather(self.parameters, flat, when=when)


def _checked(parameters: list[Tensor]) -> Iterator[Tensor]:
    for tensor in parameters:
        kind = type(tensor)
        if is_lazy(tensor):
            raise ValueError(
                f"a parameter is a {kind.__name__}, whose shape is not known yet; run the model "
                "once, then make the optimizer and accelerate it"
            )
        if tensor.requires_grad and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
            raise ValueError(
                f"a parameter of shape {tuple(tensor.shape)} is a {kind.__module__}."
                f"{kind.__qualname__}, a tensor class that keeps its entries in its own way; "
                "accelerated can be plain tensors and parameters: freeze it, or optimize it with "
                "another optimizer"
            )
        if tensor.is_complex():
            raise ValueError(
                f"a parameter of shape {tuple(tensor.shape)} is {tensor.dtype}; complex "
                "parameters cannot be accelerated: optimize torch.view_as_real of them instead"
            )
        if tensor.layout != torch.strided:
            raise ValueError(
                f"a parameter of shape {tuple(tensor.shape)} has layout {tensor.layout}; only "
                "dense parameters can be accelerated (sparse gradients of dense ones are fine)"
            )
        if tensor.requires_grad and tensor.dtype not in ops.STORAGE_DTYPES:
            raise ValueError(
                f"a parameter of shape {tuple(tensor.shape)} is {tensor.dtype}; allowed are "
                "float64, float32, bfloat16 and float16"
            )
        yield tensor


def _signature(param_groups: list[dict[str, Any]]) -> tuple[Any, ...]:
    # The layout holds the parameters, so that an id cannot be given to another tensor.
    return tuple(
        (index, id(p), p.requires_grad, p.shape, p.dtype, p.device)
        for index, group in enumerate(param_groups)
        for p in group["params"]
    )
