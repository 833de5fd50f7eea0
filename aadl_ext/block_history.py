"""Block means of points and gradients, their changes as rows, and the small problem on them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import ops
from .offload import Passes, zero_rows
from .options import SubspaceNewton
from .parameters import Layout, Room
from .state import Entries, Figures, Scratch

RIDGE = 1e-4  # of the metric's largest eigenvalue: directions below count as dependent
LEAST_CURVATURE = 0.01  # taken for a direction, relative to the largest
CARRYING = 0.5  # share of the weight of noise that doubts a Hessian which carries gradients
PAIRS = 100  # of quasi-Newton steps, on networks so small
PAIR_BYTES = 1 << 25  # that all of them take no more than this


@functools.cache
def difference_weights(samples: int) -> list[float]:
    """Of the last difference of so many values, scaled like their sum: it is 0 but for noise."""
    weights = [(-1) ** i * math.comb(samples - 1, i) for i in range(samples)]
    scale = math.sqrt(samples / math.comb(2 * samples - 2, samples - 1))
    return [weight * scale for weight in weights]


def _rows_of_pairs(layout: Layout, options: SubspaceNewton, dtype: torch.dtype) -> int:
    """How many rows quasi-Newton steps are to have, at least."""
    pair = 2 * max(layout.entries, 1) * dtype.itemsize
    return 2 * min(PAIRS, PAIR_BYTES // pair) if options.uses_quasi_newton else 0


@dataclass(eq=False)
class BlockHistory:
    """The last m changes of block means (w, gradient), and noise samples of the gradient.

    A block is a number of samples (point, gradient at it). Its mean is a pair as good as a
    sample, with less noise; a pair stays true whatever moved the parameters in between. The
    last difference of a block's gradients holds noise only. Rows: ``step_rows`` W,
    ``gradient_rows`` G, ``noise_rows`` A; g is the mean gradient of the last block. A row that
    cannot be used is zero, and has no part in a solution.
    """

    layout: Scratch[Layout]
    options: Scratch[SubspaceNewton]
    verdicts: Scratch[ops.Verdicts]
    passes: Scratch[Passes]  #: over rows
    sums: Entries[list[Tensor]]  #: of points from the last mean, of gradients, of noise or none
    last_point: Entries[Tensor]
    last_gradient: Entries[Tensor]
    rows: Entries[Tensor]  #: [2 m + J, N] or more, for quasi-Newton steps; of blocks the first:
    step_rows: Scratch[Tensor]  #: [m, N]
    gradient_rows: Scratch[Tensor]  #: [m, N]
    noise_rows: Scratch[Tensor]  #: [J, N]
    metric: Figures[Tensor]  #: [S, m, m] W W^T
    curvature: Figures[Tensor]  #: [S, m, m] W G^T
    slopes: Figures[Tensor]  #: [S, m] W g
    noise: Figures[Tensor]  #: [S, m, J] W A^T
    noise_norms: Figures[Tensor]  #: [S, J] |a|^2
    blocks: int = 0  #: closed since the beginning
    samples: int = 0  #: in the block under way
    slot: int = 0  #: the next row to write
    present: Scratch[bool] = True  #: whether this rank has seen a gradient in this step
    waiting: Scratch[list[Tensor]] = field(default_factory=list)  #: samples' figures, of this rank

    @classmethod
    def empty(cls, layout: Layout, options: SubspaceNewton, verdicts: ops.Verdicts) -> BlockHistory:
        """Allocate it."""
        m, noises, dtype = options.history_depth, options.noise_samples, options.storage.dtype
        if dtype is None and layout.dtype == torch.float32:
            dtype = torch.bfloat16  # far more exact than a difference of noisy means
        dtype = dtype or layout.dtype
        count = max(2 * m + noises, _rows_of_pairs(layout, options, dtype))
        shape = (count, layout.padded)
        rows, passes = zero_rows(shape, dtype, layout.device, options.storage.offload)
        return cls(
            layout,
            options,
            verdicts,
            passes,
            sums=[layout.vector() for _ in range(3)],
            last_point=layout.vector(),
            last_gradient=layout.vector(),
            rows=rows,
            step_rows=rows[:m],
            gradient_rows=rows[m : 2 * m],
            noise_rows=rows[2 * m : 2 * m + noises],
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

    def directions(self) -> Iterator[tuple[slice, Tensor]]:
        """``[m, N]`` that steps are made of, in parts."""
        return self.passes.parts(self.step_rows)

    @property
    def bytes_offloaded(self) -> int:
        """Memory of rows that are not on the device."""
        return self.passes.bytes_offloaded(self.rows)

    @property
    def spare(self) -> Tensor:
        """``[N]``, a sum: for others between blocks, who leave it zero."""
        return self.sums[2]

    @property
    def _used_sums(self) -> list[Tensor]:
        return self.sums if self.options.noise_samples else self.sums[:2]

    @property
    def _all_sums(self) -> list[Tensor]:
        return self.sums

    def drop_samples(self, spare: bool = True) -> None:
        """Forget those of the block under way; whether the ``spare`` sum, too."""
        self.samples = 0
        for total in self._all_sums:
            if spare or total is not self.spare:
                total.zero_()

    def clear(self, spare: bool = True) -> None:
        """Forget all blocks; whether the ``spare`` sum, too."""
        self.blocks = self.slot = 0
        self.waiting.clear()
        self.drop_samples(spare)
        for figures in (self.metric, self.curvature, self.slopes, self.noise):
            figures.zero_()
        for flag in (self.verdicts.when.paired, self.verdicts.when.spoiled):
            flag.zero_()

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
        weight = self._count_sample(points, self.last_point, of)
        return ops.add_sample_(
            self._used_sums,
            points,
            self.last_point,
            gradients,
            sign=weight,
            direction=direction,
            decays=decays,
        )

    def _count_sample(self, points: Sequence[Tensor], mean: Tensor, of: int) -> float:
        """Its weight in the sum of noise; the very first stands for a ``mean`` before it."""
        if self.blocks == 0 and self.samples == 0:
            ops.gather(points, mean)
        weight = difference_weights(of)[self.samples] if self.samples < of else 0.0
        self.samples += 1
        return weight

    def close_block(self) -> tuple[Tensor, int]:
        """Make the samples a block: a row each of steps, gradients and noise, and its products.

        Returns ``[S]`` |change of the mean gradient|^2, and the slot of the noise sample.
        """
        noises, when = self.options.noise_samples, self.verdicts.when
        noise_slot = self.blocks % noises if noises else -1
        slot = self.slot if self.blocks else -1
        if self.layout.ranks:  # what others say of the last samples comes with the products
            sound = [x[0].isfinite() for x in self.waiting]
            when.complete.copy_(torch.stack([~when.spoiled, *sound]).all())
        products = self._push(slot, noise_slot)
        self.blocks += 1
        self.samples = 0
        if self.layout.ranks:
            products = self._join(products, slot, noise_slot)
        of_steps, of_gradients, of_noise = products
        change = self.slopes.new_zeros(len(self.slopes))
        if noises:
            self.noise_norms[:, noise_slot] = of_noise[:, noise_slot, 1]
        if slot >= 0:
            self.slot = (slot + 1) % self.options.history_depth
            self.metric[:, slot] = self.metric[:, :, slot] = of_steps[..., 0]
            self.curvature[:, :, slot] = of_steps[..., 1]
            self.curvature[:, slot] = of_gradients[..., 0]
            self.slopes.copy_(of_steps[..., 2])
            change = of_gradients[:, slot, 1].contiguous()
        if noises and slot >= 0:
            self.noise[:, slot] = of_noise[..., 0]
            self.noise[..., noise_slot] = of_steps[..., 3]
        return change, noise_slot

    def _push(self, slot: int, noise_slot: int) -> list[Tensor]:
        """Write the new rows, and multiply all rows with what is new; they are read once.

        Rows of steps with the new step, gradient, mean gradient and noise; rows of gradients with
        the first two; rows of noise with the first and the last.
        """
        m, when = self.options.history_depth, self.verdicts.when
        products: list[Tensor] = []
        all_rows = self.rows[: 2 * m + self.options.noise_samples]
        for part, rows in self.passes.parts(all_rows, self._written(slot, noise_slot)):
            steps, gradients, noise = rows.tensor_split((m, 2 * m))
            last_gradient = self.last_gradient[part]
            ops.push_block(
                [total[part] for total in self._used_sums],
                self.samples,
                last_point=self.last_point[part],
                last_gradient=last_gradient,
                step_rows=steps,
                gradient_rows=gradients,
                noise_rows=noise,
                slot=slot,
                noise_slot=noise_slot,
                paired=when.paired,
                accept=when.complete,
            )
            new = [steps[slot], gradients[slot], last_gradient]
            new += [noise[noise_slot]] if noise_slot >= 0 else []
            products.append(ops.cross_products(rows, new, self.layout.within(part)))
        found = functools.reduce(torch.add, products)
        of_steps, of_gradients, of_noise = found.tensor_split((m, 2 * m), dim=1)
        return [of_steps, of_gradients[..., :2], of_noise[..., ::3]]

    def _written(self, slot: int, noise_slot: int) -> list[int]:
        """Which rows the end of a block writes."""
        m = self.options.history_depth
        pair = [slot, m + slot] if slot >= 0 else []
        return pair + ([2 * m + noise_slot] if noise_slot >= 0 else [])

    # ---- over several ranks -----------------------------------------------------------------

    def of_rank(
        self, room: Room, direction: Tensor | None, figures: Tensor | None = None
    ) -> Tensor:
        """``[3]`` of a sample on this rank: |g|^2, g . d, and whether there is a gradient.

        ``figures``: the first two with copies, if they are known.
        """
        if figures is None or self.layout.has_copies:
            gradient = room.gradient
            zero = gradient if direction is None else direction
            figures = self.layout.products(gradient, gradient, zero)
            figures[1:] *= direction is not None
        return torch.cat([figures, figures.new_full((1,), self.present)])

    @staticmethod
    def of_ranks(figures: Tensor) -> Tensor:
        """``[..., 2]`` from the sums ``[..., 3]``; NaN where no rank has a gradient."""
        return figures[..., :2].masked_fill(figures[..., 2:] == 0, math.nan)

    def judge_waiting(self) -> None:
        """Judge the samples that this rank has figures of; one collective, if there are any."""
        if self.waiting:
            self._join([], -1, -1)

    def _join(self, products: list[Tensor], slot: int, noise_slot: int) -> list[Tensor]:
        """Judge the samples by the figures of all ranks, and add up products; one collective.

        If one of them turns out to be spoilt, the rows that it is in are no rows.
        """
        layout, when = self.layout, self.verdicts.when
        assert layout.ranks is not None
        figures = torch.stack([*self.waiting, self.metric.new_zeros(3)])
        self.waiting.clear()
        figures, *products = layout.ranks.total(figures, *map(layout.counted, products))
        believed = ~when.spoiled
        for sample in self.of_ranks(figures)[:-1]:
            ops.judge_slope_(*self.verdicts.tensors, sample, False)
        spoilt = believed & when.spoiled
        when.paired.logical_and_(~spoilt)
        there = spoilt.to(self.rows.device)
        for row in self._written(slot, noise_slot):
            ops.gather((), self.rows[row], when=there)
        return [layout.without_copies(x).masked_fill(spoilt, 0) for x in products]

    def solve(self, caution: float = 1.0) -> tuple[ops.SubspaceSolution, Tensor]:
        """The small problem, one per scope; and ``[]`` whether the trust radius has cut it.

        It is that of the quadratic which fits the gradients at all means between rows. ``caution``
        multiplies the weight of the noise that is left in it.
        """
        o, now = self.options, self.verdicts.now
        last = (self.slot - 1) % o.history_depth
        radius = self._joint(self.metric[:, last, last]).clamp_min(0).sqrt() * now.trust_radius
        if "limits" not in o.tests:
            radius = torch.full_like(radius, math.inf)
        noise = self.noise[..., : min(self.blocks, o.noise_samples)].contiguous()
        device = o.storage.compute_device or self.layout.device
        problem = (self.metric, self.curvature, self.slopes, noise)
        metric, *products = (self._joint(x).to(device) for x in problem)
        count = min(self.blocks - 1, o.history_depth)
        fit = ops.fit_quadratic(
            metric,
            *products,
            newest=last,
            count=count,
            ridge=RIDGE,
            shrinkage=CARRYING * o.noise_shrinkage,
        )
        solution = ops.solve_subspace(
            metric,
            *fit,
            radius=radius.to(device),
            ridge=RIDGE,
            floor=LEAST_CURVATURE,
            shrinkage=caution * o.noise_shrinkage,
        )
        solution = ops.SubspaceSolution(*(x.to(self.layout.device) for x in solution))
        return solution, (solution.length > (1 - 1e-9) * radius).any()

    def _joint(self, matrices: Tensor) -> Tensor:
        """One system for all segments with scope "all"; else one a problem."""
        matrices = self.layout.counted(matrices)
        joint = self.options.scope == "all" and len(matrices) > 1
        return matrices.sum(dim=0, keepdim=True) if joint else matrices
