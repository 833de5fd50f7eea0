"""A batch of samples <-> rows of one matrix: which leaf of a pytree lies where."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from .ops import STORAGE_DTYPES
from .parameters import Layout

COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64}
Map = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Samples:
    """B samples of n real entries each; complex leaves lie there as pairs.

    A sample is a segment of the flat vector ``[B * n]``, so that ops with ``offsets`` are batched.
    """

    spec: TreeSpec
    leaves: tuple[Tensor, ...]  #: of the first point: shapes, dtypes
    batch: tuple[int, ...]  #: leading dimensions that all leaves share
    bounds: tuple[int, ...]  #: where the leaves of a sample lie in its row
    dtype: torch.dtype  #: of rows: float64 if any leaf is, else float32
    device: torch.device

    @classmethod
    def of(cls, tree: Any, batch_dims: int) -> Samples:
        """Lay out a pytree of tensors.

        Raises:
            ValueError: there is no tensor, a dtype is not floating or complex, the batch
                dimensions or the devices of leaves differ.
        """
        leaves, spec = tree_flatten(tree)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
            raise ValueError(f"x0 holds {kinds}; it must be a tensor or a pytree of tensors")
        if isinstance(batch_dims, bool) or not isinstance(batch_dims, int) or batch_dims < 0:
            raise ValueError(f"batch_dims is {batch_dims!r}; it must be an integer >= 0")
        first = leaves[0]
        batch = tuple(first.shape[:batch_dims])
        for leaf in leaves:
            if leaf.ndim < batch_dims or tuple(leaf.shape[:batch_dims]) != batch:
                shapes = " and ".join(sorted({str(tuple(x.shape)) for x in (first, leaf)}))
                raise ValueError(
                    f"x0 has shape {shapes}; the first {batch_dims} dimensions (batch_dims) count "
                    "samples: they must exist and be the same for all leaves"
                )
            if leaf.layout != torch.strided:
                raise ValueError(f"x0 has layout {leaf.layout}; pass dense tensors")
            if leaf.device != first.device:
                raise ValueError(
                    f"x0 has leaves on {first.device} and {leaf.device}; use one device"
                )
            if COMPLEX.get(leaf.dtype, leaf.dtype) not in STORAGE_DTYPES:
                raise ValueError(f"x0 is {leaf.dtype}; allowed are floating and complex dtypes")
        sizes = [math.prod(_real(leaf).shape[batch_dims:]) for leaf in leaves]
        wide = any(leaf.dtype in (torch.float64, torch.complex128) for leaf in leaves)
        return cls(
            spec=spec,
            leaves=tuple(leaf.detach() for leaf in leaves),
            batch=batch,
            bounds=(0, *accumulate(sizes)),
            dtype=torch.float64 if wide else torch.float32,
            device=first.device,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """B, n."""
        return math.prod(self.batch), self.bounds[-1]

    def layout(self) -> Layout:
        """A segment for each sample, not empty. Points are rounded as the coarsest leaf is."""
        count, size = self.shape
        rounding = max(torch.finfo(leaf.dtype).eps for leaf in self.leaves) / 2
        return Layout(
            parameters=(),
            size=count * size,
            offsets=tuple(range(0, count * size + 1, size)),
            groups=(0,) * count,
            dtype=self.dtype,
            device=self.device,
            limit=torch.finfo(self.dtype).max,
            rounding=(rounding,),
            rounds=any(COMPLEX.get(x.dtype, x.dtype) != self.dtype for x in self.leaves),
            trained=None,
        )

    def tree(self, rows: Tensor) -> Any:
        """The pytree that ``rows``, ``[B, n]``, hold; a view of them where dtypes allow it."""
        return tree_unflatten(self._pieces(rows), self.spec)

    def _pieces(self, rows: Tensor) -> list[Tensor]:
        pieces = []
        for leaf, (start, stop) in zip(self.leaves, pairwise(self.bounds), strict=True):
            piece = rows[:, start:stop].view(_real(leaf).shape)
            if leaf.is_complex():
                piece = torch.view_as_complex(piece.contiguous())
            pieces.append(piece.to(leaf.dtype))
        return pieces

    def rows(self, tree: Any) -> Tensor:
        """``[B, n]`` of a pytree like the first point; itself where nothing is to be copied.

        Raises:
            ValueError: structure, shapes or kinds of numbers are not those of the first point.
        """
        sizes = (stop - start for start, stop in pairwise(self.bounds))
        leaves = zip(self._checked(tree), sizes, strict=True)
        pieces = [_real(x).detach().reshape(self.shape[0], size) for x, size in leaves]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        return whole.to(self.dtype).contiguous()

    def _checked(self, tree: Any) -> list[Tensor]:
        try:
            leaves = self.spec.flatten_up_to(tree)  # dictionaries in any order
        except ValueError as error:
            raise ValueError(f"f returns another structure than that of x0: {error}") from error
        for leaf, first in zip(leaves, self.leaves, strict=True):
            if not isinstance(leaf, Tensor):
                raise ValueError(f"f returns a {type(leaf).__name__}; it must return tensors")
            if leaf.shape != first.shape or leaf.device != first.device:
                raise ValueError(
                    f"f returns shape {tuple(leaf.shape)} on {leaf.device} for a point of shape "
                    f"{tuple(first.shape)} on {first.device}; a fixed point needs the same"
                )
            if leaf.layout != torch.strided:
                raise ValueError(f"f returns layout {leaf.layout}; it must return dense tensors")
            real = leaf.is_floating_point() and not first.is_complex()
            if not real and not (leaf.is_complex() and first.is_complex()):
                raise ValueError(
                    f"f returns {leaf.dtype} for a point that is {first.dtype}; pass an x0 of the "
                    "dtype that f returns"
                )
        return leaves


def _real(leaf: Tensor) -> Tensor:
    return torch.view_as_real(leaf) if leaf.is_complex() else leaf


def takes_arrays(f: Map) -> Map:
    """``f`` over NumPy arrays as one over tensors of the CPU. It cannot write to its argument."""

    def call(x: Any) -> Any:
        return as_tensors(f(tree_map(_read_only, x)))

    return call


def as_tensors(tree: Any) -> Any:
    """NumPy's arrays and numbers as tensors, which share their memory."""
    return tree_map(_as_tensor, tree)


def _as_tensor(x: Any) -> Tensor:
    native = np.asarray(x).dtype.newbyteorder("=")
    return torch.from_numpy(np.require(x, native, ["C", "W"]))


def as_arrays(tree: Any) -> Any:
    """Tensors as NumPy's arrays."""
    return tree_map(lambda x: x.numpy(force=True), tree)


def _read_only(x: Tensor) -> Any:
    array = x.numpy()
    array.flags.writeable = False
    return array
