"""A plan counts what a training then costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD

import aadl_ext
from aadl_ext import Anderson, Storage, SubspaceNewton, accelerate, get_accelerator
from aadl_ext.__main__ import main
from aadl_ext.ops import library
from aadl_ext.ops.traffic import Traffic

NEWTON = SubspaceNewton(
    adaptive_blocks=False, block_length=5, history_depth=3, noise_samples=2, quasi_newton=False
)
ANDERSON = Anderson(history_depth=4, frequency=2, store_each_nth=2)
METHODS = {
    "newton": NEWTON,
    "narrow rows": replace(NEWTON, storage=Storage(torch.bfloat16)),
    "sketched": replace(NEWTON, sketch=500),
    "anderson": ANDERSON,
    "averaged": replace(ANDERSON, average=True),
    "tsqr": replace(ANDERSON, solver="tsqr", scope="tensor"),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(x, generator=generator)) for x in ((70, 64), (5000,), (3,))]


@methods
def test_memory_and_traffic_are_those_of_a_training(
    method: aadl_ext.SubspaceNewton | Anderson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "use_kernels", True)  # calls are counted in the dispatcher
    moved = []
    for options in (None, method):
        own = parameters()
        optimizer = SGD(own, lr=0.05)
        if options is not None:
            accelerate(optimizer, options)
        moved.append(0)
        for k in range(60):
            for i, parameter in enumerate(own):
                parameter.grad = parameter.detach() * (0.1 + i)
            with Traffic() as traffic:
                optimizer.step()
            moved[-1] += (traffic.read + traffic.written) * (k >= 40)
    found = aadl_ext.plan(optimizer)
    assert found.entries == sum(p.numel() for p in own)
    assert found.bytes_held == pytest.approx(get_accelerator(optimizer).stats.bytes_held, rel=0.1)
    assert found.bytes_moved == pytest.approx((moved[1] - moved[0]) / 20, rel=0.1)
    assert (found.ranks, found.collectives, found.bytes_sent) == (1, 0, 0)


def test_steps_where_gradients_repeat_are_those_of_a_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "use_kernels", True)
    moved = []
    for accelerated in (False, True):
        own = parameters()
        optimizer = SGD(own, lr=0.05)
        if accelerated:
            accelerate(optimizer)
        moved.append([])
        for _ in range(30):
            for i, parameter in enumerate(own):
                parameter.grad = parameter.detach() * (0.1 + i) + 0.01 * parameter.detach() ** 3
            with Traffic() as traffic:
                optimizer.step()
            moved[-1].append(traffic.read + traffic.written)
    assert get_accelerator(optimizer).iteration.quasi_newton.age > 8
    found = aadl_ext.plan(optimizer).repeating
    assert found is not None
    assert found.bytes_moved == pytest.approx(
        (sum(moved[1][-8:]) - sum(moved[0][-8:])) / 8, rel=0.1
    )
    assert "where gradients repeat" in str(aadl_ext.plan(optimizer))
    assert aadl_ext.plan(optimizer, NEWTON).repeating is None


@methods
def test_the_size_of_a_model_does_not_matter(method: aadl_ext.SubspaceNewton | Anderson) -> None:
    small, large = (
        aadl_ext.plan(nn.Linear(n, n, bias=False, device="meta"), method) for n in (512, 1 << 17)
    )
    assert large.entries == small.entries << 16
    assert large.bytes_moved / large.entries == pytest.approx(
        small.bytes_moved / small.entries, rel=0.1
    )
    assert large.vectors == pytest.approx(small.vectors, rel=0.1)


@pytest.fixture
def ranks() -> Iterator[None]:
    """The command makes a process group of ranks that are not there."""
    assert not dist.is_initialized()
    yield
    dist.destroy_process_group()


def plan(arguments: str) -> int:
    return main(["plan", *arguments.split()])


def test_the_command_counts_for_any_number_of_ranks(
    ranks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = "--mesh r8x512 --step 2 --set history_depth=4"
    assert plan(f"--parameters 1e12 --dtype bfloat16 {mesh}") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "on one of 4,096 ranks, which holds 1,953,125,000 entries of the parameters"
    lines = lines[: lines.index("where gradients repeat, as on full batches")]
    rows = dict(line.split(maxsplit=1) for line in lines)  # copies do not divide them
    assert rows["memory"].endswith(" GB, 12 times the parameters in float32")
    assert rows["collectives"] == "0.2 a step"  # two in a block of ten steps
    assert rows["sent"].endswith(" B at once")
    assert rows["share"].endswith("% of a step")


def test_the_command_tells_what_is_in_host_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--parameters 1e9 --set offload=True --set history_depth=8") == 0
    memory = "64.1 GB, 16.02 times the parameters in float32, of which 40 GB in host memory\n"
    assert memory in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--parameters 10 --mesh 4y", "mesh is '4y'; expected sizes"),
        ("--parameters 3 --mesh 8", "3 parameters cannot be divided among 8 ranks"),
        ("--parameters 10 --set depth=3", "unexpected keyword argument 'depth'"),
        ("--parameters 10 --set history_depth=0", "history_depth is 0"),
    ],
)
def test_what_cannot_be_planned_is_told(
    arguments: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(arguments) == 2
    assert reason in capsys.readouterr().err
