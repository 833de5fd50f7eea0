"""Each example of the gallery runs, and is shown in the documents with its picture."""

import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

GALLERY = Path(__file__).resolve().parents[1] / "examples" / "gallery"
EXAMPLES = sorted(path for path in GALLERY.glob("*.py") if path.stem != "picture")
STARTS_PROCESSES = ("data_parallel",)  # that import the program
RUN = [
    pytest.param(path, marks=[pytest.mark.thorough] * (path.stem in STARTS_PROCESSES))
    for path in EXAMPLES
]
NEEDS = {"hugging_face": ["transformers", "accelerate"], "lightning_module": ["lightning"]}


@pytest.mark.parametrize("example", RUN, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # of frameworks
def test_example_runs(
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in NEEDS.get(example.stem, []):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    picture = tmp_path / "picture.svg"
    command = [str(example), "--quick", "--out", str(picture)]
    if example.stem in STARTS_PROCESSES:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        command = [sys.executable, *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        said = done.stdout
    else:  # as a program would, but without the seconds that it takes to import torch
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.syspath_prepend(GALLERY)
        monkeypatch.delitem(sys.modules, "picture", raising=False)
        with torch.random.fork_rng():
            runpy.run_path(str(example), run_name="__main__")
        said = capsys.readouterr().out
    assert " at the end" in said
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_shown(example: Path) -> None:
    assert 20 <= len(example.read_text().splitlines()) <= 70
    page = (GALLERY.parents[1] / "docs" / "gallery.md").read_text()
    assert f"examples/gallery/{example.name}" in page
    assert example.with_suffix(".svg").exists()
