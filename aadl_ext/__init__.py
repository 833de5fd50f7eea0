"""Stable Anderson acceleration of deep-learning optimizers.

One line, :func:`accelerate`, after the optimizer is made; the training loop stays as it is.
"""

from importlib.metadata import version

from . import integrations
from .accelerate import (
    accelerate,
    distributed_accelerate,
    finish,
    get_accelerator,
    remove_acceleration,
    reset_acceleration_history,
    settled,
)
from .accelerator import Accelerator
from .fixed_point import FixedPoint, fixed_point
from .options import Anderson, AndersonMixing, Averaging, Storage, SubspaceNewton
from .plan import Plan, plan
from .stats import Stats

__version__ = version("aadl_ext")

__all__ = [
    "Accelerator",
    "Anderson",
    "AndersonMixing",
    "Averaging",
    "FixedPoint",
    "Plan",
    "Stats",
    "Storage",
    "SubspaceNewton",
    "accelerate",
    "distributed_accelerate",
    "finish",
    "fixed_point",
    "get_accelerator",
    "integrations",
    "plan",
    "remove_acceleration",
    "reset_acceleration_history",
    "settled",
]
