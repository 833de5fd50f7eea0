"""What an import says when the compiled library is missing, unwanted or required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import aadl_ext

pytestmark = pytest.mark.xdist_group("imports")  # made once
BUILT = sorted(Path(aadl_ext.__file__).parent.glob("_native*"))
# Imports in processes of their own, which have torch from the one that they are forks of.
IMPORTS = """
import os, sys
import torch, torch._dynamo, torch.distributed.tensor

for number, (folder, choice) in enumerate(zip(sys.argv[1::2], sys.argv[2::2])):
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(f"{number}-{stream}", os.O_CREAT | os.O_WRONLY), stream)
        os.environ["AADL_EXT_NATIVE"] = choice
        sys.path.insert(0, folder)
        import aadl_ext.ops as ops

        print(ops.__file__, ops.backends()["cpu kernels"], flush=True)
        os._exit(0)  # taking torch down takes longer than all else
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
"""


class Said(NamedTuple):
    code: int
    out: str
    error: str


def install(folder: Path) -> Path:
    """A copy of the package as an install without a compiler leaves it."""
    ignore = shutil.ignore_patterns("_native*", "__pycache__")
    shutil.copytree(Path(aadl_ext.__file__).parent, folder / "aadl_ext", ignore=ignore)
    return folder


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Said]:
    """What each import says."""
    here = tmp_path_factory.mktemp("imports")
    pure, broken = install(here / "pure"), install(here / "broken")
    (broken / "aadl_ext" / "_native.abi3.so").write_bytes(b"not a library")
    own = shutil.copy(BUILT[0], here / "ops.so") if BUILT else "nowhere/ops.so"
    imports = {
        "missing": (pure, "auto"),
        "ruled out": (pure, "0"),
        "required": (pure, "1"),
        "own": (pure, own),
        "own, missing": (pure, "nowhere/ops.so"),
        "broken": (broken, "auto"),
    }
    arguments = [str(x) for pair in imports.values() for x in pair]
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=here,
    )
    read = [[(here / f"{i}-{s}").read_text() for s in (1, 2)] for i in range(len(imports))]
    codes = [int(line) for line in run.stdout.split()]
    return {
        name: Said(code, *streams) for name, code, streams in zip(imports, codes, read, strict=True)
    }


def test_a_missing_library_is_warned_of_once_with_the_reason(said: dict[str, Said]) -> None:
    missing = said["missing"]
    assert "pure/aadl_ext" in missing.out
    assert "not built" in missing.out
    assert missing.error.count("RuntimeWarning: aadl_ext runs on its slower") == 1


def test_a_library_that_was_ruled_out_is_not_warned_of(said: dict[str, Said]) -> None:
    assert "switched off by AADL_EXT_NATIVE=0" in said["ruled out"].out
    assert not said["ruled out"].error


def test_a_required_library_that_is_missing_is_an_error(said: dict[str, Said]) -> None:
    assert said["required"].code != 0
    expected = "ImportError: AADL_EXT_NATIVE=1, but the compiled library is missing"
    assert expected in said["required"].error


def test_a_library_of_ones_own_is_taken_or_missed(said: dict[str, Said]) -> None:
    expected = "ImportError: AADL_EXT_NATIVE=nowhere/ops.so, but"
    assert expected in said["own, missing"].error
    if BUILT:
        assert "available" in said["own"].out


def test_a_library_that_does_not_load_is_named_with_the_reason(said: dict[str, Said]) -> None:
    assert "_native.abi3.so does not load with torch" in said["broken"].out
