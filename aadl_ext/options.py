"""The options of ``accelerate``: one frozen record, checked once, read in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

ACCELERATION_TYPES = ("anderson", "anderson_normal_equation", "identity")
MIXINGS = ("paper", "anderson")
SAFEGUARDS = ("residual", "loss", None)
RESIDUALS = ("step",)
SCOPES = ("all", "group", "tensor")
SOLVERS = ("auto", "gram", "tsqr")
HISTORY_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
    safeguard: str | None = "residual"
    residual: str = "step"
    average_window: int = 5
    average_threshold: float = 0.1
    scope: str = "all"
    solver: str = "auto"
    history_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if isinstance(self.acceleration_type, str):  # AADL accepts any case
            object.__setattr__(self, "acceleration_type", self.acceleration_type.lower())
        self._check_choice("acceleration_type", ACCELERATION_TYPES)
        self._check_choice("mixing", MIXINGS)
        self._check_choice("safeguard", SAFEGUARDS)
        self._check_choice("residual", RESIDUALS)
        self._check_choice("scope", SCOPES)
        self._check_choice("solver", SOLVERS)
        self._check_choice("history_dtype", HISTORY_DTYPES)
        self._check_integer("wait_iterations", 0)
        self._check_integer("history_depth", 1)
        self._check_integer("store_each_nth", 1)
        self._check_integer("frequency", 1)
        self._check_integer("average_window", 2)
        self._check_real("relaxation", "0 < relaxation <= 1", lambda x: 0 < x <= 1)
        self._check_real("reg_acc", "0 <= reg_acc < inf", lambda x: 0 <= x < math.inf)
        self._check_real("average_threshold", "average_threshold > 0", lambda x: x > 0)
        if not isinstance(self.average, bool):
            raise ValueError(f"average is {self.average!r}; it must be True or False")
        if self.acceleration_type == "anderson_normal_equation" and self.solver == "tsqr":
            raise ValueError(
                "acceleration_type='anderson_normal_equation' means solver='gram', but solver "
                "is 'tsqr'; use acceleration_type='anderson' to choose the solver by name"
            )

    @property
    def accelerates(self) -> bool:
        """Whether steps are extrapolated; "identity" only averages."""
        return self.acceleration_type != "identity"

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

    def _check_integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be an integer >= {least}")

    def _check_real(self, name: str, allowed: str, holds: Any) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not holds(value):
            raise ValueError(f"{name} is {value!r}; allowed is {allowed}")


def as_device(name: str, value: torch.device | str | None) -> torch.device | None:
    """Parse a device option; the device must be usable here and now."""
    try:
        if value is None:
            return None
        torch.empty(0, device=value)
        return torch.device(value)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"{name} is {value!r}, which cannot be used here: {error}") from error
