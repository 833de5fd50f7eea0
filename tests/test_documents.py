"""Links of the documents lead somewhere, their code runs, results are few, figures are measured."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import aadl_ext

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("research/*.md")),
]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: what a block may import that need not be installed
FRAMEWORKS = ("transformers", "accelerate", "lightning", "schedulefree", "wandb", "tensorboard")
IMPORT = r"^(import|from) (torch\.utils\.)?{}\b"
LINK = re.compile(r"\]\(([^)\s]+)\)")
RESULTS = {".json", ".jsonl", ".png"}
MOST = 0.05  #: share of the lines


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text()) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{link} in {document}"
        assert not anchor or anchor in anchors(target), f"{link} in {document}"


def blocks() -> list[tuple[str, str]]:
    """The Python code of all documents, each block with its place."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for match in BLOCK.finditer(text):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{document.relative_to(ROOT)}:{line}", match[1]))
    return found


def names(folder: Path) -> dict[str, Any]:
    """What the documents call the reader's own."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 3), torch.randn(64, 1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    class WithLoss(nn.Module):  # as the Trainer of transformers takes it
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.mse_loss(self.layers(x), labels)}

    return {
        "torch": torch,
        "aadl_ext": aadl_ext,
        "model": model,
        "model_with_loss": WithLoss(),
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "loader": DataLoader(TensorDataset(x, y), 8),
        "dataset": [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)],
        "loss_fn": nn.functional.mse_loss,
        "evaluate": lambda network: float(nn.functional.mse_loss(network(x), y).detach()),
        "folder": folder,
    }


@pytest.mark.parametrize(("place", "code"), blocks(), ids=[place for place, _ in blocks()])
@pytest.mark.filterwarnings("default")  # of frameworks
def test_code_runs(place: str, code: str, tmp_path: Path) -> None:
    for framework in FRAMEWORKS:
        if re.search(IMPORT.format(framework), code, re.MULTILINE):
            pytest.importorskip(framework, reason=f"{framework} is not installed")
    if place.startswith("docs/distributed.md"):
        pytest.skip("needs several processes; tests/distributed has them")
    exec(compile(code, place, "exec"), names(tmp_path))


def test_every_result_is_cited() -> None:
    cited = {
        (document.parent / link).resolve()
        for document in DOCUMENTS
        for link in LINK.findall(document.read_text())
    }
    found = {path for path in map(Path.resolve, tracked()) if is_result(path)}
    assert found <= cited, sorted(found - cited)


def test_results_are_a_small_part_of_the_lines() -> None:
    lines = {path: path.read_bytes().count(b"\n") for path in tracked() if path.is_file()}
    of_results = sum(count for path, count in lines.items() if is_result(path))
    assert of_results <= MOST * sum(lines.values())


def is_result(path: Path) -> bool:
    return "results" in path.parts and path.suffix in RESULTS


def tracked() -> list[Path]:
    """The files in git's index."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git cannot list the files: {error}")
    return [ROOT / name for name in listed.stdout.split("\0") if name]
