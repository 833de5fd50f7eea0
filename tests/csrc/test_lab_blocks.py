"""The kernels over blocks of samples against their definitions in NumPy."""

from __future__ import annotations

import math
from typing import Any

import lab
import numpy as np
import pytest

aadl_lab = lab.load()
VECTORS = ["float32", "float64"]
STORAGES = ["float32", "float64", "uint16", "float16"]
# Sums, last ones and rows together exceed 32 MiB, from where rows go past the caches.
HUGE = 1_300_021
NOT_FINITE = [np.nan, -np.nan, np.inf, -np.inf]
Arrays = dict[str, np.ndarray]


def normal(size: int, dtype: str, seed: int, shift: int = 0) -> np.ndarray:
    values = np.random.default_rng([size, seed]).standard_normal(size)
    if dtype != "float64":
        values = lab.store(values.astype(np.float32), dtype)
    return lab.unaligned(values, shift)


def copies(arrays: Arrays) -> Arrays:
    return {name: array.copy() for name, array in arrays.items()}


def assert_same_bits(found: Arrays, expected: Arrays, beside: bool) -> None:
    """And, in unaligned arrays, zeros in the room around them."""
    for name, array in expected.items():
        assert lab.same_bits(found[name], array), name
        if beside:
            assert (found[name].base != 0).sum() == (array != 0).sum(), name


# ---- samples ----------------------------------------------------------------------


def sample(size: int, dtype: str = "float32", shift: int = 0) -> Arrays:
    names = ("point_sum", "gradient_sum", "noise_sum", "point", "anchor", "gradient", "direction")
    return {name: normal(size, dtype, seed, shift) for seed, name in enumerate(names)}


def check_sample(
    args: Arrays, sign: float = 1.0, threads: int = 1, beside: bool = False
) -> tuple[float, float]:
    expected, dtype = copies(args), args["point"].dtype.type
    figures: tuple[float, float] = aadl_lab.add_sample(**args, sign=sign, threads=threads)
    expected["point_sum"] += args["point"] - args["anchor"]
    expected["gradient_sum"] += args["gradient"]
    if "noise_sum" in args:
        expected["noise_sum"] += dtype(sign) * args["gradient"]
    assert_same_bits(args, expected, beside)

    gradient = args["gradient"].astype(np.longdouble)
    direction = args.get("direction", np.zeros_like(gradient)).astype(np.longdouble)
    assert figures[0] == pytest.approx(float(gradient @ gradient), rel=1e-13, abs=0)
    bound = 1e-13 * float(abs(gradient) @ abs(direction))
    assert abs(figures[1] - float(gradient @ direction)) <= bound
    return figures


@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize("size", lab.EDGES)
def test_samples_of_sizes_around_the_limits_of_the_kernel(size: int, dtype: str) -> None:
    check_sample(sample(size, dtype))


@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    "left_out", [(), ("noise_sum",), ("direction",), ("noise_sum", "direction")], ids=str
)
def test_sum_of_noise_and_direction_may_be_left_out(
    left_out: tuple[str, ...], sign: float, dtype: str
) -> None:
    args = {name: array for name, array in sample(70_000, dtype).items() if name not in left_out}
    check_sample(args, sign)


@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize("shift", [1, 3, 4])
def test_large_and_unaligned_samples(shift: int, dtype: str) -> None:
    check_sample(sample(HUGE, dtype, shift), -1.0, threads=2, beside=True)


@pytest.mark.parametrize("dtype", VECTORS)
def test_threads_do_not_change_a_bit_of_a_sample(dtype: str) -> None:
    first, *others = (check_sample(sample(300_000, dtype), threads=n) for n in (1, 2, 3, 8))
    assert all(lab.same_bits(other, first) for other in others)


@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize("place", [0, 70, 32_768, 69_999])
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_gradient_that_is_not_finite_is_seen(bad: float, place: int, dtype: str) -> None:
    args = sample(70_000, dtype)
    args["gradient"][place] = bad
    squared, slope = aadl_lab.add_sample(**args, threads=2)
    np.testing.assert_equal(squared, bad * bad)
    assert not math.isfinite(slope)
    for name in ("gradient_sum", "noise_sum"):
        assert list(np.flatnonzero(~np.isfinite(args[name]))) == [place]
    assert np.isfinite(args["point_sum"]).all()


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_slope_without_a_direction_is_zero_beside_any_gradient(bad: float) -> None:
    args = sample(1000)
    del args["direction"]
    args["gradient"][77] = bad
    assert aadl_lab.add_sample(**args)[1] == 0


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_squares_beyond_the_range_of_float32_are_summed(value: float) -> None:
    args = sample(1000)
    args["gradient"][:] = args["direction"][:] = value
    check_sample(args)


@pytest.mark.parametrize("name", list(sample(0)))
def test_misfits_of_a_sample_are_refused(name: str) -> None:
    for wrong in (np.zeros(6, np.float32), np.zeros(5, np.int32), np.zeros(10, np.float32)[::2]):
        args = {**sample(5), name: wrong}
        old = copies(args)
        with pytest.raises(ValueError, match=r"does not fit|no kernel"):
            aadl_lab.add_sample(**args)
        assert_same_bits(args, old, beside=False)


# ---- closing a block --------------------------------------------------------------


def block(size: int, vector: str = "float32", storage: str = "float32", shift: int = 0) -> Arrays:
    """Sums of a few samples, and rows that are rubbish."""
    names = ("point_sum", "gradient_sum", "noise_sum", "last_point", "last_gradient")
    args = {name: normal(size, vector, seed, shift) for seed, name in enumerate(names)}
    for seed, name in enumerate(("step_row", "gradient_row", "noise_row"), start=9):
        args[name] = normal(size, storage, seed, shift)
    return args


@pytest.mark.parametrize("left_out", [(), ("step_row", "gradient_row"), ("noise_sum", "noise_row")])
@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
def test_rows_of_a_block_that_is_not_accepted_are_zero(
    vector: str, storage: str, accept: bool, left_out: tuple[str, ...]
) -> None:
    args = block(70_001, vector, storage)
    args = {name: array for name, array in args.items() if name not in left_out}
    if accept:
        return check_block(args, accept=True)
    expected = copies(args)
    for name, array in expected.items():
        if name.endswith(("_sum", "_row")):
            array[:] = 0
    args["gradient_sum"][5] = np.nan
    aadl_lab.push_block(**args, count=3, accept=False, threads=2)
    assert_same_bits(args, expected, beside=False)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
def test_rows_of_changes_to_no_block_are_zero(vector: str, storage: str) -> None:
    args = block(70_001, vector, storage)
    expected = copies(args)
    aadl_lab.push_block(**expected, count=3)
    expected["step_row"][:] = expected["gradient_row"][:] = 0
    aadl_lab.push_block(**args, count=3, paired=False, threads=2)
    assert_same_bits(args, expected, beside=False)


def check_block(
    args: Arrays,
    count: int = 3,
    threads: int = 1,
    beside: bool = False,
    accept: bool | None = None,
) -> None:
    expected, number = copies(args), args["last_point"].dtype.type(count)
    aadl_lab.push_block(**args, count=count, accept=accept, threads=threads)
    step, gradient = expected["point_sum"] / number, expected["gradient_sum"] / number
    with np.errstate(over="ignore"):
        if "step_row" in args:
            storage = args["step_row"].dtype.name
            change = gradient - expected["last_gradient"]
            expected["step_row"][:] = lab.store(step, storage)
            expected["gradient_row"][:] = lab.store(change, storage)
        if "noise_row" in args:
            noise = expected["noise_sum"] / number
            expected["noise_row"][:] = lab.store(noise, args["noise_row"].dtype.name)
    expected["last_point"] += step
    expected["last_gradient"] = gradient
    for name in ("point_sum", "gradient_sum", "noise_sum"):
        if name in args:
            expected[name][:] = 0
    assert_same_bits(args, expected, beside)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("size", lab.EDGES)
def test_blocks_of_sizes_around_the_limits_of_the_kernel(
    size: int, vector: str, storage: str
) -> None:
    check_block(block(size, vector, storage))


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize(
    "left_out",
    [
        ("step_row", "gradient_row"),
        ("noise_sum", "noise_row"),
        ("step_row", "gradient_row", "noise_sum", "noise_row"),
    ],
    ids=["first", "no noise", "neither"],
)
def test_rows_may_be_left_out(left_out: tuple[str, ...], vector: str, storage: str) -> None:
    args = block(70_000, vector, storage)
    check_block({name: array for name, array in args.items() if name not in left_out})


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_sums_are_divided_by_the_number_of_samples(count: int, vector: str) -> None:
    check_block(block(1000, vector), count)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("shift", [0, 1, 3, 4])
def test_blocks_that_go_past_the_caches(shift: int, vector: str, storage: str) -> None:
    check_block(block(HUGE, vector, storage, shift), threads=2, beside=shift > 0)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("shift", [1, 3, 4])
def test_unaligned_blocks_that_stay_in_the_caches(shift: int, vector: str, storage: str) -> None:
    check_block(block(70_001, vector, storage, shift), beside=True)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_blocks_are_the_same_with_any_number_of_threads(threads: int) -> None:
    check_block(block(300_000), threads=threads)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_sums_that_are_not_finite_are_stored_as_such(bad: float, vector: str, storage: str) -> None:
    args = block(1000, vector, storage)
    for place, name in enumerate(("point_sum", "gradient_sum", "noise_sum")):
        args[name][50 * place] = bad
    aadl_lab.push_block(**args, count=2)
    for place, name in enumerate(("step_row", "gradient_row", "noise_row")):
        row = lab.wide(args[name])
        np.testing.assert_equal(row[50 * place], bad)
        assert np.isfinite(np.delete(row, 50 * place)).all()
    assert not any(args[name].any() for name in ("point_sum", "gradient_sum", "noise_sum"))


@pytest.mark.parametrize(
    ("vector", "storage", "value"), [("float32", "float16", 7e4), ("float64", "float32", 4e38)]
)
def test_means_that_the_storage_cannot_hold_become_infinite_in_the_row_only(
    vector: str, storage: str, value: float
) -> None:
    args = block(1000, vector, storage)
    args["point_sum"][5] = 2 * value
    check_block(args, count=2)
    assert args["step_row"][5] == np.inf
    assert np.isfinite(args["last_point"]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"step_row": None},
        {"gradient_row": None},
        {"noise_row": None},
        {"noise_sum": None},
        {"gradient_row": np.zeros(5)},
        {"noise_row": np.zeros(5, np.float16)},
        {"step_row": np.zeros(6, np.float32)},
        {"last_point": np.zeros(10, np.float32)[::2]},
        {"last_gradient": np.zeros(5)},
        {"point_sum": np.zeros((1, 5), np.float32)},
        {"threads": 0},
    ],
    ids=str,
)
def test_misfits_of_a_block_are_refused(change: dict[str, Any]) -> None:
    args = block(5)
    old = copies(args)
    with pytest.raises(ValueError, match=r"fit|threads|no kernel"):
        aadl_lab.push_block(**{"count": 3, **args, **change})
    assert_same_bits(args, old, beside=False)


# ---- products ---------------------------------------------------------------------


def check_products(
    rows: list[np.ndarray], vectors: list[np.ndarray], offsets: list[int], threads: int = 1
) -> np.ndarray:
    then = [array.copy() for array in (*rows, *vectors)]
    got: np.ndarray = aadl_lab.products(rows, vectors, offsets=offsets, threads=threads)
    assert got.dtype == np.float64
    assert got.shape == (len(offsets) - 1, len(rows), len(vectors))
    assert all(map(lab.same_bits, (*rows, *vectors), then))
    for found, part in zip(got, lab.segments(offsets), strict=True):
        for i, row in enumerate(rows):
            for j, vector in enumerate(vectors):
                x, y = lab.wide(row[part]), lab.wide(vector[part])
                assert abs(found[i, j] - x @ y) <= 1e-13 * (abs(x) @ abs(y)), (i, j)
    return got


def several(count: int, size: int, dtypes: list[str], seed: int, shift: int = 0) -> Any:
    return [normal(size, dtypes[i % len(dtypes)], seed + i, shift) for i in range(count)]


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("size", lab.EDGES)
def test_products_of_sizes_around_the_limits_of_the_kernel(size: int, dtype: str) -> None:
    vectors = several(3, size, [dtype, "float32", "float64"], 50)
    check_products(several(5, size, [dtype], 0), vectors, [0, size])


@pytest.mark.parametrize("rows", range(11))
def test_products_of_any_numbers_of_rows_and_vectors(rows: int) -> None:
    for vectors in range(11):
        args = several(rows, 700, ["float32"], 0), several(vectors, 700, STORAGES, 50)
        check_products(*args, [0, 100, 700])


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("rows", range(1, 12))
def test_products_of_rows_with_themselves_are_those_with_their_copies(
    rows: int, dtype: str
) -> None:
    offsets = [0, 300, 300, 1001]
    matrix = several(rows, 1001, [dtype], 0)
    gram = check_products(matrix, matrix, offsets)
    assert lab.same_bits(gram, gram.swapaxes(1, 2).copy())
    twins = check_products(matrix, [row.copy() for row in matrix], offsets)
    np.testing.assert_allclose(gram, twins, rtol=0, atol=1e-13 * abs(twins).max())


def test_products_of_rows_with_themselves_in_another_order_or_in_part() -> None:
    rows = several(6, 1001, ["uint16"], 0)
    for vectors in (rows[::-1], rows[:5], rows[1:], [*rows[:5], rows[0]], [*rows, rows[0]]):
        check_products(rows, vectors, [0, 1001])


@pytest.mark.parametrize("offsets", lab.SEGMENTS, ids=len)
def test_products_in_segments(offsets: list[int]) -> None:
    size = offsets[-1]
    rows = several(5, size, ["float32"], 0)
    check_products(rows, several(3, size, STORAGES, 50), offsets)
    check_products(rows, rows, offsets)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("shift", [1, 3, 4])
def test_products_of_unaligned_rows(shift: int, dtype: str) -> None:
    offsets = [0, 1001, 1001, 200_003]
    vectors = several(2, offsets[-1], STORAGES, 50, shift + 1)
    check_products(several(5, offsets[-1], [dtype], 0, shift), vectors, offsets, threads=2)


@pytest.mark.parametrize(
    "offsets", [[0, 300_000], [0, 5, 70_000, 300_000], list(range(0, 70_001, 70))], ids=len
)
def test_threads_do_not_change_a_bit_of_the_products(offsets: list[int]) -> None:
    rows = several(6, offsets[-1], ["uint16"], 0)
    for vectors in (several(5, offsets[-1], STORAGES, 50), rows):
        first, *others = (
            aadl_lab.products(rows, vectors, offsets=offsets, threads=n) for n in (1, 2, 3, 8)
        )
        assert first.all()
        assert all(lab.same_bits(other, first) for other in others)


def test_no_entry_is_lost_or_counted_twice_where_blocks_grow_longer() -> None:
    """Beyond 512 blocks, to bound the memory of their sums. Integers add up exactly."""
    size = 512 * 32768 + 12_345
    ones = np.ones(size, np.float16)
    digits = (np.arange(size) % 7).astype(np.float16)
    offsets = [0, 1000, size]
    got = aadl_lab.products([ones], [digits, ones], offsets=offsets, threads=2)
    expected = [[digits[p].sum(dtype=np.int64), p.stop - p.start] for p in lab.segments(offsets)]
    assert got[:, 0].tolist() == expected


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("place", [0, 299, 300, 1000])
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_what_is_not_finite_spoils_the_products_of_its_row_and_segment_only(
    bad: float, place: int, dtype: str
) -> None:
    rows, vectors = several(6, 1001, [dtype], 0), several(3, 1001, ["float32"], 50)
    rows[4][place] = lab.store(np.array([bad], np.float32), dtype)[0]
    spoilt = np.zeros((2, 6, 3), bool)
    spoilt[int(place >= 300), 4] = True
    got = aadl_lab.products(rows, vectors, offsets=[0, 300, 1001])
    assert (np.isfinite(got) == ~spoilt).all()
    gram = aadl_lab.products(rows, rows, offsets=[0, 300, 1001])
    spoilt = np.zeros((2, 6, 6), bool)
    spoilt[int(place >= 300), 4] = spoilt[int(place >= 300), :, 4] = True
    assert (np.isfinite(gram) == ~spoilt).all()


def test_products_beyond_the_range_of_float32_are_summed() -> None:
    small, large = np.full(1000, 1e-30, np.float32), np.full(1000, 1e30, np.float32)
    check_products([small, large], [small, large], [0, 1000])


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(6, np.float32),
        np.zeros(5, np.int32),
        np.zeros(10, np.float32)[::2],
        np.zeros((1, 5), np.float32),
    ],
    ids=["length", "dtype", "strides", "dimensions"],
)
def test_misfits_of_products_are_refused(wrong: np.ndarray) -> None:
    fits = np.zeros(5, np.float32)
    for rows, vectors in (([fits, wrong], [fits]), ([fits], [fits, wrong])):
        with pytest.raises(ValueError, match="array"):
            aadl_lab.products(rows, vectors, offsets=[0, 5])
