"""Optimizers in the wrappers of frameworks: seen through, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import aadl_ext

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 40


def problem() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(32, 4)


def trained(optimizer: Any, loss: Callable[[], Tensor], backward: Any = Tensor.backward) -> Any:
    """Returns what the accelerator did."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        backward(loss())
        optimizer.step()
    stats = aadl_ext.get_accelerator(optimizer).stats
    assert stats.extrapolations > 0
    return stats


@pytest.mark.parametrize("first", [False, True], ids=["prepared first", "accelerated first"])
def test_accelerate_with_gradient_accumulation(first: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    plain, inputs = problem()
    optimizer = AdamW(plain.parameters(), lr=0.01)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    if first:
        aadl_ext.accelerate(optimizer)
    model, prepared = accelerator.prepare(plain, optimizer)
    if not first:
        aadl_ext.accelerate(prepared)
    for _ in range(2 * STEPS):
        with accelerator.accumulate(model):
            accelerator.backward(model(inputs).square().mean())
            prepared.step()
            prepared.zero_grad()
    stats = aadl_ext.get_accelerator(prepared).stats
    assert stats.steps == STEPS
    assert stats.extrapolations > 0


def test_fabric() -> None:
    lightning = pytest.importorskip("lightning", exc_type=ImportError)
    plain, inputs = problem()
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(plain, AdamW(plain.parameters(), lr=0.01))
    aadl_ext.accelerate(optimizer)
    stats = trained(optimizer, lambda: model(inputs).square().mean(), fabric.backward)
    assert stats.steps == STEPS


def test_opacus() -> None:
    opacus = pytest.importorskip("opacus", exc_type=ImportError)
    plain, inputs = problem()
    loader = torch.utils.data.DataLoader(inputs, batch_size=8)
    model, optimizer, _ = opacus.PrivacyEngine().make_private(
        module=plain,
        optimizer=SGD(plain.parameters(), lr=0.05),
        data_loader=loader,
        noise_multiplier=0.1,
        max_grad_norm=1.0,
    )
    aadl_ext.accelerate(optimizer)
    assert trained(optimizer, lambda: model(inputs).square().mean()).steps == STEPS


def test_low_rank_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    plain, inputs = problem()
    frozen = plain[0].weight.clone()
    model = peft.get_peft_model(plain, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    optimizer = aadl_ext.accelerate(AdamW(model.parameters(), lr=0.01))
    stats = trained(optimizer, lambda: (model(inputs) - 1).square().mean())
    assert stats.steps == STEPS
    assert torch.equal(model.base_model.model[0].base_layer.weight, frozen)


def test_sharpness_aware_minimization() -> None:
    package = pytest.importorskip("pytorch_optimizer", exc_type=ImportError)
    model, inputs = problem()
    optimizer = package.SAM(model.parameters(), base_optimizer=SGD, lr=0.05)
    aadl_ext.accelerate(optimizer)  # the one inside, whose state it shares
    for _ in range(STEPS):
        for step in (optimizer.first_step, optimizer.second_step):
            model(inputs).square().mean().backward()
            step(zero_grad=True)
    stats = aadl_ext.get_accelerator(optimizer).stats
    assert stats.steps == STEPS
    assert stats.extrapolations > 0


@pytest.mark.parametrize(
    ("module", "name", "options"),
    [
        ("torch_optimizer", "Lookahead", {}),
        ("pytorch_optimizer", "Lookahead", {}),
        ("schedulefree", "ScheduleFreeWrapper", {"momentum": 0.9}),
    ],
    ids=["Lookahead of torch_optimizer", "Lookahead of pytorch_optimizer", "ScheduleFreeWrapper"],
)
def test_wrappers_that_move_the_parameters_themselves_are_refused(
    module: str, name: str, options: dict[str, Any]
) -> None:
    package = pytest.importorskip(module, exc_type=ImportError)
    model, _ = problem()
    optimizer = getattr(package, name)(SGD(model.parameters(), lr=0.05), **options)
    with pytest.raises(TypeError, match="inside"):
        aadl_ext.accelerate(optimizer)


def test_schedule_free_evaluated_within_settled() -> None:
    package = pytest.importorskip("schedulefree", exc_type=ImportError)
    model, inputs = problem()
    optimizer = package.AdamWScheduleFree(model.parameters(), lr=0.01)
    aadl_ext.accelerate(optimizer)
    optimizer.train()

    def loss() -> Tensor:
        with aadl_ext.settled(optimizer):
            optimizer.eval()
            optimizer.train()
        return (model(inputs) - 1).square().mean()

    assert trained(optimizer, loss).dropped == 0
