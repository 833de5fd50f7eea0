"""The conversions of scalar.h against NumPy (float16) and torch (bfloat16), bit for bit."""

import lab
import numpy as np
import pytest
import torch

aadl_lab = lab.load()
ALL = np.arange(65536, dtype=np.uint32).astype(np.uint16)


def floats_near(values: np.ndarray) -> np.ndarray:
    """The float32 values, the ties between neighbours, and what lies next to each."""
    values = np.unique(values[np.isfinite(values)].astype(np.float32))
    ties = (values[1:].astype(np.float64) + values[:-1]) / 2
    centres = np.concatenate([values, ties.astype(np.float32)])
    down = np.nextafter(centres, np.float32(-np.inf))
    up = np.nextafter(centres, np.float32(np.inf))
    random = np.random.default_rng(0).integers(0, 2**32, 1 << 22, dtype=np.uint32)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 65519.996, 65520], np.float32)
    return np.concatenate([centres, down, up, random.view(np.float32), special])


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)


def as_half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return values.astype(np.float16).view(np.uint16)


def widened(name: str) -> np.ndarray:
    if name == "half":
        return aadl_lab.widen_half(ALL.view(np.float16))
    return aadl_lab.widen_bfloat16(ALL)


def test_all_halves_widen() -> None:
    np.testing.assert_array_equal(widened("half"), ALL.view(np.float16).astype(np.float32))


def test_all_bfloat16_widen() -> None:
    expected = torch.from_numpy(ALL.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(widened("bfloat16"), expected)


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_signs_of_zero_stay(name: str) -> None:
    assert list(np.signbit(widened(name)[[0, 0x8000]])) == [False, True]


@pytest.mark.parametrize(("name", "expected"), [("half", as_half), ("bfloat16", as_bfloat16)])
def test_narrowing_rounds_to_nearest_even(name: str, expected) -> None:
    values = floats_near(widened(name))
    got = getattr(aadl_lab, f"narrow_{name}")(values).view(np.uint16)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(got[number], expected(values[number]))


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_nan_stays_nan(name: str) -> None:
    # Also those whose bits are all below what is cut off, or would carry into the sign.
    bits = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32)
    stored = getattr(aadl_lab, f"narrow_{name}")(bits.view(np.float32))
    assert np.isnan(getattr(aadl_lab, f"widen_{name}")(stored)).all()


def test_conversions_hold_where_subnormals_are_flushed() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        half = widened("half")
        back = aadl_lab.narrow_half(half)
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(half, ALL.view(np.float16).astype(np.float32))
    number = ~np.isnan(half)
    np.testing.assert_array_equal(back.view(np.uint16)[number], ALL[number])
