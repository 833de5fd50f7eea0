"""Block means of points and gradients, their changes as rows, and the small problems on them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops
from .decisions import Flag, Number, choose, flag, negate, number, numbers, told
from .flat import Layout
from .history import bordered
from .options import Options


class Displacement(NamedTuple):
    """A way out of the small problem: ``-W^T coefficients``; sums over all segments."""

    coefficients: Tensor  #: [systems, rows in use]
    slope: Number  #: its product with the mean gradient
    rank: Tensor  #: [systems] independent directions
    reduction: Tensor  #: [systems] predicted norm of the gradient, relative to the one before
    limited: Flag  #: whether it would have been longer but for the trust


class BlockHistory:
    """The last m changes of block means (w, gradient), and noise samples of the gradient.

    A block is a number of samples (point, gradient at it). Its mean is a pair as good as a
    sample, with less noise; a pair stays true whatever moved the parameters in between. The
    mean of the gradients with alternating signs holds noise only. Rows: ``step_rows`` W,
    ``gradient_rows`` G, ``noise_rows`` A; g is the mean gradient of the last block.
    """

    noise_ratio: Number  # |noise|^2 of a mean gradient over |its change|^2
    spoiled: Flag  # whether the block under way has a sample that cannot be used
    founded: Flag  # whether there was a block that can be used

    def __init__(self, layout: Layout, options: Options) -> None:
        depth, noises = options.history_depth, options.noise_rows if options.newton else 0
        storage = options.history_dtype or layout.dtype
        self.options = options
        self.offsets = layout.offsets
        self.device = layout.device
        self.compute_device = options.compute_device or layout.device
        self.sums = [layout.vector() for _ in range(3 if noises else 2)]
        self.last_point, self.last_gradient = layout.vector(), layout.vector()
        self.step_rows = layout.vector(depth, storage)
        self.gradient_rows = layout.vector(depth, storage)
        self.noise_rows = layout.vector(noises, storage)
        segments = len(layout.groups)

        def matrices(*shape: int) -> Tensor:
            return torch.zeros(segments, *shape, dtype=torch.float64, device=layout.device)

        self.metric = matrices(depth, depth)  # W W^T
        self.curvature = matrices(depth, depth)  # W G^T
        self.slopes = matrices(depth)  # W g
        self.gram = matrices(depth + 1, depth + 1)  # of [G | g]
        self.noise = matrices(depth, noises)  # W A^T
        self.noise_norms = matrices(noises)  # |a|^2
        self.clear()

    def clear(self) -> None:
        """Forget all blocks."""
        self.blocks = 0  # closed since the beginning
        self.founded = False
        self.slot = self.count = 0  # next row to write; rows in use
        self.noise_ratio = math.nan
        for matrix in (self.metric, self.curvature, self.slopes, self.gram, self.noise):
            matrix.zero_()
        self.drop_block()

    def drop_block(self, when: Flag = True) -> None:
        """Forget the samples of the block under way, at once or when it is closed."""
        if when is not True:
            self.spoiled = self.spoiled | when
            return
        self.samples, self.spoiled = 0, False
        for total in self.sums:
            total.zero_()

    def add(
        self, point: Tensor, gradient: Tensor, direction: Tensor | None
    ) -> tuple[Number, Number]:
        """Add a sample; returns ``|gradient|^2`` and its product with ``direction``."""
        if self.blocks == 0 and self.samples == 0:
            self.last_point.copy_(point)
        sign = -1.0 if self.samples % 2 else 1.0
        figures = ops.add_sample_(
            self.sums, point, self.last_point, gradient, sign=sign, direction=direction
        )
        self.samples += 1
        squared_norm, slope = numbers(figures)
        return squared_norm, slope

    def close_block(self) -> Flag:
        """Make the samples a block: a row each of steps, gradients and noise, and its products.

        Returns whether it is one; else the rows are zero.
        """
        first, slot = self.blocks == 0, self.slot
        complete = negate(self.spoiled)
        noise_slot = self.blocks % self.options.noise_rows if len(self.noise_rows) else None
        ops.push_block(
            self.sums,
            self.samples,
            last_point=self.last_point,
            last_gradient=self.last_gradient,
            step_rows=self.step_rows,
            gradient_rows=self.gradient_rows,
            noise_rows=self.noise_rows,
            slot=None if first else slot,
            noise_slot=noise_slot,
            accept=complete,
        )
        for row in () if first else (self.step_rows[slot], self.gradient_rows[slot]):
            ops.gather((), row, when=negate(self.founded))
        self.founded = self.founded | complete
        self.blocks += 1
        self.samples, self.spoiled = 0, False
        if not first:
            self.slot = (slot + 1) % len(self.step_rows)
            self.count = max(self.count, slot + 1)
            self._multiply_steps(slot)
        if noise_slot is not None:
            self._multiply_noise(slot, noise_slot)
            if self.count:
                ratio = self._noise_ratio(slot, noise_slot)
                self.noise_ratio = choose(complete, ratio, self.noise_ratio)
        return complete

    def _multiply_steps(self, slot: int) -> None:
        """Products of the new rows, and of the new mean gradient, with all rows."""
        n = self.count
        steps, gradients = self.step_rows[:n], self.gradient_rows[:n]
        new = (steps[slot], gradients[slot], self.last_gradient)
        of_steps = ops.cross_products(steps, new, self.offsets)
        of_gradients = ops.cross_products(gradients, new, self.offsets)
        self.metric[:, slot, :n] = self.metric[:, :n, slot] = of_steps[..., 0]
        self.curvature[:, :n, slot] = of_steps[..., 1]
        self.curvature[:, slot, :n] = of_gradients[..., 0]
        self.slopes[:, :n] = of_steps[..., 2]
        self.gram[:, slot, :n] = self.gram[:, :n, slot] = of_gradients[..., 1]
        if self.options.newton:  # the right side is that of least squares
            return
        self.gram[:, -1, :n] = self.gram[:, :n, -1] = of_gradients[..., 2]
        own = ops.cross_products(self.last_gradient.unsqueeze(0), new[2:], self.offsets)
        self.gram[:, -1, -1] = own[:, 0, 0]

    def _multiply_noise(self, slot: int, noise_slot: int) -> None:
        """Products of the new step with all noise rows, and of the new noise with all steps."""
        n, noises = self.count, min(self.blocks, len(self.noise_rows))
        noise = self.noise_rows[noise_slot]
        products = ops.cross_products(
            self.noise_rows[:noises], (self.step_rows[slot], noise), self.offsets
        )
        self.noise_norms[:, noise_slot] = products[:, noise_slot, 1]
        if not n:
            return
        self.noise[:, slot, :noises] = products[..., 0]
        of_steps = ops.cross_products(self.step_rows[:n], (noise,), self.offsets)
        self.noise[:, :n, noise_slot] = of_steps[..., 0]

    def _noise_ratio(self, slot: int, noise_slot: int) -> Number:
        """Of the last two blocks, to the last change."""
        change = self.gram[:, slot, slot].sum()
        noise = self.noise_norms[:, noise_slot].sum() + self.noise_norms[:, noise_slot - 1].sum()
        return number(torch.where(change > 0, noise / 2 / change, math.inf))

    def solve(self, trust: Number, damping: Number) -> Displacement:
        """``damping`` times the method's displacement, cut to ``trust`` times the last way."""
        solve = self._newton_step if self.options.newton else self._least_squares
        coefficients, slope, rank, reduction, limited = solve(trust)
        share = self.options.relaxation * damping
        return Displacement(share * coefficients, share * slope, rank, reduction, limited)

    def _newton_step(self, trust: Number) -> Displacement:
        n, noises = self.count, min(self.blocks, len(self.noise_rows))
        radius = self._radius(trust)
        solution = ops.solve_subspace(
            self._joined(self.metric[:, :n, :n]),
            self._joined(self.curvature[:, :n, :n]),
            self._joined(self.slopes[:, :n]),
            self._joined(self.noise[:, :n, :noises]),
            radius=radius.to(self.compute_device),
            ridge=self.options.reg_acc,
            floor=self.options.curvature_floor,
            shrinkage=self.options.noise_shrinkage,
        )
        solution = ops.SubspaceSolution(*(x.to(self.device) for x in solution))
        return Displacement(
            solution.coefficients,
            number(solution.slope.sum()),
            solution.rank,
            solution.reduction,
            flag((solution.length > (1 - 1e-9) * radius).any()),
        )

    def _least_squares(self, trust: Number) -> Displacement:
        """Type II: the combination of gradient changes next to the gradient (Eq. 5)."""
        n, radius = self.count, self._radius(trust)
        system = bordered(self._joined(self.gram), n)
        solution = ops.solve_secants(system, factored=False, ridge=self.options.reg_acc)
        solution = ops.SecantSolution(*(x.to(self.device) for x in solution))
        metric, slopes = self._joint(self.metric[:, :n, :n]), self._joint(self.slopes[:, :n])
        gamma = solution.gamma
        length = (gamma.unsqueeze(1) @ metric @ gamma.unsqueeze(2)).flatten().clamp_min(0).sqrt()
        limited = length > radius
        gamma = gamma * torch.where(limited, radius / length, 1.0).unsqueeze(1)
        slope = number(-(gamma * slopes).sum())
        return Displacement(gamma, slope, solution.rank, solution.reduction, flag(limited.any()))

    def _joint(self, matrices: Tensor) -> Tensor:
        """One system for all segments with scope "all"."""
        return matrices.sum(dim=0, keepdim=True) if self.options.scope == "all" else matrices

    def _joined(self, matrices: Tensor) -> Tensor:
        """The same on the device that solves it."""
        return self._joint(matrices).to(self.compute_device)

    def _radius(self, trust: Number) -> Tensor:
        """``trust`` times the length of the last row, for each system."""
        last = (self.slot - 1) % len(self.step_rows)
        return trust * self._joint(self.metric[:, last, last]).clamp_min(0).sqrt()

    def move_(self, out: Tensor, point: Tensor, coefficients: Tensor, accept: Flag) -> Number:
        """``out = point - W^T coefficients``; returns the largest ``|out|``.

        Where it is not to ``accept`` it, ``out = point``.
        """
        rows, offsets = self.step_rows[: self.count], self.offsets
        return number(
            ops.extrapolate_(out, point, point, 1.0, rows, coefficients, offsets, accept=accept)
        )

    _SCALARS = ("blocks", "slot", "count", "samples", "spoiled", "founded", "noise_ratio")
    _TENSORS = (
        "last_point",
        "last_gradient",
        "step_rows",
        "gradient_rows",
        "noise_rows",
        "metric",
        "curvature",
        "slopes",
        "gram",
        "noise",
        "noise_norms",
    )

    def state_dict(self) -> dict[str, Any]:
        """Everything; tensors are copies."""
        tensors = {name: getattr(self, name).clone() for name in self._TENSORS}
        scalars = {name: told(getattr(self, name)) for name in self._SCALARS}
        return {**scalars, **tensors, "sums": [total.clone() for total in self.sums]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name in self._SCALARS:
            setattr(self, name, state[name])
        for name in self._TENSORS:
            getattr(self, name).copy_(state[name])
        for total, saved in zip(self.sums, state["sums"], strict=True):
            total.copy_(saved)

    @property
    def tensors(self) -> list[Tensor]:
        """All buffers."""
        return [*self.sums, *(getattr(self, name) for name in self._TENSORS)]
