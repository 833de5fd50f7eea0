"""One call accelerates, and a call written for AADL means the same here."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from training import AVERAGED, JUMPY, METHODS, Method, Training, methods, sgd

import aadl_ext
from aadl_ext import (
    Anderson,
    Storage,
    SubspaceNewton,
    accelerate,
    distributed_accelerate,
    get_accelerator,
    remove_acceleration,
    reset_acceleration_history,
)

AADL_ORDER: dict[str, Any] = {
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
ANDERSON: dict[str, Any] = {
    name: value
    for name, value in AADL_ORDER.items()
    if name in ("relaxation", "wait_iterations", "history_depth", "store_each_nth", "frequency")
    or name in ("reg_acc", "average")
}
OF_AADL = Anderson(**ANDERSON, storage=Storage(device="cpu", compute_device="cpu"))
functions = pytest.mark.parametrize("function", [accelerate, distributed_accelerate])


def optimizer() -> SGD:
    return SGD([nn.Parameter(torch.ones(3))], lr=0.1)


def options_of(*args: Any, **kwargs: Any) -> Method:
    return get_accelerator(accelerate(optimizer(), *args, **kwargs)).options


# ---- the call ------------------------------------------------------------------------------


def test_without_a_method_it_is_subspace_newton() -> None:
    assert options_of() == SubspaceNewton()


@functions
@methods
def test_the_method_is_taken_as_it_is_and_the_optimizer_is_given_back(
    function: Any, options: Method
) -> None:
    base = optimizer()
    assert function(base, options) is base
    assert get_accelerator(base).options is options
    other = optimizer()
    function(other, method=options, distributed=True)
    assert get_accelerator(other).options is options


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), [nn.Parameter(torch.ones(1))], None, SGD])
def test_only_optimizers_can_be_accelerated(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got \w+"):
        accelerate(thing)


@pytest.mark.parametrize("thing", [3, Anderson, {"history_depth": 3}, Storage()])
def test_only_methods_can_be_asked_for(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"expected Anderson\(\.\.\.\) or SubspaceNewton"):
        accelerate(optimizer(), thing)


@methods
@pytest.mark.parametrize("given", [{"history_depth": 3}, {"average": False}, {"frequency": 2}])
def test_arguments_of_aadl_are_refused_beside_a_method(
    options: Method, given: dict[str, Any]
) -> None:
    base, (name,) = optimizer(), given
    with pytest.raises(ValueError, match=f"^{name} is given beside {type(options).__name__}"):
        accelerate(base, options, **given)
    accelerate(base)  # nothing of the refused call is left


@pytest.mark.parametrize("name", ["history_device", "compute_device"])
def test_devices_of_aadl_are_refused_beside_a_method(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is given beside Anderson\(\.\.\.\)"):
        accelerate(optimizer(), Anderson(), **{name: "cpu"})


def test_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="history_deep"):
        accelerate(optimizer(), history_deep=3)  # type: ignore[call-arg]


def test_a_second_accelerate_needs_remove_acceleration_first() -> None:
    base = accelerate(optimizer(), Anderson(relaxation=0.3))
    with pytest.raises(ValueError, match=r"accelerated already; call remove_acceleration"):
        accelerate(base, Anderson(relaxation=0.4))
    assert get_accelerator(base).options == Anderson(relaxation=0.3)
    remove_acceleration(base)
    accelerate(base, Anderson(relaxation=0.4))
    assert get_accelerator(base).options == Anderson(relaxation=0.4)


@pytest.mark.parametrize("function", [get_accelerator, reset_acceleration_history])
def test_an_optimizer_that_is_not_accelerated_is_told_what_to_do(function: Any) -> None:
    with pytest.raises(ValueError, match=r"this SGD is not accelerated: call aadl_ext\.accelerate"):
        function(Training(sgd, None).optimizer)


def test_removing_from_a_plain_optimizer_does_nothing() -> None:
    remove_acceleration(optimizer())


def test_every_public_name_is_there() -> None:
    assert all(getattr(aadl_ext, name) is not None for name in aadl_ext.__all__)


# ---- calls written for AADL ----------------------------------------------------------------


@functions
def test_all_positional_arguments_mean_what_they_do_in_aadl(function: Any) -> None:
    base = optimizer()
    with pytest.warns(UserWarning, match="sync_frequency=5 has no effect"):
        assert function(base, *AADL_ORDER.values()) is base
    assert get_accelerator(base).options == OF_AADL


def test_all_keywords_mean_what_they_do_in_aadl() -> None:
    with pytest.warns(UserWarning, match="sync_frequency=5 has no effect"):
        assert options_of(**AADL_ORDER) == OF_AADL


def test_the_positional_names_and_their_order_are_those_of_aadl() -> None:
    parameters = inspect.signature(accelerate).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["optimizer", "method", *list(AADL_ORDER)[1:]]


def test_arguments_beyond_those_of_aadl_are_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        accelerate(optimizer(), *AADL_ORDER.values(), "paper")  # type: ignore[misc]


@pytest.mark.parametrize("name", ["Anderson", "ANDERSON", "Anderson_Normal_Equation", "Identity"])
@pytest.mark.parametrize("argument", ["method", "acceleration_type"])
def test_names_of_types_are_taken_in_any_case(name: str, argument: str) -> None:
    assert options_of(**{argument: name}) == options_of(name.lower())


def test_names_of_types_select_the_method() -> None:
    assert options_of("anderson") == Anderson()
    assert options_of("anderson_normal_equation") == Anderson(solver="gram")
    assert options_of("identity") == Anderson(history_depth=0)
    averaged = options_of("identity", history_depth=5, average=True)
    assert averaged == Anderson(history_depth=0, average=True)


@pytest.mark.parametrize("name", ["newton", "", "subspace_newton"])
@pytest.mark.parametrize("argument", ["method", "acceleration_type"])
def test_an_unknown_type_is_named_beside_those_that_are_known(name: str, argument: str) -> None:
    known = "'anderson', 'anderson_normal_equation', 'identity'"
    with pytest.raises(ValueError, match=rf"^acceleration_type is '{name}'.*{known}.*as objects"):
        accelerate(optimizer(), **{argument: name})


@pytest.mark.parametrize("name", ANDERSON)
def test_an_argument_of_aadl_alone_selects_its_method_and_warns(name: str) -> None:
    with pytest.warns(UserWarning, match=f"^{name} is an argument of AADL and selects Anderson"):
        options = options_of(**{name: ANDERSON[name]})
    assert options == Anderson(**{name: ANDERSON[name]})


@pytest.mark.parametrize("name", ["history_device", "compute_device"])
def test_a_device_alone_selects_the_method_of_aadl_and_warns(name: str) -> None:
    with pytest.warns(UserWarning, match=f"^{name} is an argument of AADL"):
        options = options_of(**{name: "cpu"})
    assert options == Anderson(storage=Storage(**{name.removeprefix("history_"): "cpu"}))


def test_the_warning_names_the_line_of_the_call() -> None:
    with pytest.warns(UserWarning, match="selects Anderson") as caught:
        accelerate(optimizer(), history_depth=3)
    assert caught[0].filename == __file__


def test_an_invalid_argument_of_aadl_is_named() -> None:
    base = optimizer()
    with pytest.raises(ValueError, match=r"^relaxation is 2; allowed is 0 < relaxation <= 1"):
        accelerate(base, "anderson", 2)
    accelerate(base)  # nothing of the refused call is left


@pytest.mark.skipif(torch.cuda.is_available(), reason="names a device that this machine lacks")
@pytest.mark.parametrize("name", ["history_device", "compute_device"])
def test_a_device_that_is_not_there_is_an_error_at_the_call(name: str) -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda'.*cannot be used here"):
        accelerate(optimizer(), "anderson", **{name: "cuda"})


@pytest.mark.parametrize("averages", [False, True])
def test_a_call_of_aadl_trains_as_the_method_that_it_means(averages: bool) -> None:
    method = replace(
        AVERAGED if averages else JUMPY, mixing="paper", safeguard=Anderson().safeguard
    )
    training, plain = Training(sgd, method), Training(sgd, None)
    accelerate(plain.optimizer, "anderson", 0.5, 1, 3, 1, 2, 0.0, averages)
    assert torch.equal(training.run(12), plain.run(12))
    assert training.accelerator.stats.extrapolations > 3


def test_the_normal_equation_is_the_gram_solver() -> None:
    named = Training(sgd, None, torch.double)
    given = {name: asdict(JUMPY)[name] for name in ("relaxation", "history_depth", "frequency")}
    accelerate(named.optimizer, "anderson_normal_equation", **given)
    method = replace(JUMPY, solver="gram", mixing="paper", safeguard=Anderson().safeguard)
    paper = Training(sgd, method, torch.double)
    assert torch.equal(named.run(12), paper.run(12))
    assert named.accelerator.stats.extrapolations > 3


def test_every_method_can_be_given_to_another_optimizer() -> None:
    for method in (*METHODS.values(), OF_AADL, SubspaceNewton(), SubspaceNewton.memory_light()):
        assert options_of(options_of(method)) == method


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: accelerate(nn.Linear(2, 2)), "make an optimizer of its parameters"),
        (lambda: accelerate(sgd_of_one(), SubspaceNewton), r"; write SubspaceNewton\(\)"),
    ],
)
def test_what_is_no_optimizer_or_no_method_is_refused_with_what_to_write(
    call: Callable[[], object], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        call()


def test_states_of_other_options_are_refused_by_the_option_that_differs() -> None:
    saved = get_accelerator(accelerate(sgd_of_one())).state_dict()
    other = get_accelerator(accelerate(sgd_of_one(), SubspaceNewton(history_depth=7)))
    said = re.escape("{'history_depth': 4}, but here it is {'history_depth': 7};")
    with pytest.raises(ValueError, match=said):
        other.load_state_dict(saved)


def sgd_of_one() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)


@pytest.mark.parametrize("name", ["TrainerCallback", "LightningCallback"])
def test_a_callback_of_a_missing_framework_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("transformers", "lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, package, None)
    for module in ("trainer", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, f"aadl_ext.integrations.{module}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install (transformers|lightning)"):
        getattr(aadl_ext.integrations, name)
