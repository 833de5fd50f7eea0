"""CUDA kernels that go through long vectors, on the host, against float64."""

from __future__ import annotations

import cuda_on_host
import lab
import numpy as np
import pytest
from cuda_on_host import EDGES, cuda

schedule, tiles = cuda_on_host.schedule, cuda_on_host.tiles
VECTORS = ["float32", "float64"]
STORAGES = ["float32", "float64", "uint16", "float16"]
NOT_FINITE = [np.nan, np.inf, -np.inf]
OFFSETS = [0, 5, 5, 2048, 2050, 5003]


def normal(*shape: int, dtype: str, seed: int = 0, shift: int = 0) -> np.ndarray:
    values = np.random.default_rng([*shape, seed]).standard_normal(shape)
    stored = lab.store(values if dtype == "float64" else values.astype(np.float32), dtype)
    return lab.unaligned(stored, shift)


def nothing_beside(array: np.ndarray) -> bool:
    """Whether the room around an unaligned array is still zero."""
    return array.base is None or int((array.base != 0).sum()) == int((array != 0).sum())


# ---- extrapolation ----------------------------------------------------------------


def check_extrapolation(
    size: int,
    pair: tuple[str, str],
    rows: int = 3,
    beta: float = 0.3,
    offsets: list[int] | None = None,
    sets: int = 1,
    shift: int = 0,
    accept: bool | None = None,
) -> np.ndarray:
    vector, storage = pair
    offsets = [0, size] if offsets is None else offsets
    before, after, out = (normal(size, dtype=vector, seed=s, shift=shift) for s in range(3))
    stored = normal(rows, size, dtype=storage, shift=shift)
    gamma = np.random.default_rng(rows).standard_normal((sets, rows))
    largest = cuda.extrapolate(
        before=before, after=after, beta=beta, rows=stored, coefficients=gamma, offsets=offsets,
        out=out, accept=accept,
    )  # fmt: skip
    wide, weights = lab.wide(stored), gamma.repeat(len(offsets) - 1, 0) if sets == 1 else gamma
    expected = (before + beta * (after.astype(float) - before)).astype(np.float64)
    bound = abs(before) + abs(after)
    if accept is False:
        expected = after.astype(float)
    else:
        for weight, part in zip(weights, lab.segments(offsets), strict=True):
            expected[part] -= weight @ wide[:, part]
            bound[part] += abs(weight) @ abs(wide[:, part])
    eps = np.finfo(vector).eps
    assert (abs(out - expected) <= (rows + 4) * eps * bound).all()
    assert largest == abs(out).max(initial=0)
    assert nothing_beside(out)
    return out


@pytest.mark.parametrize("pair", [p.values for p in lab.PAIRS], ids=str)
@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_extrapolation_of_any_size(beta: float, size: int, pair: tuple[str, str]) -> None:
    check_extrapolation(size, pair, beta=beta)


@pytest.mark.parametrize("pair", [p.values for p in lab.PAIRS], ids=str)
@pytest.mark.parametrize("sets", [1, 5])
def test_extrapolation_in_segments(
    sets: int, pair: tuple[str, str], schedule: int, tiles: int
) -> None:
    check_extrapolation(OFFSETS[-1], pair, offsets=OFFSETS, sets=sets)
    check_extrapolation(OFFSETS[-1], pair, offsets=OFFSETS, sets=sets, shift=1)


@pytest.mark.parametrize("rows", [0, 1, 20, 300])
def test_extrapolation_along_any_number_of_rows(rows: int) -> None:
    check_extrapolation(2500, ("float32", "float32"), rows=rows)


@pytest.mark.parametrize("accept", [False, True])
def test_a_flag_on_the_device_decides_about_the_extrapolation(accept: bool) -> None:
    check_extrapolation(5003, ("float32", "uint16"), accept=accept)


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_rows_of_weight_zero_are_left_out_and_others_seen(bad: float) -> None:
    point, rows = np.ones(3000, np.float32), np.ones((2, 3000), np.float32)
    rows[1, 2100] = bad
    for weight, expected in ((0.0, 0.0), (1.0, abs(bad))):
        out = np.empty_like(point)
        largest = cuda.extrapolate(
            before=point, after=point, beta=1.0, rows=rows, coefficients=np.array([[1, weight]]),
            offsets=[0, 3000], out=out,
        )  # fmt: skip
        np.testing.assert_equal(largest, expected)


def test_extrapolation_in_place() -> None:
    for place in ("before", "after"):
        args = {"before": normal(3000, dtype="float32"), "after": normal(3000, dtype="float32")}
        args["after"] += 1
        rest = {
            "beta": 0.5, "rows": normal(2, 3000, dtype="float32"),
            "coefficients": np.ones((1, 2)), "offsets": [0, 3000],
        }  # fmt: skip
        out = np.empty(3000, np.float32)
        cuda.extrapolate(**args, **rest, out=out)
        cuda.extrapolate(**args, **rest, out=args[place])
        assert lab.same_bits(args[place], out)


# ---- window -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("shift", [0, 1])
def test_windows_of_any_size(shift: int, size: int, dtype: str, tiles: int) -> None:
    check_window(size, 5, dtype, shift)


@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize("count", [1, 2, 10, 256])
def test_windows_of_any_length(count: int, dtype: str, schedule: int) -> None:
    check_window(2500, count, dtype)


def check_window(size: int, count: int, dtype: str, shift: int = 0) -> None:
    base = normal(size, dtype="float64")
    window = []
    for k in range(count):
        moved = base + 1e-5 * normal(size, dtype="float64", seed=k)
        window.append(lab.unaligned(moved.astype(dtype), shift))
    mean = normal(size, dtype=dtype, shift=shift)
    found = cuda.window_statistics(window, mean)
    wide = np.array(window, np.longdouble).reshape(count, size)
    deviation = float(wide.std(axis=0).max(initial=0))
    eps = float(np.finfo(dtype).eps)
    assert found == pytest.approx(deviation, rel=(count + 10) * eps, abs=0)
    assert (abs(mean - wide.mean(axis=0)) <= 2 * eps * (abs(base) + 1e-4)).all()
    assert nothing_beside(mean)


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("which", [0, 2])
def test_an_iterate_that_is_not_finite_makes_nan(which: int, bad: float) -> None:
    window = [normal(3000, dtype="float32", seed=k) for k in range(3)]
    window[which][2999] = bad
    assert np.isnan(cuda.window_statistics(window, np.empty(3000, np.float32)))


def test_longer_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        cuda.window_statistics([np.zeros(3)] * 257, np.zeros(3))


# ---- blocks of samples ------------------------------------------------------------


@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("shift", [0, 1])
def test_samples_are_added(shift: int, size: int, dtype: str, tiles: int) -> None:
    check_sample(size, dtype, shift)


@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize(
    "without", [(), ("noise_sum",), ("direction",), ("noise_sum", "direction")]
)
@pytest.mark.parametrize("compensated", [False, True])
def test_noise_and_direction_may_be_left_out(
    compensated: bool, without: tuple[str, ...], dtype: str, schedule: int
) -> None:
    check_sample(5003, dtype, without=without, compensated=compensated)


def check_sample(
    size: int,
    dtype: str,
    shift: int = 0,
    without: tuple[str, ...] = (),
    compensated: bool = False,
) -> None:
    names = ("point_sum", "gradient_sum", "noise_sum", "point", "anchor", "gradient", "direction")
    args = {
        name: normal(size, dtype=dtype, seed=seed, shift=shift)
        for seed, name in enumerate(names)
        if name not in without
    }
    expected = {name: array.copy() for name, array in args.items()}
    figures = cuda.add_sample(**args, sign=-1.0, compensated=compensated)
    gradient = args["gradient"].astype(np.longdouble)
    direction = args.get("direction", np.zeros(size)).astype(np.longdouble)
    expected["point_sum"] += args["point"] - args["anchor"]
    expected["gradient_sum"] += args["gradient"]
    if "noise_sum" in args:
        expected["noise_sum"] -= args["gradient"]
    for name, array in expected.items():
        assert lab.same_bits(args[name], array), name
        assert nothing_beside(args[name]), name
    assert figures[0] == pytest.approx(float(gradient @ gradient), rel=1e-13)
    bound = 1e-13 * float(abs(gradient) @ abs(direction))
    assert abs(figures[1] - float(gradient @ direction)) <= bound


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    "without", [(), ("step_row", "gradient_row"), ("noise_sum", "noise_row")], ids=str
)
@pytest.mark.parametrize("accept", [None, True, False])
def test_blocks_are_closed(
    accept: bool | None,
    without: tuple[str, ...],
    shift: int,
    vector: str,
    storage: str,
    schedule: int,
) -> None:
    for size in EDGES:
        names = ("point_sum", "gradient_sum", "noise_sum", "last_point", "last_gradient")
        dtypes = dict.fromkeys(names, vector)
        dtypes |= dict.fromkeys(("step_row", "gradient_row", "noise_row"), storage)
        args = {
            name: normal(size, dtype=dtype, seed=seed, shift=shift)
            for seed, (name, dtype) in enumerate(dtypes.items())
            if name not in without
        }
        expected = {name: array.copy() for name, array in args.items()}
        cuda.push_block(**args, count=3, accept=accept)
        three = np.dtype(vector).type(3)
        rows = {"step_row": expected["point_sum"] / three}
        gradient = expected["gradient_sum"] / three
        rows["gradient_row"] = gradient - expected["last_gradient"]
        if "noise_row" in args:
            rows["noise_row"] = expected["noise_sum"] / three
        if accept is not False:
            expected["last_point"] += rows["step_row"]
            expected["last_gradient"][:] = gradient
        for name in rows.keys() & args.keys():
            expected[name][:] = 0 if accept is False else lab.store(rows[name], storage)
        for name in {"point_sum", "gradient_sum", "noise_sum"} & args.keys():
            expected[name][:] = 0
        for name, array in expected.items():
            assert lab.same_bits(args[name], array), (name, size)
            assert nothing_beside(args[name]), (name, size)


@pytest.mark.parametrize(("vector", "storage"), lab.PAIRS)
def test_rows_of_changes_to_no_block_are_zero(vector: str, storage: str) -> None:
    names = ("point_sum", "gradient_sum", "noise_sum", "last_point", "last_gradient")
    dtypes = dict.fromkeys(names, vector)
    dtypes |= dict.fromkeys(("step_row", "gradient_row", "noise_row"), storage)
    args = {x: normal(5003, dtype=y, seed=i) for i, (x, y) in enumerate(dtypes.items())}
    expected = {name: array.copy() for name, array in args.items()}
    cuda.push_block(**expected, count=3)
    expected["step_row"][:] = expected["gradient_row"][:] = 0
    cuda.push_block(**args, count=3, paired=False)
    for name, array in expected.items():
        assert lab.same_bits(args[name], array), name


# ---- products ---------------------------------------------------------------------


def check_products(
    rows: list[np.ndarray], vectors: list[np.ndarray], offsets: list[int], compensated: bool = False
) -> np.ndarray:
    found = cuda.products(rows, vectors, offsets=offsets, compensated=compensated)
    for got, part in zip(found, lab.segments(offsets), strict=True):
        length = part.stop - part.start
        left = np.reshape([lab.wide(row)[part] for row in rows], (len(rows), length))
        right = np.reshape([lab.wide(vector)[part] for vector in vectors], (len(vectors), length))
        assert (abs(got - left @ right.T) <= 1e-13 * (abs(left) @ abs(right).T)).all()
    return np.asarray(found)


def several(
    count: int, size: int, dtypes: list[str], seed: int, shift: int = 0
) -> list[np.ndarray]:
    return [
        normal(size, dtype=dtypes[i % len(dtypes)], seed=seed + i, shift=shift)
        for i in range(count)
    ]


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("size", EDGES)
def test_products_of_any_size(size: int, dtype: str) -> None:
    vectors = several(3, size, [dtype, "float32", "float64", "float16"], 50)
    check_products(several(5, size, [dtype], 0), vectors, [0, size])


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("compensated", [False, True])
def test_products_in_segments(compensated: bool, shift: int, schedule: int, tiles: int) -> None:
    rows = several(6, OFFSETS[-1], ["float32", "uint16", "float16"], 0, shift)
    check_products(rows, several(5, OFFSETS[-1], ["float32"], 50, shift), OFFSETS, compensated)


@pytest.mark.parametrize("count", [1, 4, 9, 65])
def test_products_of_rows_with_themselves_are_symmetric(count: int) -> None:
    rows = several(count, 200, ["float32"], 0)
    found = check_products(rows, rows, [0, 200] if count > 9 else [0, 50, 200])
    np.testing.assert_equal(found, found.transpose(0, 2, 1))


@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (1, 1), (65, 2), (2, 65)])
def test_products_of_any_number_of_vectors(counts: tuple[int, int]) -> None:
    left, right = counts
    check_products(
        several(left, 300, ["float32"], 0), several(right, 300, ["float64"], 99), [0, 300]
    )


@pytest.mark.parametrize("compensated", [False, True])
def test_products_that_are_not_finite(compensated: bool) -> None:
    row, vector = np.ones(500, np.float32), np.ones(500, np.float32)
    row[300] = np.inf
    found = cuda.products([row, vector], [vector], offsets=[0, 250, 500], compensated=compensated)
    np.testing.assert_equal(found, [[[250], [250]], [[np.inf], [250]]])


# ---- differences ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_difference_is_seen_wherever_it_is(shift: int, dtype: str) -> None:
    for size in EDGES:
        one = normal(size, dtype=dtype, seed=1, shift=shift)
        assert not cuda.differs(one, one.copy())
        for place in {0, size // 2, size - 1} if size else ():
            for value in (one[place] + 1, np.nan):
                other = one.copy()
                other[place] = value
                assert cuda.differs(one, other), (size, place, value)


# ---- verdicts ---------------------------------------------------------------------


@pytest.mark.parametrize("max_std", [0.5, 2.0, np.nan])
def test_one_thread_judges(max_std: float) -> None:
    control, flags, counts = np.zeros(15), np.zeros(18, dtype=bool), np.zeros(16, dtype=np.int64)
    control[[1, 4]] = 10.0, 3.0  # the largest step, and points in the window
    cuda.average(control, flags, counts, max_std, threshold=0.1, length=3)
    oscillates = max_std > 1
    assert flags[[10, 11, 12]].tolist() == [oscillates, oscillates, not oscillates]
    assert flags.sum() == 1 + oscillates
    assert counts.tolist() == [0] * 5 + [int(oscillates)] + [0] * 10
