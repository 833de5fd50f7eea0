"""The options of ``accelerate``: one frozen record, checked once, read in one place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.optim import SGD, Optimizer

ACCELERATION_TYPES = ("anderson", "anderson_normal_equation", "identity", "subspace_newton")
CHOICES: dict[str, tuple[Any, ...]] = {
    "acceleration_type": ACCELERATION_TYPES,
    "mixing": ("paper", "anderson"),
    "residual": ("step", "gradient", "auto"),
    "momentum": ("keep", "reset", "scale"),
    "scope": ("all", "group", "tensor"),
    "solver": ("auto", "gram", "tsqr"),
    "history_dtype": (None, torch.float32, torch.float64, torch.bfloat16, torch.float16),
}
SAFEGUARDS = ("residual", "loss", "descent", "limits")
AT_LEAST = {
    "wait_iterations": 0,
    "history_depth": 1,
    "store_each_nth": 1,
    "frequency": 1,
    "average_window": 2,
    "noise_rows": 0,
}
POSITIVE = ("average_threshold", "coefficient_limit", "gradient_guard", "trust")
NOT_NEGATIVE = ("reg_acc", "curvature_floor", "noise_shrinkage")

# Where they differ from the defaults of the class.
SUBSPACE_NEWTON = {
    "relaxation": 1.0,
    "wait_iterations": 0,
    "history_depth": 8,
    "store_each_nth": 10,
    "reg_acc": 1e-4,
    "safeguard": ("residual", "descent", "limits"),
    "residual": "gradient",
}
MEMORY_LIGHT = {"history_depth": 5, "noise_rows": 3}


@dataclass(frozen=True)
class Options:
    """Checked settings; their meaning is documented at :func:`aadl_ext.accelerate`."""

    acceleration_type: str = "anderson"
    relaxation: float = 0.1
    wait_iterations: int = 1
    history_depth: int = 15
    store_each_nth: int = 1
    frequency: int = 1
    reg_acc: float = 0.0
    average: bool = False
    history_device: torch.device | None = None
    compute_device: torch.device | None = None
    mixing: str = "paper"
    safeguard: str | tuple[str, ...] | None = "residual"
    residual: str = "step"
    momentum: str = "keep"
    average_window: int = 5
    average_threshold: float = 0.1
    scope: str = "all"
    solver: str = "auto"
    history_dtype: torch.dtype | None = None
    coefficient_limit: float = 100.0
    gradient_guard: float = 2.0
    trust: float = 4.0
    adapt_blocks: bool = False
    noise_rows: int = 9
    noise_shrinkage: float = 4.0
    curvature_floor: float = 0.01

    @classmethod
    def of(cls, acceleration_type: str, memory_light: bool = False, **given: Any) -> Options:
        """The options that are given, over the defaults of the type."""
        _check_truth("memory_light", memory_light)
        defaults: dict[str, Any] = {}
        if str(acceleration_type).lower() == "subspace_newton":
            measured = given.get("noise_rows", cls.noise_rows) != 0
            defaults = {**SUBSPACE_NEWTON, "adapt_blocks": measured}
            defaults |= MEMORY_LIGHT if memory_light else {}
        elif given.get("residual") == "gradient":
            defaults = {"safeguard": ("residual", "descent")}
        options = cls(acceleration_type, **{**defaults, **given})
        if memory_light and not options.newton:
            raise ValueError(
                f"memory_light is for 'subspace_newton', but the method is {acceleration_type!r}; "
                "its memory is set by history_depth"
            )
        return options

    def __post_init__(self) -> None:
        if isinstance(self.acceleration_type, str):  # AADL accepts any case
            object.__setattr__(self, "acceleration_type", self.acceleration_type.lower())
        for name, allowed in CHOICES.items():
            self._check_choice(name, allowed)
        self._check_safeguards()
        for name, least in AT_LEAST.items():
            self._check_integer(name, least)
        self._check_real("relaxation", "0 < relaxation <= 1", lambda x: 0 < x <= 1)
        for name in POSITIVE:
            self._check_real(name, f"{name} > 0", lambda x: x > 0)
        for name in NOT_NEGATIVE:
            self._check_real(name, f"0 <= {name} < inf", lambda x: 0 <= x < math.inf)
        for name in ("average", "adapt_blocks"):
            _check_truth(name, getattr(self, name))
        self._check_together()

    @property
    def safeguards(self) -> tuple[str, ...]:
        """Names of the tests that a jump must pass."""
        value = self.safeguard
        return () if value is None else value if isinstance(value, tuple) else (value,)

    @property
    def accelerates(self) -> bool:
        """Whether steps are extrapolated; "identity" only averages."""
        return self.acceleration_type != "identity"

    @property
    def newton(self) -> bool:
        """Whether jumps are Newton steps in the subspace, not least-squares solutions."""
        return self.acceleration_type == "subspace_newton"

    def uses_gradients(self, optimizer: Optimizer) -> bool:
        """Resolve residual="auto": the step of SGD without momentum depends on w alone."""
        if self.newton or self.residual != "auto":
            return self.newton or self.residual == "gradient"
        groups = optimizer.param_groups
        return not isinstance(optimizer, SGD) or any(group["momentum"] for group in groups)

    def solver_for(self, dtype: torch.dtype) -> str:
        """Resolve "auto": products of float32 are exact in float64, those of float64 are not."""
        if self.acceleration_type == "anderson_normal_equation":
            return "gram"
        if self.solver != "auto":
            return self.solver
        return "tsqr" if dtype == torch.float64 else "gram"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _check_choice(self, name: str, allowed: tuple[Any, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, allowed))}")

    def _check_safeguards(self) -> None:
        value = self.safeguard
        if isinstance(value, Iterable) and not isinstance(value, str):
            object.__setattr__(self, "safeguard", tuple(value))  # not to be changed later
        if any(name not in SAFEGUARDS for name in self.safeguards):
            allowed = ", ".join(map(repr, SAFEGUARDS))
            raise ValueError(f"safeguard is {value!r}; choose from {allowed}, several, or None")

    def _check_together(self) -> None:
        if self.acceleration_type == "anderson_normal_equation" and self.solver == "tsqr":
            raise ValueError(
                "acceleration_type='anderson_normal_equation' means solver='gram', but solver "
                "is 'tsqr'; use acceleration_type='anderson' to choose the solver by name"
            )
        if self.newton and self.residual == "step":
            raise ValueError(
                "acceleration_type='subspace_newton' needs gradients, but residual is 'step'; "
                "leave residual out"
            )
        if self.adapt_blocks and not (self.newton and self.noise_rows):
            raise ValueError(
                "adapt_blocks measures noise, which acceleration_type='subspace_newton' with "
                "noise_rows >= 1 does; leave it out otherwise"
            )
        if self.residual == "gradient" and (self.average or not self.accelerates):
            raise ValueError(
                "the moving average belongs to the paper's residual='step'; with gradients "
                "leave average=True and acceleration_type='identity' out"
            )
        if self.residual == "step" and "descent" in self.safeguards:
            raise ValueError("safeguard 'descent' needs gradients; use it with residual='gradient'")

    def _check_integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be an integer >= {least}")

    def _check_real(self, name: str, allowed: str, holds: Any) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not holds(value):
            raise ValueError(f"{name} is {value!r}; allowed is {allowed}")


def _check_truth(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be True or False")


def as_device(name: str, value: torch.device | str | None) -> torch.device | None:
    """Parse a device option; the device must be usable here and now."""
    try:
        if value is None:
            return None
        torch.empty(0, device=value)
        return torch.device(value)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"{name} is {value!r}, which cannot be used here: {error}") from error
