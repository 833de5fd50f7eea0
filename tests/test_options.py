"""Options are checked when they are made, and say what is allowed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from aadl_ext import Anderson, Averaging, Storage, SubspaceNewton
from aadl_ext.options import as_dict

INF, NAN = float("inf"), float("nan")
CHOICES: dict[tuple[type, str], str] = {
    (Anderson, "mixing"): "'paper', 'anderson'",
    (Anderson, "safeguard"): "'residual', 'descent', 'limits', 'loss', several, or None",
    (Anderson, "scope"): "'all', 'group', 'tensor'",
    (Anderson, "solver"): "'auto', 'gram', 'tsqr'",
    (SubspaceNewton, "safeguard"): "'residual', 'descent', 'limits', 'loss', several, or None",
    (SubspaceNewton, "scope"): "'all', 'group', 'tensor'",
    (Storage, "dtype"): "None, torch.float32, torch.float64, torch.bfloat16, torch.float16",
}
INTEGERS: dict[tuple[type, str], int] = {
    (Anderson, "wait_iterations"): 0,
    (Anderson, "history_depth"): 0,
    (Anderson, "store_each_nth"): 1,
    (Anderson, "frequency"): 1,
    (Averaging, "window"): 2,
    (SubspaceNewton, "history_depth"): 1,
    (SubspaceNewton, "block_length"): 1,
    (SubspaceNewton, "noise_samples"): 0,
}
REALS: dict[tuple[type, str], tuple[str, tuple[float, ...]]] = {
    (Anderson, "relaxation"): ("0 < relaxation <= 1", (0, 0.0, -0.1, 1.0001, 2)),
    (Anderson, "reg_acc"): ("0 <= reg_acc < inf", (-1e-9, -1, INF)),
    (SubspaceNewton, "rest_above"): ("0 < rest_above <= 1", (0, 0.0, -0.1, 1.0001)),
    (Averaging, "threshold"): ("threshold > 0", (0, 0.0, -0.1)),
    **{
        (SubspaceNewton, name): (f"{name} > 0", (0, 0.0, -0.1))
        for name in ("trust_radius", "max_gradient_growth")
    },
    **{
        (SubspaceNewton, name): (f"0 <= {name} < inf", (-1e-9, -1, INF))
        for name in ("noise_shrinkage",)
    },
}
TYPES: dict[tuple[type, str], tuple[str, tuple[Any, ...]]] = {
    (Anderson, "average"): ("of type Averaging", (0, 1, "yes", Averaging)),
    (Anderson, "storage"): ("of type Storage", (None, "cpu", torch.float32)),
    (SubspaceNewton, "storage"): ("of type Storage", (None, "cpu", torch.float32)),
    (SubspaceNewton, "adaptive_blocks"): ("of type bool", (0, 1, "yes")),
}
INVALID: list[tuple[type, str, Any, str]] = [
    *[
        (
            kind,
            name,
            value,
            f"{'choose from' if name == 'safeguard' else 'choose one of'} {allowed}",
        )
        for (kind, name), allowed in CHOICES.items()
        for value in ("newton", "", 3, False, ("residual", "paper"), torch.int32)
    ],
    *[
        (kind, name, None, allowed)
        for (kind, name), allowed in CHOICES.items()
        if name not in ("safeguard", "dtype")
    ],
    (Anderson, "mixing", "Paper", "'paper', 'anderson'"),  # only AADL's own names take any case
    *[
        (kind, name, value, f"an integer >= {least}")
        for (kind, name), least in INTEGERS.items()
        for value in (least - 1, -5, 2.0, 1.5, True, "3", None, NAN)
    ],
    *[
        (kind, name, value, f"allowed is {allowed}")
        for (kind, name), (allowed, values) in REALS.items()
        for value in (*values, NAN, -INF, "0.1", None, True)
    ],
    *[
        (kind, name, value, f"must be {allowed}")
        for (kind, name), (allowed, values) in TYPES.items()
        for value in values
    ],
    *[
        (Storage, name, value, "which cannot be used here")
        for name in ("device", "compute_device")
        for value in ("gpu", "cpu:one", 0.5, [])
    ],
]
VALID: list[tuple[type, str, Any]] = [
    *[(kind, name, least) for (kind, name), least in INTEGERS.items() if name != "noise_samples"],
    (Anderson, "history_depth", 100_000),
    (Anderson, "relaxation", 1),
    (Anderson, "relaxation", 1e-300),
    (Anderson, "relaxation", np.float64(0.5)),
    (Anderson, "reg_acc", 0),
    (Anderson, "average", Averaging(3, 0.5)),
    (Anderson, "average", None),
    (Averaging, "threshold", INF),
    (SubspaceNewton, "noise_samples", 0),
    (SubspaceNewton, "trust_radius", INF),
    (SubspaceNewton, "adaptive_blocks", False),
    (Storage, "device", torch.device("cpu", 0)),
    *[(Storage, "dtype", dtype) for dtype in (None, torch.float64, torch.bfloat16, torch.float16)],
    *[
        (kind, "scope", x)
        for kind in (Anderson, SubspaceNewton)
        for x in ("all", "group", "tensor")
    ],
    *[(Anderson, "solver", solver) for solver in ("auto", "gram", "tsqr")],
]


@pytest.mark.parametrize(("kind", "name", "value", "allowed"), INVALID)
def test_an_invalid_option_is_named_with_its_value_and_what_is_allowed(
    kind: Any, name: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name} is ") as error:
        kind(**{name: value})
    assert repr(value) in str(error.value)
    assert allowed in str(error.value)


@pytest.mark.parametrize(("kind", "name", "value"), VALID)
def test_options_at_the_edge_of_what_is_allowed_are_taken(kind: Any, name: str, value: Any) -> None:
    assert getattr(kind(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (Anderson, None, ()),
        (Anderson, (), ()),
        (Anderson, "loss", ("loss",)),
        (Anderson, ["loss", "residual", "loss"], ("residual", "loss")),
        (Anderson, {"limits": 1}, ("limits",)),
        (SubspaceNewton, None, ()),
        (SubspaceNewton, ("loss", "limits", "descent"), ("descent", "limits", "loss")),
    ],
)
def test_safeguards_are_kept_as_a_tuple_of_names_in_a_fixed_order(
    kind: Any, given: Any, expected: tuple[str, ...]
) -> None:
    assert kind(safeguard=given).safeguard == expected
    assert kind(safeguard=iter(given)).safeguard == expected if isinstance(given, list) else True


def test_a_truth_value_switches_averaging_with_its_defaults() -> None:
    assert Anderson(average=True).average == Averaging(window=5, threshold=0.1)
    assert Anderson(average=False).average is Anderson().average is None


def test_devices_are_parsed() -> None:
    storage = Storage(device="cpu", compute_device="cpu:0")
    assert (storage.device, storage.compute_device) == (torch.device("cpu"), torch.device("cpu:0"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="names a device that this machine lacks")
@pytest.mark.parametrize("name", ["device", "compute_device"])
def test_a_device_that_is_not_there_is_an_error_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is 'cuda', which cannot be used here"):
        Storage(**{name: "cuda"})


def test_the_memory_light_setting_yields_to_what_is_given() -> None:
    assert SubspaceNewton.memory_light() == SubspaceNewton(history_depth=3, noise_samples=2)
    assert SubspaceNewton.memory_light(noise_samples=4, trust_radius=2.0) == SubspaceNewton(
        history_depth=3, noise_samples=4, trust_radius=2.0
    )
    assert SubspaceNewton.memory_light(history_depth=4).history_depth == 4
    with pytest.raises(TypeError, match="history_deep"):
        SubspaceNewton.memory_light(history_deep=4)


def test_the_sketched_setting_yields_to_what_is_given() -> None:
    assert SubspaceNewton.sketched().sketch > 0
    assert not SubspaceNewton.sketched().uses_quasi_newton
    expected = SubspaceNewton(history_depth=7, noise_samples=1, sketch=99)
    assert SubspaceNewton.sketched(history_depth=7, noise_samples=1, sketch=99) == expected
    for scope in ("group", "tensor"):
        with pytest.raises(ValueError, match=f'sketch is 9 and scope "{scope}".*sketch=0'):
            SubspaceNewton(sketch=9, scope=scope)


def test_the_memory_light_setting_can_do_without_noise_samples() -> None:
    expected = SubspaceNewton(history_depth=3, noise_samples=0)
    assert SubspaceNewton.memory_light(noise_samples=0) == expected


@pytest.mark.parametrize("kind", [Anderson, SubspaceNewton, Averaging, Storage])
def test_records_are_frozen_and_equal_by_value(kind: Any) -> None:
    options = kind()
    with pytest.raises(FrozenInstanceError):
        setattr(options, fields(kind)[0].name, 1)
    assert replace(options) == options == kind()
    assert hash(options) == hash(kind())
    with pytest.raises(TypeError, match="history_deep"):
        kind(history_deep=3)


@pytest.mark.parametrize("method", [Anderson(average=True), SubspaceNewton()])
def test_as_dict_holds_plain_values_and_the_name_of_the_method(method: Any) -> None:
    plain = as_dict(method)
    assert plain == {"method": type(method).__name__, **asdict(method)}
    nowhere = {"dtype": None, "device": None, "compute_device": None}
    assert plain["storage"] == {**nowhere, "offload": False}


@pytest.mark.parametrize(
    ("solver", "dtype", "expected"),
    [
        ("auto", torch.float64, "tsqr"),
        ("auto", torch.float32, "gram"),
        ("auto", torch.bfloat16, "gram"),
        ("gram", torch.float64, "gram"),
        ("tsqr", torch.float32, "tsqr"),
    ],
)
def test_auto_takes_normal_equations_where_products_are_exact(
    solver: str, dtype: torch.dtype, expected: str
) -> None:
    assert Anderson(solver=solver).solver_for(dtype) == expected
