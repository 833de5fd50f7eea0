"""Links of the documents lead somewhere, and results are a small part of what is tracked."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("research/*.md")]
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
