"""Each example of the gallery runs, and is shown in the documents with its picture."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

GALLERY = Path(__file__).resolve().parents[1] / "examples" / "gallery"
EXAMPLES = sorted(path for path in GALLERY.glob("*.py") if path.stem != "picture")
NEEDS = {"hugging_face": ["transformers", "accelerate"], "lightning_module": ["lightning"]}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    for package in NEEDS.get(example.stem, []):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    picture = tmp_path / "picture.svg"
    command = [sys.executable, str(example), "--quick", "--out", str(picture)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert " at the end" in done.stdout
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_shown(example: Path) -> None:
    assert 20 <= len(example.read_text().splitlines()) <= 70
    page = (GALLERY.parents[1] / "docs" / "gallery.md").read_text()
    assert f"examples/gallery/{example.name}" in page
    assert example.with_suffix(".svg").exists()
