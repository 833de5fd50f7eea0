"""Block means of points and gradients, their changes as rows, and the small problem on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .options import SubspaceNewton
from .parameters import Layout
from .state import Scratch


@dataclass(eq=False)
class BlockHistory:
    """The last m changes of block means (w, gradient), and noise samples of the gradient.

    A block is a number of samples (point, gradient at it). Its mean is a pair as good as a
    sample, with less noise; a pair stays true whatever moved the parameters in between. The
    mean of the gradients with alternating signs holds noise only. Rows: ``step_rows`` W,
    ``gradient_rows`` G, ``noise_rows`` A; g is the mean gradient of the last block. A row that
    cannot be used is zero, and has no part in a solution.
    """

    layout: Scratch[Layout]
    options: Scratch[SubspaceNewton]
    verdicts: Scratch[ops.Verdicts]
    sums: list[Tensor]  #: of points from the last mean, gradients and, alternating, noise
    last_point: Tensor
    last_gradient: Tensor
    rows: Tensor  #: [2 m + J, N], all of them:
    step_rows: Scratch[Tensor]  #: [m, N]
    gradient_rows: Scratch[Tensor]  #: [m, N]
    noise_rows: Scratch[Tensor]  #: [J, N]
    metric: Tensor  #: [S, m, m] W W^T
    curvature: Tensor  #: [S, m, m] W G^T
    slopes: Tensor  #: [S, m] W g
    noise: Tensor  #: [S, m, J] W A^T
    noise_norms: Tensor  #: [S, J] |a|^2
    blocks: int = 0  #: closed since the beginning
    samples: int = 0  #: in the block under way
    slot: int = 0  #: the next row to write

    @classmethod
    def empty(cls, layout: Layout, options: SubspaceNewton, verdicts: ops.Verdicts) -> BlockHistory:
        """Allocate it."""
        m, noises, dtype = options.history_depth, options.noise_samples, options.storage.dtype
        rows = layout.vector(2 * m + noises, dtype)
        return cls(
            layout,
            options,
            verdicts,
            sums=[layout.vector() for _ in range(3 if noises else 2)],
            last_point=layout.vector(),
            last_gradient=layout.vector(),
            rows=rows,
            step_rows=rows[:m],
            gradient_rows=rows[m : 2 * m],
            noise_rows=rows[2 * m :],
            metric=layout.matrices(m, m),
            curvature=layout.matrices(m, m),
            slopes=layout.matrices(m),
            noise=layout.matrices(m, noises),
            noise_norms=layout.matrices(noises),
        )

    @property
    def solvable(self) -> bool:
        """Whether there are enough rows."""
        return self.blocks > min(2, self.options.history_depth)

    def clear(self) -> None:
        """Forget all blocks."""
        self.blocks = self.samples = self.slot = 0
        for figures in (self.metric, self.curvature, self.slopes, self.noise, *self.sums):
            figures.zero_()
        for flag in (self.verdicts.when.paired, self.verdicts.when.spoiled):
            flag.zero_()

    def add(self, point: Tensor, gradient: Tensor, direction: Tensor | None) -> Tensor:
        """Add a sample; returns the figures of ``ops.add_sample_``."""
        if self.blocks == 0 and self.samples == 0:
            self.last_point.copy_(point)
        sign = -1.0 if self.samples % 2 else 1.0
        self.samples += 1
        sums, anchor = self.sums, self.last_point
        return ops.add_sample_(sums, point, anchor, gradient, sign=sign, direction=direction)

    def close_block(self) -> tuple[Tensor, int]:
        """Make the samples a block: a row each of steps, gradients and noise, and its products.

        Returns ``[S]`` |change of the mean gradient|^2, and the slot of the noise sample.
        """
        noises = self.options.noise_samples
        noise_slot = self.blocks % noises if noises else -1
        slot = self.slot if self.blocks else -1
        ops.push_block(
            self.sums,
            self.samples,
            last_point=self.last_point,
            last_gradient=self.last_gradient,
            step_rows=self.step_rows,
            gradient_rows=self.gradient_rows,
            noise_rows=self.noise_rows,
            slot=slot,
            noise_slot=noise_slot,
            paired=self.verdicts.when.paired,
            accept=self.verdicts.when.complete,
        )
        self.blocks += 1
        self.samples = 0
        change = self.slopes.new_zeros(len(self.slopes))
        if slot >= 0:
            self.slot = (slot + 1) % self.options.history_depth
            change = self._multiply_steps(slot)
        if noises:
            self._multiply_noise(slot, noise_slot)
        return change, noise_slot

    def _multiply_steps(self, slot: int) -> Tensor:
        """Products of the new rows, and of the new mean gradient, with all rows."""
        offsets = self.layout.offsets
        new = (self.step_rows[slot], self.gradient_rows[slot], self.last_gradient)
        of_steps = ops.cross_products(self.step_rows, new, offsets)
        of_gradients = ops.cross_products(self.gradient_rows, new[:2], offsets)
        self.metric[:, slot] = self.metric[:, :, slot] = of_steps[..., 0]
        self.curvature[:, :, slot] = of_steps[..., 1]
        self.curvature[:, slot] = of_gradients[..., 0]
        self.slopes.copy_(of_steps[..., 2])
        return of_gradients[:, slot, 1].contiguous()

    def _multiply_noise(self, slot: int, noise_slot: int) -> None:
        """Products of the new step with all noise rows, and of the new noise with all steps."""
        noise, offsets = self.noise_rows[noise_slot], self.layout.offsets
        new = (noise, self.step_rows[slot]) if slot >= 0 else (noise,)
        products = ops.cross_products(self.noise_rows, new, offsets)
        self.noise_norms[:, noise_slot] = products[:, noise_slot, 0]
        if slot >= 0:
            self.noise[:, slot] = products[..., 1]
            of_steps = ops.cross_products(self.step_rows, (noise,), offsets)
            self.noise[..., noise_slot] = of_steps[..., 0]

    def solve(self) -> tuple[ops.SubspaceSolution, Tensor]:
        """The small problem, one per scope; and ``[]`` whether the trust radius has cut it."""
        o, now = self.options, self.verdicts.now
        last = (self.slot - 1) % o.history_depth
        radius = self._joint(self.metric[:, last, last]).clamp_min(0).sqrt() * now.trust_radius
        if "limits" not in o.tests:
            radius = torch.full_like(radius, math.inf)
        noise = self.noise[..., : min(self.blocks, o.noise_samples)].contiguous()
        problem = (self.metric, self.curvature, self.slopes, noise)
        device = o.storage.compute_device or self.layout.device
        solution = ops.solve_subspace(
            *(self._joint(x).to(device) for x in problem),
            radius=radius.to(device),
            ridge=o.ridge,
            floor=o.min_curvature,
            shrinkage=o.noise_shrinkage,
        )
        solution = ops.SubspaceSolution(*(x.to(self.layout.device) for x in solution))
        return solution, (solution.length > (1 - 1e-9) * radius).any()

    def _joint(self, matrices: Tensor) -> Tensor:
        """One system for all segments with scope "all"."""
        joint = self.options.scope == "all" and len(matrices) > 1
        return matrices.sum(dim=0, keepdim=True) if joint else matrices
