"""What an import says when the compiled library is missing, unwanted or required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aadl_ext


@pytest.fixture(scope="module")
def without_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package as an install without a compiler leaves it."""
    folder = tmp_path_factory.mktemp("pure")
    source = Path(aadl_ext.__file__).parent
    ignore = shutil.ignore_patterns("_native*", "__pycache__")
    shutil.copytree(source, folder / "aadl_ext", ignore=ignore)
    return folder


def imported(folder: Path, choice: str) -> subprocess.CompletedProcess[str]:
    code = "import aadl_ext.ops as ops; print(ops.__file__, ops.backends()['cpu kernels'])"
    environment = {**os.environ, "PYTHONPATH": str(folder), "AADL_EXT_NATIVE": choice}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=folder,
    )


def test_a_missing_library_is_warned_of_once_with_the_reason(without_library: Path) -> None:
    done = imported(without_library, "auto")
    assert str(without_library) in done.stdout
    assert "not built" in done.stdout
    assert done.stderr.count("RuntimeWarning: aadl_ext runs on its slower") == 1


def test_a_library_that_was_ruled_out_is_not_warned_of(without_library: Path) -> None:
    done = imported(without_library, "0")
    assert "switched off by AADL_EXT_NATIVE=0" in done.stdout
    assert not done.stderr


def test_a_required_library_that_is_missing_is_an_error(without_library: Path) -> None:
    done = imported(without_library, "1")
    assert done.returncode != 0
    assert "ImportError: AADL_EXT_NATIVE=1, but the compiled library is missing" in done.stderr


def test_a_library_of_ones_own_is_taken_or_missed(without_library: Path, tmp_path: Path) -> None:
    missed = imported(without_library, "nowhere/ops.so").stderr
    assert "ImportError: AADL_EXT_NATIVE=nowhere/ops.so, but" in missed
    built = sorted(Path(aadl_ext.__file__).parent.glob("_native*"))
    if built:
        other = shutil.copy(built[0], tmp_path / "ops.so")
        assert "available" in imported(without_library, str(other)).stdout


def test_a_library_that_does_not_load_is_named_with_the_reason(without_library: Path) -> None:
    broken = without_library / "aadl_ext" / "_native.abi3.so"
    broken.write_bytes(b"not a library")
    try:
        done = imported(without_library, "auto")
    finally:
        broken.unlink()
    assert "_native.abi3.so does not load with torch" in done.stdout
