from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    WORKING_DTYPES,
    assert_within,
    edges,
    largest_temporary,
    mentions,
    normal,
    same_bits,
    seeds,
    working_dtypes,
)
from torch import Tensor

from aadl_ext import ops
from aadl_ext.ops.chunks import CHUNK

SUMS = ("point_sum", "gradient_sum", "noise_sum")
VECTORS = ("point", "anchor", "gradient", "direction")
Tensors = dict[str, Tensor]


def random_sample(size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    names = (*SUMS, *VECTORS)
    return dict(zip(names, normal(len(names), size, seed=seed, dtype=dtype).clone(), strict=True))


def add(tensors: Tensors, sign: float = 1.0) -> Tensor:
    sums = [tensors[name] for name in SUMS if name in tensors]
    points, gradients, anchor = [tensors["point"]], [tensors["gradient"]], tensors["anchor"]
    direction = tensors.get("direction")
    return ops.add_sample_(sums, points, anchor, gradients, sign=sign, direction=direction)


def copies(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def changed(tensors: Tensors, old: Tensors) -> set[str]:
    return {name for name, tensor in tensors.items() if not same_bits(tensor, old[name])}


def assert_figures(figures: Tensor, tensors: Tensors) -> None:
    """Float64 accumulation: float32 sums are off by 1e-8 and more."""
    assert figures.dtype == torch.float64
    assert figures.shape == (2,)
    gradient = tensors["gradient"].double()
    direction = tensors.get("direction", torch.zeros_like(gradient)).double()
    exact = torch.stack([gradient @ gradient, gradient @ direction])
    size = torch.stack([exact[0], gradient.abs() @ direction.abs()])
    assert_within(figures, exact, 1e-13 * size)


signs = st.sampled_from([1.0, -1.0])


@given(st.integers(0, 40), working_dtypes, signs, st.integers(1, 3), st.booleans(), seeds)
def test_sample_is_added_to_the_sums_and_measured(
    size: int, dtype: torch.dtype, sign: float, sums: int, direction: bool, seed: int
) -> None:
    tensors = random_sample(size, dtype, seed)
    for name in SUMS[sums:]:
        del tensors[name]
    if not direction:
        del tensors["direction"]
    check(tensors, sign)


def check(tensors: Tensors, sign: float = 1.0) -> None:
    old, dtype = copies(tensors), tensors["point"].dtype
    assert_figures(add(tensors, sign), old)
    assert changed(tensors, old) <= {*SUMS}
    wide = {name: tensor.double() for name, tensor in old.items()}
    added = {
        "point_sum": wide["point"] - wide["anchor"],
        "gradient_sum": wide["gradient"],
        "noise_sum": sign * wide["gradient"],
    }
    eps = torch.finfo(dtype).eps  # two roundings of at most eps / 2
    for name in tensors.keys() & added.keys():
        scale = wide[name].abs() + added[name].abs()
        assert_within(tensors[name], wide[name] + added[name], eps * scale)


@pytest.mark.parametrize("dtype", WORKING_DTYPES, ids=str)
def test_sizes_around_the_limits_of_kernels(dtype: torch.dtype, backend: str) -> None:
    for size in edges(backend):
        tensors = random_sample(size, dtype)
        of_points = {name: x.clone() for name, x in tensors.items() if name not in SUMS[1:]}
        check(tensors, -1)
        check(of_points, -1)


@pytest.mark.parametrize("dtype", WORKING_DTYPES, ids=str)
def test_long_samples_are_added_and_measured_in_full(dtype: torch.dtype) -> None:
    tensors = random_sample(5 * CHUNK + 3, dtype)
    old = copies(tensors)
    assert_figures(add(tensors, -1), old)
    assert same_bits(tensors["point_sum"], old["point_sum"] + (old["point"] - old["anchor"]))
    assert same_bits(tensors["gradient_sum"], old["gradient_sum"] + old["gradient"])
    assert same_bits(tensors["noise_sum"], old["noise_sum"] - old["gradient"])


def test_points_near_the_anchor_keep_their_digits() -> None:
    tensors = random_sample(100)
    steps = normal(100, seed=1, dtype=torch.float32) * 2.0**-10
    tensors["anchor"].fill_(1000)
    tensors["point_sum"].zero_()
    tensors["point"] = tensors["anchor"] + steps
    kept = tensors["point"] - 1000  # exact: neighbours
    for _ in range(4):
        add(tensors)
    assert same_bits(tensors["point_sum"], 4 * kept)


def test_alternating_signs_leave_nothing_of_equal_gradients() -> None:
    tensors = random_sample(100)
    tensors["noise_sum"].zero_()
    for sign in (1, -1, 1, -1):
        add(tensors, sign)
    assert not tensors["noise_sum"].any()


@pytest.mark.parametrize("name", ["direction", "anchor", "point"])
def test_vectors_may_be_the_gradient_itself(name: str) -> None:
    tensors = random_sample(300)
    tensors[name] = tensors["gradient"]
    twin = copies(tensors)
    assert same_bits(add(tensors), add(twin))
    assert not changed(tensors, twin)


LISTS = {
    "aligned and not": [(16, 4), (3,), (5, 7), (), (0, 3), (64,)],
    "many": [(k % 5 + 1,) for k in range(601)],  # more than a launch holds (cuda/pieces.h)
    "long": [(9000,), (12_001,), (70_000,)],
}


def in_dtypes(tensors: list[Tensor], dtypes: list[torch.dtype]) -> list[Tensor]:
    return [x.to(dtypes[k % len(dtypes)], copy=True) for k, x in enumerate(tensors)]


@pytest.mark.parametrize("shapes", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("vectors", WORKING_DTYPES, ids=str)
@pytest.mark.parametrize("dtypes", [[torch.float32], ops.STORAGE_DTYPES], ids=["float32", "all"])
def test_tensors_one_behind_the_other_are_a_sample_as_the_vector_is(
    shapes: list[tuple[int, ...]], vectors: torch.dtype, dtypes: list[torch.dtype]
) -> None:
    sizes = [math.prod(shape) for shape in shapes]
    flat = random_sample(sum(sizes) + 5, vectors)
    lists = {}
    for name in ("point", "gradient"):
        parts = [x.view(y) for x, y in zip(flat[name][:-5].split(sizes), shapes, strict=True)]
        lists[name] = in_dtypes(parts, list(dtypes))
        ops.gather(lists[name], flat[name])  # as rounded
    flat["anchor"][-5:] = 0
    sums = [flat[name].clone() for name in SUMS]
    direction, anchor = flat["direction"], flat["anchor"]
    figures = ops.add_sample_(
        sums, lists["point"], anchor, lists["gradient"], sign=-1, direction=direction
    )
    assert_figures(figures, flat)
    add(flat, -1)
    assert all(same_bits(x, flat[name]) for x, name in zip(sums, SUMS, strict=True))


@pytest.mark.parametrize("vectors", WORKING_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weight_decay_is_part_of_the_gradient(vectors: torch.dtype, dtype: torch.dtype) -> None:
    sizes, decays = [5000, 7, 300], [0.1, 0.0, -2.5]
    flat = random_sample(sum(sizes), vectors)
    points, gradients = (
        in_dtypes(list(flat[name].split(sizes)), [dtype]) for name in ("point", "gradient")
    )
    rows = zip(points, gradients, decays, strict=True)
    whole = torch.cat([g.double() + decay * p.double() for p, g, decay in rows])
    sums = [flat[name].clone() for name in SUMS]
    direction, anchor = flat["direction"], flat["anchor"]
    figures = ops.add_sample_(
        sums, points, anchor, gradients, sign=-1, direction=direction, decays=decays
    )
    exact = torch.stack([whole @ whole, whole @ direction.double()])
    eps = torch.finfo(vectors).eps
    torch.testing.assert_close(figures, exact, rtol=10 * eps, atol=1000 * eps)
    for added, name, sign in zip(sums[1:], SUMS[1:], (1, -1), strict=True):
        expected = flat[name].double() + sign * whole
        torch.testing.assert_close(added.double(), expected, rtol=4 * eps, atol=8 * eps)
    undecayed = [flat[name].clone() for name in SUMS]
    ops.add_sample_(undecayed, points, anchor, gradients, sign=-1)
    assert same_bits(sums[0], undecayed[0])


def test_decays_of_some_points_only_are_refused() -> None:
    sums, vector = list(torch.zeros(2, 5)), torch.zeros(5)
    with pytest.raises(ValueError, match=mentions("2 decays for 1 points")):
        ops.add_sample_(sums, [vector], vector, [vector], sign=1, decays=[0.1, 0.2])


def test_a_point_and_its_gradient_may_differ_in_layout_and_dtype() -> None:
    flat = random_sample(60)
    point = flat["point"].view(4, 3, 5)
    lists = {
        "strides": (point.permute(2, 0, 1).contiguous().permute(1, 2, 0), point),
        "dtypes": (point.bfloat16(), flat["gradient"].view(4, 3, 5).double()),
        "an expanded zero": (point, torch.zeros(()).expand(4, 3, 5)),
    }
    for points, gradients in lists.values():
        twin = copies(flat)
        ops.gather([points], twin["point"])
        ops.gather([gradients], twin["gradient"])
        sums = [flat[name].clone() for name in SUMS]
        ops.add_sample_(sums, [points], flat["anchor"], [gradients], sign=1.0)
        add(twin)
        assert all(same_bits(x, twin[name]) for x, name in zip(sums, SUMS, strict=True))


@pytest.mark.parametrize("dtype", WORKING_DTYPES, ids=str)
@pytest.mark.parametrize("place", [0, CHUNK, -1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradient_that_is_not_finite_is_seen(bad: float, place: int, dtype: torch.dtype) -> None:
    tensors = random_sample(CHUNK + 100, dtype)
    tensors["gradient"][place] = bad
    figures = add(tensors)
    assert figures[0].isnan() if math.isnan(bad) else figures[0] == math.inf
    assert not figures[1].isfinite()


def test_slope_without_a_direction_is_zero_beside_any_gradient() -> None:
    tensors = random_sample(100)
    del tensors["direction"]
    tensors["gradient"][3] = math.nan
    assert add(tensors)[1] == 0


@pytest.mark.beyond_float32
@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_squares_that_float32_cannot_hold_are_summed(value: float) -> None:
    tensors = random_sample(1000)
    tensors["gradient"].fill_(value)
    old = copies(tensors)
    assert_figures(add(tensors), old)


@pytest.mark.not_on_cuda("allocates for itself")
def test_no_temporary_has_the_size_of_the_vectors() -> None:
    tensors = random_sample(8 * CHUNK)
    assert largest_temporary(lambda: add(tensors)) <= CHUNK


MISFITS: list[tuple[dict[str, Any], list[str]]] = [
    *(({name: torch.zeros(4)}, [name, "(4,)", "(5,)"]) for name in (*SUMS, "direction")),
    *(({n: torch.zeros(5).double()}, [n, "float64", "float32"]) for n in (*SUMS, "direction")),
    ({"anchor": torch.zeros(5).half()}, ["anchor", "float16", "float32, float64"]),
    ({"gradient": torch.zeros(4)}, ["gradients", "(4,)", "points", "(5,)"]),
    ({"point": torch.zeros(5, 1)}, ["(5, 1)", "(5,)"]),
    ({"point": torch.zeros(6), "gradient": torch.zeros(6)}, ["anchor", "(5,)", "6 entries"]),
    ({"point": torch.zeros(5).int()}, ["int32", "real floating"]),
    ({"gradient": torch.zeros(5).cfloat()}, ["complex64", "real floating"]),
    ({"direction": torch.zeros(1, 5)}, ["direction", "(1, 5)", "(5,)"]),
]


@pytest.mark.parametrize(("wrong", "fragments"), MISFITS)
def test_misfit_is_refused_and_named(wrong: dict[str, Any], fragments: list[str]) -> None:
    tensors = {**random_sample(5), **wrong}
    old = copies(tensors)
    with pytest.raises(ValueError, match=mentions(*fragments)):
        add(tensors)
    assert not changed(tensors, old)


@pytest.mark.parametrize("sign", [math.nan, math.inf])
def test_sign_that_is_not_finite_is_refused(sign: float) -> None:
    with pytest.raises(ValueError, match=mentions("sign", str(sign), "finite")):
        add(random_sample(5), sign)


@pytest.mark.parametrize("count", [0, 4])
def test_numbers_of_sums_but_one_to_three_are_refused(count: int) -> None:
    vector, sums = torch.zeros(5), list(torch.zeros(count, 5))
    with pytest.raises(ValueError, match=mentions(f"{count} sums", "1 to 3")):
        ops.add_sample_(sums, [vector], vector, [vector], sign=1)
