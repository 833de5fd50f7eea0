"""Verdicts over random numbers: those of kernels and of tensors are those of Python's numbers."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops import library
from aadl_ext.ops.verdicts import CONTROL, COUNTS, FLAGS


class Dice:
    """Draws what the tensors of a verdict may hold, and what they should not."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def limit(self) -> float:
        return self.random.choice([0.1, 2.0, math.inf])

    def number(self) -> float:
        odd = [0.0, -0.0, 1.0, -1.0, 2.0, 1e300, 1e-300, math.inf, -math.inf, math.nan]
        return self.random.choice([*odd, *(self.random.gauss(0, 2) for _ in odd)])

    def numbers(self, *shape: int) -> Tensor:
        flat = [self.number() for _ in range(math.prod(shape))]
        return torch.tensor(flat, dtype=torch.float64).reshape(shape)

    def squares(self, *shape: int) -> Tensor:
        return self.numbers(*shape).abs()

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def maybe(self) -> Tensor | None:
        return self.random.choice([None, torch.tensor(self.flag())])

    def verdicts(self) -> ops.Verdicts:
        flags = torch.tensor([self.flag() for _ in FLAGS])
        counts = torch.tensor([self.random.randrange(9) for _ in COUNTS])
        return ops.Verdicts(self.numbers(len(CONTROL)), flags, counts)


def figures(dice: Dice, count: int) -> Tensor:
    """As ops measure them: squares and sizes, and a product in the place of the last of two."""
    drawn = dice.squares(count)
    if count == 2:
        drawn[1] = dice.number()
    return drawn


def gradient(dice: Dice) -> Tensor:
    """The squared norm, and perhaps products."""
    return torch.cat([dice.squares(1), dice.numbers(dice.random.choice([0, 2]))])


def some_tests(dice: Dice) -> tuple[Any, ...]:
    names = dice.random.sample(["rejected_nonfinite", "rejected_limits", "rejected_loss"], 2)
    passes = [torch.tensor(dice.flag()) for _ in names]
    possible = torch.tensor(dice.flag())
    return possible, passes, [COUNTS.index(x) for x in names], dice.flag(), dice.flag()


def block(dice: Dice) -> tuple[Any, ...]:
    noises = dice.random.choice([0, 1, 3])
    slot = dice.random.randrange(noises) if noises else -1
    samples, level = dice.random.randint(1, 5), dice.random.randint(-2, 2)
    return samples, dice.squares(2), dice.squares(2, noises), slot, level


VERDICTS: dict[str, Callable[[Dice], tuple[Any, ...]]] = {
    "judge_gradient_": lambda d: (
        gradient(d),
        d.maybe(),
        d.limit(),
        d.flag(),
    ),
    "judge_residual_": lambda d: (figures(d, 4), d.maybe(), d.flag(), d.flag(), d.flag()),
    "arm_": some_tests,
    "average_": lambda d: (d.squares(), d.limit(), d.random.randint(2, 5)),
    "judge_slope_": lambda d: (figures(d, 2), d.flag()),
    "learn_": block,
    "compare_": lambda d: (d.squares(), d.squares()),
    "judge_line_": lambda d: (
        *(figures(d, 2), d.squares(), d.maybe(), torch.tensor(d.flag()), d.limit(), d.flag()),
    ),
    "take_line_": lambda d: (d.numbers(), *(torch.tensor(d.flag()) for _ in range(3))),
}


def judged(name: str, seed: int) -> tuple[Tensor, ...]:
    dice = Dice(seed)
    verdicts = dice.verdicts()
    getattr(ops, name)(*verdicts.tensors, *VERDICTS[name](dice))
    return verdicts.tensors


@pytest.mark.parametrize("name", VERDICTS)
def test_numbers_of_tensors_are_judged_as_pythons(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = range(100 if backend.startswith("emulated") else 200)
    with library.definitions_only():
        seen = [judged(name, seed) for seed in seeds]
    if backend == "definition":  # once more, as on a device: nothing is read
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("aadl_ext.ops.") and hasattr(module, "seen"):
                monkeypatch.setattr(module, "seen", lambda tensor: False)
    for seed, expected in zip(seeds, seen, strict=True):
        found = judged(name, seed)
        assert all(map(torch.equal, found[1:], expected[1:])), seed
        # Roots and the exponential function are not always rounded alike.
        torch.testing.assert_close(found[0], expected[0], rtol=1e-15, atol=0, equal_nan=True)
    changes = torch.stack([flags for _, flags, _ in seen])
    assert (changes.any(dim=0) & ~changes.all(dim=0)).sum() > len(FLAGS) / 2
