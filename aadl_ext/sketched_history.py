"""A block history of sketches: only points and their moves are as long as the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from . import ops
from .block_history import BlockHistory
from .offload import Passes, zero_rows
from .options import SubspaceNewton
from .parameters import Layout
from .state import Entries, Scratch


@dataclass(eq=False)
class SketchedHistory(BlockHistory):
    """Changes of block means, of which the block history sees sketches (``ops.sketch``).

    The small problem needs products of moves, gradients and noise only, and those of sketches are
    nearly the same. Its own vectors have D entries then, and are saved as they are.
    """

    sums: list[Tensor]
    last_point: Tensor
    last_gradient: Tensor
    rows: Tensor
    whole: Scratch[Layout] = field(kw_only=True)  #: of the parameters
    point_sum: Entries[Tensor] = field(kw_only=True)  #: of points from the last mean
    last_mean: Entries[Tensor] = field(kw_only=True)  #: of points
    moves: Entries[Tensor] = field(kw_only=True)  #: [m, N] rows of steps
    move_passes: Scratch[Passes] = field(kw_only=True)  #: over them

    @classmethod
    def empty(
        cls, layout: Layout, options: SubspaceNewton, verdicts: ops.Verdicts
    ) -> SketchedHistory:
        """Allocate it.

        Raises:
            ValueError: the parameters are spread over ranks.
        """
        if layout.ranks is not None:
            raise ValueError(
                "sketches are for parameters that every process holds whole, and these are spread "
                "over ranks; take sketch=0, as in SubspaceNewton.memory_light()"
            )
        sketches = layout.without_parameters(max(1, min(options.sketch, layout.padded)))
        here = replace(options, storage=replace(options.storage, offload=False))
        own = BlockHistory.empty(sketches, here, verdicts)
        shape, offload = (options.history_depth, layout.padded), options.storage.offload
        moves, move_passes = zero_rows(shape, own.rows.dtype, layout.device, offload)
        return cls(
            **vars(own),
            whole=layout,
            point_sum=layout.vector(),
            last_mean=layout.vector(),
            moves=moves,
            move_passes=move_passes,
        )

    def directions(self) -> Iterator[tuple[slice, Tensor]]:
        """``[m, N]`` that steps are made of, in parts."""
        return self.move_passes.parts(self.moves)

    @property
    def bytes_offloaded(self) -> int:
        """Memory of rows that are not on the device."""
        return self.move_passes.bytes_offloaded(self.moves)

    @property
    def spare(self) -> Tensor:
        """``[N]``, a sum: for others between blocks, who leave it zero."""
        return self.point_sum

    @property
    def _all_sums(self) -> list[Tensor]:
        return [*self.sums, self.point_sum]

    def add(
        self,
        points: Sequence[Tensor],
        gradients: Sequence[Tensor],
        direction: Tensor | None,
        decays: Sequence[float] = (),
        *,
        of: int,
    ) -> Tensor:
        """Add a sample, one ``of`` so many in the block, in tensors one behind the other.

        Returns what ``ops.add_sample_`` does.
        """
        weight = self._count_sample(points, self.last_mean, of)
        sample = ops.sketch(gradients, self.layout.size)
        if any(decays):
            sample += ops.sketch(points, self.layout.size, decays)
        for total, times in zip(self._used_sums[1:], (1.0, weight), strict=False):
            total.add_(sample, alpha=times)
        return ops.add_sample_(
            [self.point_sum],
            points,
            self.last_mean,
            gradients,
            sign=0.0,
            direction=direction,
            decays=decays,
        )

    def close_block(self) -> tuple[Tensor, int]:
        """Make the samples a block: a row of steps, and what sketches tell of it.

        Returns ``[S]`` |change of the mean gradient|^2, and the slot of the noise sample.
        """
        when = self.verdicts.when
        move = self.point_sum.div_(self.samples).masked_fill_(~when.complete, 0)
        self.last_mean.add_(move)
        if self.blocks:
            kept = self.moves[self.slot]
            row = kept if kept.device == move.device else torch.empty_like(move, dtype=kept.dtype)
            row.copy_(move).masked_fill_(~when.paired, 0)
            self.sums[0].copy_(ops.sketch([row], self.layout.size)).mul_(self.samples)
            if row is not kept:
                kept.copy_(row, non_blocking=True)
        move.zero_()
        return super().close_block()
