"""Rows in host memory: passes over them in parts, and trainings with a history there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from training import NEWTON, SKETCHED

import aadl_ext
from aadl_ext import Anderson, Storage, SubspaceNewton, accelerate, get_accelerator, offload
from aadl_ext.offload import Aside, zero_rows

CPU = torch.device("cpu")
PART = 64
OFFLOAD = Storage(offload=True)


class Late(Aside):
    """Makes copies when they are waited for, and never before: who does not wait sees old data."""

    def __init__(self) -> None:
        self.left: list[tuple[Tensor, Tensor]] = []
        self.begun = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.left.append((target, source))

    def mark(self) -> int:
        return len(self.left)

    def wait(self, mark: int) -> None:
        for target, source in self.left[self.begun : mark]:
            target.copy_(source)
        self.begun = max(self.begun, mark)


class Early(Aside):
    """Makes copies at once, and so before what it does not follow: that may be using a buffer."""

    def __init__(self) -> None:
        self.in_use: set[int] = set()

    def follow(self) -> None:
        self.in_use.clear()

    def give(self, buffer: Tensor) -> None:
        self.in_use |= {row.data_ptr() for row in buffer}

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert not self.in_use & {target.data_ptr(), source.data_ptr()}
        target.copy_(source)


@pytest.fixture(params=[Aside, Late, Early], autouse=True)
def aside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aside]:
    """The CPU as a device that has other memory than the host."""
    aside: Aside = request.param()
    monkeypatch.setattr(offload, "beside", lambda device: aside)
    monkeypatch.setattr(offload, "AT_HOME", ())
    monkeypatch.setattr(offload, "PART", PART)
    yield aside
    if isinstance(aside, Late):
        assert aside.begun == len(aside.left)  # all that was to be copied has been waited for


def passed(aside: Aside, passes: offload.Passes, *given: Any) -> Iterator[tuple[slice, Tensor]]:
    for part, rows in passes.parts(*given):
        if isinstance(aside, Early):
            aside.give(rows)
        yield part, rows


@pytest.mark.parametrize("size", [1, PART, PART + 1, 5 * PART - 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_make_up_the_whole(size: int, dtype: torch.dtype, aside: Aside) -> None:
    rows, passes = zero_rows((4, size), dtype, CPU, offload=True)
    rows.copy_(torch.randn(4, size))
    seen = []
    for part, there in passed(aside, passes, rows[:3]):
        assert there.shape[1] <= PART
        assert torch.equal(there, rows[:3, part])
        seen.append(there.clone())
    assert torch.equal(torch.cat(seen, dim=1), rows[:3])


@pytest.mark.parametrize("size", [1, PART, PART + 1, 5 * PART - 3])
@pytest.mark.parametrize("changed", [[0], [1, 3], [0, 1, 2, 3]])
def test_rows_that_are_written_come_back(size: int, changed: list[int], aside: Aside) -> None:
    rows, passes = zero_rows((4, size), torch.float32, CPU, offload=True)
    rows.copy_(torch.randn(4, size))
    expected = rows.clone()
    for _ in range(2):
        new = torch.randn(4, size)
        for part, there in passed(aside, passes, rows, changed):
            for row in range(4):
                if row in changed:
                    there[row] = new[row, part]
                else:
                    assert torch.equal(there[row], expected[row, part])
        expected[changed] = new[changed]
        assert torch.equal(rows, expected)


class Bowl:
    """Noisy gradients of a quadratic, of 300 entries in three tensors."""

    def __init__(self, method: SubspaceNewton | None) -> None:
        self.generator = torch.Generator().manual_seed(0)
        sizes = ((10, 13), (100,), (70,))
        self.parameters = [nn.Parameter(torch.ones(x, dtype=torch.float64)) for x in sizes]
        self.optimizer = SGD(self.parameters, lr=0.1, momentum=0.5)
        if method is not None:
            accelerate(self.optimizer, method)

    def step(self) -> None:
        for i, p in enumerate(self.parameters):
            noise = torch.randn(p.shape, generator=self.generator, dtype=p.dtype)
            curved = torch.linspace(0.05, 1 + i, p.numel(), dtype=p.dtype).view(p.shape)
            p.grad = curved * p.detach() + 0.01 * noise
        self.optimizer.step()

    def run(self, steps: int) -> Tensor:
        points = []
        for _ in range(steps):
            self.step()
            points.append(torch.cat([p.detach().flatten() for p in self.parameters]))
        return torch.stack(points)

    @property
    def accelerator(self) -> Any:
        return get_accelerator(self.optimizer)


METHODS = {
    "newton": NEWTON,
    "no noise": replace(NEWTON, noise_samples=0),
    "tensors": replace(NEWTON, scope="tensor"),
    "adapted blocks": SubspaceNewton(quasi_newton=False),
    "sketched": replace(SKETCHED, sketch=400),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@methods
def test_the_way_is_that_of_rows_on_the_device(method: SubspaceNewton) -> None:
    here, there = (Bowl(replace(method, storage=Storage(offload=x))) for x in (False, True))
    torch.testing.assert_close(there.run(60), here.run(60), rtol=1e-8, atol=1e-10)
    assert there.accelerator.stats.extrapolations > 2
    counts = ("extrapolations", "accepted", "rejected", "pairs")
    assert all(getattr(there.accelerator.stats, x) == getattr(here.accelerator.stats, x)
               for x in counts)  # fmt: skip


@methods
def test_a_run_goes_on_where_it_was_saved(method: SubspaceNewton) -> None:
    method = replace(method, storage=OFFLOAD)
    first, second = Bowl(method), Bowl(method)
    first.run(31)
    with torch.no_grad():
        for p, q in zip(first.parameters, second.parameters, strict=True):
            q.copy_(p)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.accelerator.load_state_dict(first.accelerator.state_dict())
    second.generator.set_state(first.generator.get_state())
    assert torch.equal(first.run(25), second.run(25))


@methods
def test_a_gradient_that_is_not_finite_leaves_none_in_rows(method: SubspaceNewton) -> None:
    bowl = Bowl(replace(method, storage=OFFLOAD))
    bowl.run(30)
    for p in bowl.parameters:
        p.grad = torch.full_like(p, torch.nan)
    bowl.optimizer.step()
    with torch.no_grad():
        for p in bowl.parameters:
            p.fill_(0.5)
    assert bowl.run(30).isfinite().all()
    history = bowl.accelerator.iteration.history
    assert getattr(history, "moves", history.rows).isfinite().all()


@pytest.mark.parametrize(("make", "rows"), [(SubspaceNewton, 12), (SubspaceNewton.sketched, 4)])
def test_plan_and_stats_tell_what_is_in_host_memory(
    make: Callable[..., SubspaceNewton], rows: int
) -> None:
    parameter = nn.Parameter(torch.zeros(200_000))
    optimizer = accelerate(SGD([parameter], lr=0.1), make(storage=OFFLOAD))
    stats, plan = get_accelerator(optimizer).stats, aadl_ext.plan(optimizer)
    host = rows * parameter.nbytes // 2  # in bfloat16
    assert stats.bytes_offloaded == plan.bytes_offloaded == pytest.approx(host, rel=1e-3)
    assert stats.bytes_held == pytest.approx(plan.bytes_held, rel=0.01)
    assert f"{host / 1e6:.3g} MB in host memory" in str(plan)
    elsewhere = accelerate(SGD([nn.Parameter(torch.zeros(200_000))], lr=0.1), make())
    assert get_accelerator(elsewhere).stats.bytes_offloaded == 0
    assert "host" not in str(aadl_ext.plan(elsewhere))


def test_parameters_on_the_cpu_have_their_rows_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "AT_HOME", ("cpu",))
    bowl = Bowl(replace(NEWTON, storage=OFFLOAD))
    assert bowl.accelerator.stats.bytes_offloaded == 0
    assert torch.equal(bowl.run(40), Bowl(NEWTON).run(40))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="offload is True and device is cpu"):
        Storage(device="cpu", offload=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="offload is for subspace Newton"):
        Anderson(storage=OFFLOAD)
    with pytest.raises(ValueError, match="offload is 1; it must be of type bool"):
        Storage(offload=1)  # type: ignore[arg-type]
