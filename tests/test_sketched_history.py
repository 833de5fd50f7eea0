"""A history of sketches, beside one that keeps gradients whole."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.optim import SGD, Adam
from training import NEWTON, SKETCHED, MakeOptimizer, Training, adam, momentum, sgd

from aadl_ext import SubspaceNewton, accelerate, get_accelerator, ops
from aadl_ext.parameters import Layout
from aadl_ext.sketched_history import SketchedHistory

STEPS = 24
MAKERS = {
    "sgd": sgd,
    "momentum": momentum,
    "decay": partial(SGD, lr=0.3, weight_decay=1e-2),  # in the gradient
    "adam": adam,
    "coupled": partial(Adam, lr=0.02, weight_decay=1e-2),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_with_room_for_all_entries_it_is_the_history_of_whole_gradients(
    make: MakeOptimizer,
) -> None:
    whole, sketched = (
        Training(make, replace(NEWTON, noise_samples=2, sketch=size), torch.float64)
        for size in (0, 1000)
    )
    for _ in range(STEPS):
        whole.step()
        sketched.step()
        torch.testing.assert_close(sketched.point(), whole.point(), rtol=1e-9, atol=1e-9)
    counts = whole.accelerator.stats
    assert counts.extrapolations > 2
    assert sketched.accelerator.stats.extrapolations == counts.extrapolations
    assert sketched.accelerator.stats.rejected == counts.rejected


def history() -> SketchedHistory:
    parameter = torch.nn.Parameter(torch.zeros(192))
    layout = Layout.build([{"params": [parameter]}], "all", None)
    options = replace(SKETCHED, history_depth=3, noise_samples=2, sketch=50)
    verdicts = ops.Verdicts.on(layout.device)
    verdicts.when.complete.fill_(True)
    return SketchedHistory.empty(layout, options, verdicts)


def test_moves_are_whole_and_all_else_is_what_sketches_tell() -> None:
    h = history()
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(4, 2, 2, 192, generator=generator)  # blocks of two (point, gradient)
    for block in samples:
        for point, gradient in block:
            h.add([point], [gradient], None, of=2)
        h.close_block()
        h.verdicts.when.paired.fill_(True)
    means = samples.mean(dim=1)
    moves, changes = means.diff(dim=0).unbind(dim=1)
    noise = (samples[2:, 0, 1] - samples[2:, 1, 1]) / 2
    bf16 = {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(h.moves.float(), moves, **bf16)
    torch.testing.assert_close(h.last_mean, means[-1, 0])

    def sketches(rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([ops.sketch([row], 50) for row in rows])

    moved, others = sketches(moves), (sketches(changes), sketches(means[-1:, 1]), sketches(noise))
    rough = {"rtol": 2e-2, "atol": 2.0}
    torch.testing.assert_close(h.metric[0], moved @ moved.T, **rough)
    torch.testing.assert_close(h.curvature[0], moved @ others[0].T, **rough)
    torch.testing.assert_close(h.slopes[0], (moved @ others[1].T)[:, 0], **rough)
    torch.testing.assert_close(h.noise[0], moved @ others[2].T, **rough)


def test_a_block_that_cannot_be_used_leaves_no_trace() -> None:
    h = history()
    ones = torch.ones(192)
    for k in range(3):
        h.add([k * ones], [ones], None, of=1)
        h.close_block()
        h.verdicts.when.paired.fill_(True)
    mean = h.last_mean.clone()
    h.verdicts.when.complete.fill_(False)
    h.add([torch.nan * ones], [torch.inf * ones], None, of=1)
    h.close_block()
    assert torch.equal(h.last_mean, mean)
    assert not h.moves[(h.slot - 1) % 3].any()
    for vectors in (h.moves, h.rows, h.point_sum, *h.sums, h.metric, h.slopes):
        assert vectors.isfinite().all()


def test_it_holds_less_than_six_vectors() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1_000_000))
    optimizer = accelerate(SGD([parameter], lr=0.1), SubspaceNewton.sketched())
    assert get_accelerator(optimizer).stats.bytes_held < 6 * parameter.nbytes


def test_parameters_over_ranks_are_refused() -> None:
    layout = Layout.build([{"params": [torch.nn.Parameter(torch.zeros(20))]}], "all", None)
    spread = replace(layout, ranks=object())
    with pytest.raises(ValueError, match="spread over ranks; take sketch=0"):
        SketchedHistory.empty(spread, SKETCHED, ops.Verdicts.on(layout.device))
