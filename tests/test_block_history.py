"""Blocks of samples against their means and products in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aadl_ext import SubspaceNewton, ops
from aadl_ext.block_history import BlockHistory
from aadl_ext.parameters import Layout

SIZE, DEPTH, NOISES, SAMPLES = 6, 3, 2, 4
DIFFERENCE = np.array([1, -3, 3, -1])[:, None] / np.sqrt(5)


class Blocks:
    """A history of random blocks, and their samples [blocks, SAMPLES, SIZE]."""

    def __init__(self, count: int, noises: int = NOISES) -> None:
        groups = [{"params": [nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))]}]
        self.layout = Layout.build(groups, "all", None)
        self.verdicts = ops.Verdicts.on(self.layout.device)
        for flag in (self.verdicts.when.paired, self.verdicts.when.complete):
            flag.fill_(True)
        options = SubspaceNewton(history_depth=DEPTH, noise_samples=noises)
        self.history = BlockHistory.empty(self.layout, options, self.verdicts)
        random = np.random.default_rng(0)
        self.points, self.gradients = random.standard_normal((2, count, SAMPLES, SIZE))
        for block in range(count):
            for point, gradient in zip(self.points[block], self.gradients[block], strict=True):
                self.history.add([self.flat(point)], [self.flat(gradient)], None, of=SAMPLES)
            self.change, self.noise_slot = self.history.close_block()

    def flat(self, values: np.ndarray) -> Tensor:
        vector = self.layout.vector()
        vector[:SIZE] = torch.from_numpy(values)
        return vector


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_rows_are_changes_of_means_and_products_are_theirs(count: int) -> None:
    blocks = Blocks(count)
    history = blocks.history
    slots = [(k - 1) % DEPTH for k in range(max(1, count - DEPTH), count)]
    steps, changes = (
        np.diff(x.mean(axis=1), axis=0)[-DEPTH:] for x in (blocks.points, blocks.gradients)
    )
    noise = (DIFFERENCE * blocks.gradients).mean(axis=1)
    latest = np.stack([noise[k] for k in range(max(0, count - NOISES), count)])
    places = [k % NOISES for k in range(max(0, count - NOISES), count)]

    def close(found: Tensor, expected: np.ndarray) -> None:
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)

    close(history.step_rows[slots, :SIZE], steps)
    close(history.gradient_rows[slots, :SIZE], changes)
    close(history.noise_rows[places, :SIZE], latest)
    close(history.metric[0][slots][:, slots], steps @ steps.T)
    close(history.curvature[0][slots][:, slots], steps @ changes.T)
    close(history.slopes[0][slots], steps @ blocks.gradients[-1].mean(axis=0))
    close(history.noise[0][slots][:, places], steps @ latest.T)
    close(history.noise_norms[0][places], np.square(latest).sum(axis=1))
    close(blocks.change, np.square(changes[-1:]).sum(axis=1))
    assert blocks.noise_slot == places[-1]


def test_without_noise_samples_there_are_no_rows_of_noise() -> None:
    blocks = Blocks(3, noises=0)
    assert blocks.noise_slot == -1
    assert blocks.history.noise_rows.shape[0] == 0
    assert blocks.history.solve()[0].coefficients.isfinite().all()


def test_cleared_it_is_as_new_but_for_rows_that_are_not_used() -> None:
    history = Blocks(4).history
    assert history.solvable
    history.clear()
    assert not history.solvable
    assert (history.blocks, history.samples, history.slot) == (0, 0, 0)
    assert not any(x.any() for x in (history.metric, history.curvature, *history.sums))
