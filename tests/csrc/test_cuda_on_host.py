"""The emulation of CUDA finds the faults that it is there for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lab
import numpy as np
import pytest

aadl_lab = lab.load()
VALUES = np.arange(10 * 128.0)
SUMS = VALUES.reshape(10, 128).sum(axis=1)


@pytest.fixture(params=["0", "1"], ids=["natural", "shuffled"])
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads in turn, and threads and blocks in an order drawn from a seed."""
    monkeypatch.setenv("AADL_SCHEDULE", request.param)


def sanitizer() -> str:
    """That the lab was built with."""
    cache = (lab.FOLDER / "CMakeCache.txt").read_text()
    return cache.partition("AADL_SANITIZE:STRING=")[2].partition("\n")[0]


def in_a_process_of_its_own(fault: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import numpy, lab; values = numpy.ones(1280); "
        f"print(lab.load().sum_blocks(values, {fault!r}).sum())"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, "AADL_LAB_PATH": str(lab.FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("schedule")
def test_a_kernel_without_fault_is_right() -> None:
    np.testing.assert_equal(aadl_lab.sum_blocks(VALUES), SUMS)


@pytest.mark.usefixtures("schedule")
@pytest.mark.skipif(sanitizer() == "thread", reason="threads have no schedule")
def test_a_missing_barrier_makes_wrong_sums() -> None:
    assert (aadl_lab.sum_blocks(VALUES, "missing barrier") != SUMS).any()


@pytest.mark.usefixtures("schedule")
@pytest.mark.skipif(sanitizer() == "thread", reason="ends the process")
@pytest.mark.parametrize("fault", ["divergent barrier", "early return"])
def test_a_divergent_barrier_is_an_error_that_names_the_line(fault: str) -> None:
    with pytest.raises(RuntimeError, match=r"divergent barrier.*cuda_emulation\.cpp:\d+"):
        aadl_lab.sum_blocks(VALUES, fault)
    np.testing.assert_equal(aadl_lab.sum_blocks(VALUES), SUMS)


@pytest.mark.skipif(sanitizer() != "address", reason="needs AddressSanitizer")
def test_an_access_past_shared_memory_is_found() -> None:
    done = in_a_process_of_its_own("past shared")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.skipif(sanitizer() != "thread", reason="needs ThreadSanitizer")
@pytest.mark.parametrize("fault", ["missing barrier", "blocks share"])
def test_races_within_and_between_blocks_are_found(fault: str) -> None:
    done = in_a_process_of_its_own(fault)
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "sum_values" in done.stderr
    assert "WARNING" not in in_a_process_of_its_own("none").stderr
