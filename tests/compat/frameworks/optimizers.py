"""Optimizers of torch and of packages, each with options that suit the digits."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

AT_ONCE = ", all digits at once"  #: in the name of those that are not made for mini-batches

#: By module: class and options.
CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "torch.optim": [
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("Adam", {"lr": 0.01}),
        ("AdamW", {"lr": 0.01}),
        ("NAdam", {"lr": 0.01}),
        ("RAdam", {"lr": 0.02}),
        ("RMSprop", {"lr": 3e-3}),
        ("Adagrad", {"lr": 0.03}),
        ("Adadelta", {"lr": 1.0}),
        ("Adamax", {"lr": 0.01}),
        ("Adafactor", {"lr": 0.03}),
        ("ASGD", {"lr": 1.0}),
        ("Rprop", {"lr": 1e-3}),
        ("Rprop" + AT_ONCE, {"lr": 1e-3}),
        ("LBFGS" + AT_ONCE, {"lr": 0.03, "max_iter": 1}),
        ("Muon", {"lr": 0.1}),
    ],
    "schedulefree": [
        ("AdamWScheduleFree", {"lr": 0.02}),
        ("SGDScheduleFree", {"lr": 1.0}),
        ("RAdamScheduleFree", {"lr": 0.03}),
    ],
    "pytorch_optimizer": [
        ("SOAP", {"lr": 0.02}),
        ("Lion", {"lr": 3e-3}),
        ("Adan", {"lr": 0.01}),
    ],
    "heavyball": [
        ("AdamW", {"lr": 0.01}),
        ("SOAP", {"lr": 0.02}),
    ],
    "prodigyopt": [("Prodigy", {"lr": 1.0})],
    "bitsandbytes.optim": [
        ("AdamW8bit", {"lr": 0.01}),
        ("Lion8bit", {"lr": 3e-3}),
    ],
    "torchao.optim": [
        ("AdamW8bit", {"lr": 0.01}),
        ("AdamW4bit", {"lr": 0.01}),
        ("AdamWFp8", {"lr": 0.01}),
    ],
    "torch_optimizer": [
        ("AdaBelief", {"lr": 0.01}),
        ("Lamb", {"lr": 0.03}),
        ("Yogi", {"lr": 0.01}),
    ],
    "timm.optim": [
        ("AdamP", {"lr": 0.01}),
        ("Adopt", {"lr": 0.01}),
        ("NAdamW", {"lr": 0.01}),
    ],
}


def maker(module: str, name: str, options: dict[str, Any]) -> Callable[..., Any]:
    """Makes one; imports its package."""
    kind = getattr(import_module(module), name.removesuffix(AT_ONCE))
    return lambda parameters: kind(parameters, **options)
