"""The emulation of CUDA finds the faults that it is there for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cuda_on_host
import lab
import numpy as np
import pytest
from cuda_on_host import cuda

schedule = cuda_on_host.schedule
VALUES = np.arange(10 * 128.0)
SUMS = VALUES.reshape(10, 128).sum(axis=1)


def sanitizer() -> str:
    """That the lab was built with."""
    cache = (lab.FOLDER / "CMakeCache.txt").read_text()
    return cache.partition("AADL_SANITIZE:STRING=")[2].partition("\n")[0]


def in_a_process_of_its_own(fault: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import numpy, lab; values = numpy.ones(1280); "
        f"print(lab.load().cuda.sum_blocks(values, {fault!r}).sum())"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, "AADL_LAB_PATH": str(lab.FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_kernel_without_fault_is_right(schedule: int) -> None:
    np.testing.assert_equal(cuda.sum_blocks(VALUES), SUMS)


@pytest.mark.skipif(sanitizer() == "thread", reason="threads have no schedule")
def test_a_missing_barrier_makes_wrong_sums(schedule: int) -> None:
    assert (cuda.sum_blocks(VALUES, "missing barrier") != SUMS).any()


@pytest.mark.skipif(sanitizer() == "thread", reason="ends the process")
@pytest.mark.parametrize("fault", ["divergent barrier", "early return"])
def test_a_divergent_barrier_is_an_error_that_names_the_line(fault: str, schedule: int) -> None:
    with pytest.raises(RuntimeError, match=r"divergent barrier.*cuda_emulation\.cpp:\d+"):
        cuda.sum_blocks(VALUES, fault)
    np.testing.assert_equal(cuda.sum_blocks(VALUES), SUMS)


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
