"""For which architectures an install compiles CUDA kernels, and what it says of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SETUP = Path(__file__).parents[2] / "setup.py"
if not SETUP.exists():
    pytest.skip("no setup.py: these are the tests of an installed wheel", allow_module_level=True)
ALL = ["75", "80", "86", "90", "100", "120"]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py, of which an import runs nothing."""
    spec = importlib.util.spec_from_file_location("aadl_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OLD = ["75", "80", "86", "90"]  # what nvcc 12.4 has


@pytest.mark.parametrize(
    ("choice", "asked", "known", "present", "archs"),
    [
        ("auto", "", ALL, ["90"], ["90"]),
        ("auto", "", ALL, [], []),
        ("auto", "", None, ["90"], []),
        ("auto", "80, 86", ALL, ["90"], ["80", "86"]),
        ("auto", "80 86", ALL, [], ["80", "86"]),
        ("auto", "90", None, [], []),
        ("1", "", ALL, ["80", "90"], ["80", "90"]),
        ("1", "", ALL, [], ALL),
        ("1", "90", ALL, ["80"], ["90"]),
        ("1", "", None, [], []),
        ("0", "90", ALL, ["90"], []),
        # A GPU newer than nvcc, and one whose code it has dropped.
        ("1", "", OLD, [], OLD),
        ("auto", "", OLD, ["80", "120"], ["80", "90"]),
        ("auto", "", OLD, ["100", "120"], ["90"]),
        ("auto", "", ALL, ["70"], []),
        ("auto", "", ALL, ["70", "80"], ["80"]),
    ],
)
def test_kernels_are_built_for_what_is_here_or_asked_for(
    build: ModuleType,
    choice: str,
    asked: str,
    known: list[str] | None,
    present: list[str],
    archs: list[str],
) -> None:
    assert build.cuda_choice(choice, asked, known, present).archs == archs


def test_a_build_without_kernels_says_how_to_ask_for_them(build: ModuleType) -> None:
    assert "AADL_EXT_CUDA=1" in build.cuda_choice("auto", "", ALL, []).reason
    assert "no nvcc" in build.cuda_choice("auto", "90", None, []).reason
    assert "older nvcc" in build.cuda_choice("auto", "", ALL, ["70"]).reason


def test_nvcc_tells_what_it_has_code_for(build: ModuleType, tmp_path: Path) -> None:
    assert build.known_archs(None) is None
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\nprintf 'compute_90\\ncompute_75\\ncompute_100\\n'\n")
    nvcc.chmod(0o755)
    assert build.known_archs(tmp_path) == ["75", "90", "100"]


def fake_smi(folder: Path, script: str) -> None:
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)


def test_architectures_are_those_of_the_gpus_each_once(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.present_archs() == []  # no driver
    fake_smi(tmp_path, 'echo "12.0"; echo "9.0"; echo "9.0"; echo "[N/A]"')
    assert build.present_archs() == ["90", "120"]
    fake_smi(tmp_path, "echo 'No devices were found'; exit 6")
    assert build.present_archs() == []


def test_kernels_that_are_required_fail_loudly_without_nvcc(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "cuda_toolkit", lambda: None)
    monkeypatch.setenv("AADL_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match="there is no nvcc"):
        build.cuda_objects(tmp_path)


def test_a_build_says_that_there_are_no_kernels_and_why(
    build: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build, "cuda_toolkit", lambda: tmp_path)
    monkeypatch.setattr(build, "known_archs", lambda _: ALL)
    monkeypatch.setattr(build, "present_archs", list)
    monkeypatch.setenv("AADL_EXT_CUDA", "auto")
    monkeypatch.delenv("AADL_EXT_CUDA_ARCHS", raising=False)
    assert build.cuda_objects(tmp_path) == []
    assert capsys.readouterr().out.startswith("aadl_ext: no CUDA kernels, there is no GPU")


def test_progress_tells_of_every_file_and_objects_are_used_again(
    build: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nvcc, runtime = tmp_path / "bin" / "nvcc", tmp_path / "lib64" / "libcudart_static.a"
    for path in (nvcc, runtime):
        path.parent.mkdir()
        path.touch()
    nvcc.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n')
    nvcc.chmod(0o755)
    monkeypatch.chdir(SETUP.parent)
    monkeypatch.setattr(build, "cuda_toolkit", lambda: tmp_path)
    monkeypatch.setenv("AADL_EXT_CUDA", "auto")
    monkeypatch.setenv("AADL_EXT_CUDA_ARCHS", "90")
    objects = build.cuda_objects(tmp_path)
    first, *progress = capsys.readouterr().out.splitlines()
    count = len(list(Path("csrc/cuda").glob("*.cu")))
    assert first == "aadl_ext: CUDA kernels for 90 (AADL_EXT_CUDA_ARCHS)"
    assert len(progress) == count == len(objects) - 1
    assert progress[-1].startswith(f"aadl_ext: nvcc {count}/{count} ")
    assert objects[-1] == str(runtime)
    assert build.cuda_objects(tmp_path) == objects
    assert "nvcc" not in capsys.readouterr().out
