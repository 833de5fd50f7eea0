"""Options are checked at the call, and a call written for AADL means the same here."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from aadl_ext.subspace import SubspaceAccelerator
from torch import nn
from torch.optim import SGD
from training import JUMPY, Training, sgd

from aadl_ext import accelerate, distributed_accelerate, get_accelerator
from aadl_ext.options import Options

AADL_ORDER = {
    "acceleration_type": "Anderson",
    "relaxation": 0.25,
    "wait_iterations": 3,
    "history_depth": 7,
    "store_each_nth": 2,
    "frequency": 4,
    "reg_acc": 1e-3,
    "average": True,
    "history_device": "cpu",
    "compute_device": torch.device("cpu"),
    "distributed": True,
    "sync_frequency": 5,
}
CHOICES = {
    "acceleration_type": "'anderson', 'anderson_normal_equation', 'identity', 'subspace_newton'",
    "mixing": "'paper', 'anderson'",
    "safeguard": "'residual', 'loss', 'descent', 'limits', several, or None",
    "residual": "'step', 'gradient', 'auto'",
    "momentum": "'keep', 'reset', 'scale'",
    "scope": "'all', 'group', 'tensor'",
    "solver": "'auto', 'gram', 'tsqr'",
    "history_dtype": "None, torch.float32, torch.float64, torch.bfloat16, torch.float16",
}
INTEGERS = {
    "wait_iterations": 0,
    "history_depth": 1,
    "store_each_nth": 1,
    "frequency": 1,
    "average_window": 2,
    "noise_rows": 0,
}
REALS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "relaxation": ("0 < relaxation <= 1", (0, 0.0, -0.1, 1.0001, 2)),
    "reg_acc": ("0 <= reg_acc < inf", (-1e-9, -1, float("inf"))),
    **{
        name: (f"{name} > 0", (0, 0.0, -0.1))
        for name in ("average_threshold", "coefficient_limit", "gradient_guard", "trust")
    },
    **{
        name: (f"0 <= {name} < inf", (-1e-9, -1, float("inf")))
        for name in ("curvature_floor", "noise_shrinkage")
    },
}
INVALID: list[tuple[str, Any, str]] = [
    *[
        (name, value, allowed)
        for name, allowed in CHOICES.items()
        for value in ("newton", "", 3, False, torch.int32)
    ],
    *[
        (name, None, CHOICES[name])
        for name in CHOICES
        if name not in ("safeguard", "history_dtype")
    ],
    ("mixing", "Paper", CHOICES["mixing"]),  # only AADL's own option accepts any case
    *[
        (name, value, f"an integer >= {least}")
        for name, least in INTEGERS.items()
        for value in (least - 1, -5, 2.0, 1.5, True, "3", None, float("nan"))
    ],
    *[
        (name, value, allowed)
        for name, (allowed, values) in REALS.items()
        for value in (*values, float("nan"), -float("inf"), "0.1", None, True)
    ],
    *[
        (name, value, "True or False")
        for name in ("average", "memory_light")
        for value in (0, 1, None, "yes")
    ],
    *[
        (name, value, "cannot be used here")
        for name in ("history_device", "compute_device")
        for value in ("gpu", "cpu:one", 0.5, [])
    ],
]
VALID: list[tuple[str, Any]] = [
    *INTEGERS.items(),
    ("history_depth", 100_000),
    ("relaxation", 1),
    ("relaxation", 1e-300),
    ("relaxation", np.float64(0.5)),
    ("reg_acc", 0),
    ("average_threshold", float("inf")),
    ("history_device", torch.device("cpu", 0)),
    *[("history_dtype", dtype) for dtype in (None, torch.float64, torch.bfloat16, torch.float16)],
    *[("scope", scope) for scope in ("all", "group", "tensor")],
    *[("solver", solver) for solver in ("auto", "gram", "tsqr")],
    *[("safeguard", safeguard) for safeguard in ("residual", "loss", "limits", None)],
    ("safeguard", ("residual", "descent", "loss", "limits")),
    ("safeguard", ()),
    *[("residual", residual) for residual in ("step", "gradient", "auto")],
    *[("momentum", policy) for policy in ("keep", "reset", "scale")],
    ("noise_rows", 0),
    ("trust", float("inf")),
]


def optimizer() -> SGD:
    return SGD([nn.Parameter(torch.ones(3))], lr=0.1)


@pytest.mark.parametrize(("name", "value", "allowed"), INVALID)
def test_an_invalid_option_is_named_with_its_value_and_what_is_allowed(
    name: str, value: Any, allowed: str
) -> None:
    base = optimizer()
    with pytest.raises(ValueError, match=f"^{name} is ") as error:
        accelerate(base, **{name: value})
    assert repr(value) in str(error.value)
    assert allowed in str(error.value)
    accelerate(base)  # nothing of the refused call is left


@pytest.mark.parametrize(("name", "value"), VALID)
def test_options_at_the_edge_of_what_is_allowed_are_taken(name: str, value: Any) -> None:
    base = optimizer()
    # A deep history is not allocated just to see that its depth is a valid number.
    newton = name in ("safeguard", "noise_rows") or value == "gradient"
    kind = "subspace_newton" if newton else "identity" if name == "history_depth" else "anderson"
    options = {} if name == "acceleration_type" else {"acceleration_type": kind}
    accelerate(base, **options, **{name: value})
    assert getattr(get_accelerator(base).options, name) == value


def test_the_normal_equation_contradicts_an_orthogonal_solver() -> None:
    with pytest.raises(ValueError, match=r"means solver='gram', but solver is 'tsqr'"):
        accelerate(optimizer(), "anderson_normal_equation", solver="tsqr")


@pytest.mark.parametrize("name", ["noise_rows", "noise_shrinkage", "curvature_floor"])
@pytest.mark.parametrize("asking", [{"history_depth": 5}, {"history_device": "cpu"}])
def test_an_option_of_newton_is_not_ignored_where_another_asks_for_anderson(
    name: str, asking: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"^{name} is for 'subspace_newton'.*name the method"):
        accelerate(optimizer(), **{name: 1}, **asking)
    accelerate(optimizer(), acceleration_type="subspace_newton", **{name: 1}, **asking)


def test_all_options_of_one_optimizer_can_be_given_to_another() -> None:
    for method in ("anderson", "subspace_newton"):
        options = get_accelerator(accelerate(optimizer(), method)).options
        assert get_accelerator(accelerate(optimizer(), **options.as_dict())).options == options


@pytest.mark.parametrize("asking", [{"history_depth": 5}, {"acceleration_type": "anderson"}])
def test_the_memory_light_setting_is_refused_by_other_methods(asking: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^memory_light is for .*set by history_depth"):
        accelerate(optimizer(), memory_light=True, **asking)


def test_the_memory_light_setting_yields_to_what_is_given() -> None:
    def sizes(**given: Any) -> tuple[int, int]:
        options = get_accelerator(accelerate(optimizer(), memory_light=True, **given)).options
        return options.history_depth, options.noise_rows

    assert sizes() == (5, 3)
    assert sizes(noise_rows=2) == (5, 2)
    assert sizes(acceleration_type="Subspace_Newton", history_depth=4) == (4, 3)


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="history_deep"):
        accelerate(optimizer(), history_deep=3)  # type: ignore[call-arg]


def test_options_beyond_those_of_aadl_are_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        accelerate(optimizer(), *AADL_ORDER.values(), "paper")  # type: ignore[call-overload]


@pytest.mark.parametrize("function", [accelerate, distributed_accelerate])
def test_all_positional_arguments_mean_what_they_do_in_aadl(function: Any) -> None:
    base = optimizer()
    assert function(base, *AADL_ORDER.values()) is base
    expected = {
        **AADL_ORDER,
        "acceleration_type": "anderson",
        "history_device": torch.device("cpu"),
    }
    del expected["distributed"], expected["sync_frequency"]
    options = get_accelerator(base).options.as_dict()
    assert {name: options[name] for name in expected} == expected


def test_the_positional_names_and_their_order_are_those_of_aadl() -> None:
    parameters = inspect.signature(accelerate).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["optimizer", *AADL_ORDER]


def test_every_option_is_an_argument_of_the_call() -> None:
    names = {*Options().as_dict(), "memory_light", "optimizer", "distributed", "sync_frequency"}
    assert set(inspect.signature(accelerate).parameters) == names


def test_without_arguments_it_is_the_subspace_newton_method() -> None:
    options = get_accelerator(accelerate(optimizer())).options
    assert options == Options.of("subspace_newton")
    assert options.residual == "gradient"


@pytest.mark.parametrize(
    "argument",
    [
        {"acceleration_type": "anderson"},
        {"relaxation": 0.1},
        {"wait_iterations": 1},
        {"history_depth": 15},
        {"store_each_nth": 1},
        {"frequency": 1},
        {"reg_acc": 0.0},
        {"average": False},
        {"residual": "step"},
        {"mixing": "paper"},
        {"solver": "auto"},
    ],
)
def test_any_argument_of_aadl_or_the_paper_asks_for_their_method(argument: dict[str, Any]) -> None:
    assert get_accelerator(accelerate(optimizer(), **argument)).options == Options()


@pytest.mark.parametrize(
    ("make", "gradients"),
    [
        (lambda p: SGD(p, lr=0.1), False),
        (lambda p: SGD(p, lr=0.1, momentum=0.9), True),
        (torch.optim.Adam, True),
    ],
)
def test_auto_takes_steps_of_plain_sgd_and_else_gradients(make: Any, gradients: bool) -> None:
    base = make([nn.Parameter(torch.ones(3))])
    accelerate(base, "anderson", residual="auto")
    assert isinstance(get_accelerator(base), SubspaceAccelerator) == gradients


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acceleration_type": "subspace_newton", "residual": "step"}, "needs gradients"),
        ({"acceleration_type": "subspace_newton", "average": True}, "moving average"),
        ({"acceleration_type": "identity", "residual": "gradient"}, "moving average"),
        ({"acceleration_type": "anderson", "safeguard": ["descent"]}, "needs gradients"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accelerate(optimizer(), **options)


@pytest.mark.parametrize("name", ["Anderson", "ANDERSON", "Anderson_Normal_Equation", "Identity"])
def test_the_acceleration_type_is_taken_in_any_case(name: str) -> None:
    mixed, lower = (Training(sgd, {**JUMPY, "acceleration_type": x}) for x in (name, name.lower()))
    assert mixed.accelerator.options == lower.accelerator.options
    assert torch.equal(mixed.run(6), lower.run(6))


def test_the_normal_equation_is_the_gram_solver() -> None:
    by_name = {**JUMPY, "acceleration_type": "anderson_normal_equation"}
    by_solver = {**JUMPY, "solver": "gram"}
    named, solver = (Training(sgd, x, torch.double) for x in (by_name, by_solver))
    assert torch.equal(named.run(12), solver.run(12))
    assert named.accelerator.stats.jumps > 3


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), [nn.Parameter(torch.ones(1))], None, SGD])
def test_only_optimizers_can_be_accelerated(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got \w+"):
        accelerate(thing)


def test_a_second_accelerate_needs_remove_acceleration_first() -> None:
    base = accelerate(optimizer(), relaxation=0.3)
    with pytest.raises(ValueError, match=r"accelerated already; call remove_acceleration"):
        accelerate(base, relaxation=0.4)
    assert get_accelerator(base).options.relaxation == 0.3


@pytest.mark.skipif(torch.cuda.is_available(), reason="names a device that this machine lacks")
@pytest.mark.parametrize("name", ["history_device", "compute_device"])
def test_a_device_that_is_not_there_is_an_error_at_the_call(name: str) -> None:
    base = optimizer()
    with pytest.raises(ValueError, match=f"{name} is .*cuda"):
        accelerate(base, **{name: "cuda"})
    accelerate(base)
