"""The methods that are compared: the paper's three, and what else its text may mean.

A method is None (the bare optimizer), a factor ``rate`` of the learning rate, or settings: those of
:func:`method_of`, or with ``code`` the arguments of AADL itself, which is imported where it is
installed. ``closure`` says whether ``step`` gets one; ``safeguard="loss"`` always needs it.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

import aadl_ext
from aadl_ext import Anderson, Averaging, Storage

from . import harness

Methods = dict[str, Any]

#: Averaging at t = 5 moves at an eleventh of the optimizer's pace; this does so, too.
CONTROL: Methods = {"Adam, smaller steps": {"rate": 1 / 11}}
#: The paper names epsilon, but no t.
AVERAGING = {"average_window": 5, "average_threshold": 0.1}


def paper(**acceleration: Any) -> Methods:
    """The paper's three, with the p, q, m and beta of one problem."""
    common = {**acceleration, **AVERAGING}
    return {
        "Adam": None,
        "Adam + AADL": {**common, "average": False},
        "Adam + AADL + average": {**common, "average": True},
    }


def others(**acceleration: Any) -> Methods:
    """What the text allows besides; at beta = 1 both dampings are the same."""
    alone = {**acceleration, **AVERAGING}
    average = {**alone, "average": True}
    window = {**average, "average_window": 10}
    classic, loss = {"mixing": "anderson"}, {"safeguard": "loss"}
    made = {
        "AADL, safeguard by the loss": {**alone, **loss},
        "average, t = 2": {**average, "average_window": 2},
        "average, t = 10": window,
        "average, safeguard by the loss": {**average, **loss},
        "average, no acceleration": {"acceleration_type": "identity", "average": True, **AVERAGING},
    }
    if acceleration["relaxation"] != 1:
        made |= {
            "AADL, classic damping": {**alone, **classic},
            "average, classic damping": {**average, **classic},
            "average, t = 10, classic, loss": {**window, **classic, **loss},
        }
    return made


def aadl_code(**acceleration: Any) -> Methods:
    """AADL's own code; its depth counts iterates, ours columns, and is also its t."""
    common = {"code": "AADL", "acceleration_type": "anderson", **acceleration}
    return {
        "AADL's code, no average": {**common, "average": False},
        "AADL's code, safeguard": {**common, "average": False, "closure": True},
        "AADL's code, average": {**common, "average": True},
        "AADL's code, average, safeguard": {**common, "average": True, "closure": True},
    }


def wants_closure(method: Any) -> bool:
    """Whether the steps of a method get a closure."""
    return bool(method) and method.get("closure", method.get("safeguard") == "loss")


def accelerate(optimizer: Optimizer, method: Any) -> None:
    """Apply a method to a fresh optimizer.

    Raises:
        SettingsError: it is AADL's, which cannot be imported.
    """
    if method is None:
        return
    if "rate" in method:
        for group in optimizer.param_groups:
            group["lr"] *= method["rate"]
        return
    if "code" in method:
        own = {name: value for name, value in method.items() if name not in ("code", "closure")}
        _aadl().accelerate(optimizer, **own)
    else:
        aadl_ext.accelerate(optimizer, method_of(method))


def method_of(settings: dict[str, Any], storage: Storage | None = None) -> Anderson:
    """Anderson acceleration by plain values, which results on disk are told apart by.

    They are the options of ``Anderson``, but ``average`` is a flag beside ``average_window`` and
    ``average_threshold``, and ``acceleration_type="identity"`` extrapolates nothing.
    """
    options = dict(settings)
    averaging = Averaging(options.pop("average_window"), options.pop("average_threshold"))
    average = averaging if options.pop("average", False) else None
    if options.pop("acceleration_type", "anderson") == "identity":
        options["history_depth"] = 0
    options = {"safeguard": "residual", **options}  # that of Algorithm 1 alone
    return Anderson(**options, average=average, storage=storage or Storage())


def _aadl() -> Any:
    try:
        return importlib.import_module("AADL")
    except ImportError as error:
        raise harness.SettingsError(
            f"AADL cannot be imported ({error}); git clone https://github.com/ORNL/AADL and put "
            "the folder on PYTHONPATH"
        ) from error


# ---- command line ---------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which methods are run."""
    add = parser.add_argument
    add("--control", action="store_true", help="Adam with smaller steps, too")
    add("--readings", action="store_true", help="what else the text may mean, and --control")
    add("--aadl", action="store_true", help="AADL's own code, too")
    add("--methods", nargs="+", metavar="NAME", help="only these; the first is compared with")


def chosen(options: argparse.Namespace, acceleration: dict[str, Any]) -> Methods:
    """The methods that the command line asks for.

    Raises:
        SettingsError: one of ``--methods`` is none of them.
    """
    methods = paper(**acceleration)
    if options.readings:
        methods |= others(**acceleration)
    if options.readings or options.control:
        methods |= CONTROL
    if options.aadl:
        methods |= aadl_code(**acceleration)
    if unknown := [name for name in options.methods or [] if name not in methods]:
        raise harness.SettingsError(f"{unknown} are none of {', '.join(methods)}")
    return {name: methods[name] for name in options.methods or methods}


def run(
    experiment: harness.Experiment, options: argparse.Namespace, acceleration: dict[str, Any]
) -> Path:
    """Run an experiment with the methods that the command line asks for."""
    picture = f"{experiment.name}_readings" if options.readings or options.aadl else ""
    made = replace(experiment, methods=chosen(options, acceleration), picture=picture)
    return harness.run(made, options.seeds, options.out, options.json)
