"""What a method is measured against: optimizers that people use, and cheap wrappers of them.

A wrapper sees an optimizer's steps from a hook and holds one or two vectors of the size of its
parameters. `at_average` puts the parameters there where a wrapper would have them evaluated.

SNOO          Nesterov's momentum on the ways of K steps (arXiv 2510.15830); without momentum
              it is Lookahead (arXiv 1907.08610)
EMA-Nesterov  an average of the base's own steps, added after each (arXiv 2605.25395)
EMA           an average of the parameters, for evaluation only
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from aadl_ext import SubspaceNewton, accelerate, get_accelerator


@dataclass(eq=False)
class Wrapper:
    """Calls `after` once the optimizer has stepped."""

    optimizer: Optimizer
    steps: int  #: of the whole run
    k: int = 0  #: steps taken
    parameters: list[Tensor] = field(init=False)
    kept: list[Tensor] = field(init=False)  #: a copy of them, which `after` renews
    vectors = 1.0  #: of the size of the parameters

    def __post_init__(self) -> None:
        groups = self.optimizer.param_groups
        self.parameters = [p for group in groups for p in group["params"]]
        self.kept = [p.detach().clone() for p in self.parameters]
        self.optimizer.register_step_post_hook(self._count)

    @torch.no_grad()
    def _count(self, *_: Any) -> None:
        self.k += 1
        self.after()

    def after(self) -> None:
        """What is done after a step."""
        raise NotImplementedError

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are those to evaluate."""
        yield

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        here = [p.detach().clone() for p in self.parameters]
        torch._foreach_copy_(self.parameters, self.kept)
        yield
        torch._foreach_copy_(self.parameters, here)


@dataclass(eq=False)
class Snoo(Wrapper):
    """Every K steps w <- w - rate (momentum b + s), s the way back, b <- momentum b + s."""

    every: int = 20
    rate: float = 0.67
    momentum: float = 0.67

    def __post_init__(self) -> None:
        super().__post_init__()
        self.velocity = [torch.zeros_like(p) for p in self.parameters] if self.momentum else []
        self.vectors = 2.0 if self.momentum else 1.0

    def after(self) -> None:
        """`kept` is w."""
        if self.k % self.every:
            return
        way_back = torch._foreach_sub(self.kept, self.parameters)
        if self.momentum:
            torch._foreach_mul_(self.velocity, self.momentum)
            torch._foreach_add_(self.velocity, way_back)
            torch._foreach_add_(way_back, self.velocity, alpha=self.momentum)
        torch._foreach_add_(self.kept, way_back, alpha=-self.rate)
        torch._foreach_copy_(self.parameters, self.kept)


@dataclass(eq=False)
class EmaNesterov(Wrapper):
    """w + strength * (rate / largest rate) * v ahead of the base, v its mean step; not in decay.

    The look ahead rests while the rate rises and in the last third of the run.
    """

    fade: float = 0.99
    strength: float = 0.6
    rests_after: float = 0.65
    peak: float = 0.0  #: largest rate so far
    vectors = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.velocity = [torch.zeros_like(p) for p in self.parameters]

    def after(self) -> None:
        """`kept` is where the base has led; its next step begins at the point ahead."""
        rate = float(self.optimizer.param_groups[0]["lr"])
        rises, self.peak = rate > self.peak, max(rate, self.peak)
        moves = torch._foreach_sub(self.parameters, self.kept)
        torch._foreach_lerp_(self.velocity, moves, max(1 - self.fade, 1 / self.k))
        torch._foreach_copy_(self.kept, self.parameters)
        if not rises and self.k < self.rests_after * self.steps:
            ahead = self.strength * rate / self.peak
            torch._foreach_add_(self.parameters, self.velocity, alpha=ahead)

    averaged = Wrapper._swapped


@dataclass(eq=False)
class Ema(Wrapper):
    """Their mean over about 1 / (1 - fade) steps."""

    fade: float = 0.97

    def after(self) -> None:
        """`kept` is the mean."""
        torch._foreach_lerp_(self.kept, self.parameters, max(1 - self.fade, 1 / self.k))

    averaged = Wrapper._swapped


@dataclass(eq=False)
class Accelerated:
    """`aadl_ext` in a wrapper's place."""

    optimizer: Optimizer
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        accelerate(self.optimizer, SubspaceNewton(**self.settings))
        self.handle = get_accelerator(self.optimizer)

    @property
    def vectors(self) -> float:
        """Of float32 entries of the size of the parameters."""
        groups = self.optimizer.param_groups
        held = sum(p.numel() for group in groups for p in group["params"])
        return self.handle.stats.bytes_held / (4 * held)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Runs end long after the last step."""
        yield


WRAPPERS: dict[str, Callable[..., Any]] = {
    "newton": lambda optimizer, _, **settings: Accelerated(optimizer, settings),
    "Lookahead": lambda *args, **kw: Snoo(*args, **{"every": 5, "rate": 0.5, "momentum": 0} | kw),
    "SNOO": Snoo,
    "EMA-Nesterov": EmaNesterov,
    "EMA": Ema,
}


def hidden_matrices(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The weights of inner layers that are matrices, and all else (Muon is for the former)."""
    inner = [p for name, p in model.named_parameters() if "layers." in name and p.ndim == 2]
    return inner, [p for p in model.parameters() if all(p is not q for q in inner)]


def optimizers(name: str, model: nn.Module, rate: float, decay: float, steps: int) -> list[Any]:
    """Those that train a model together.

    SOAP is that of the package pytorch_optimizer, Schedule-Free AdamW that of schedulefree, which
    has a warm-up of its own.
    """
    parameters = list(model.parameters())
    common = {"lr": rate, "weight_decay": decay}
    if name == "AdamW":
        return [AdamW(parameters, betas=(0.9, 0.95), **common)]
    if name == "Muon":
        inner, others = hidden_matrices(model)
        muon = torch.optim.Muon(inner, adjust_lr_fn="match_rms_adamw", **common)
        return [muon, AdamW(others, betas=(0.9, 0.95), **common)]
    if name == "SOAP":
        from pytorch_optimizer import SOAP  # noqa: PLC0415

        return [SOAP(parameters, betas=(0.95, 0.95), precondition_frequency=10, **common)]
    if name == "Schedule-Free":
        from schedulefree import AdamWScheduleFree  # noqa: PLC0415

        return [AdamWScheduleFree(parameters, warmup_steps=steps // 10, **common)]
    raise ValueError(name)
