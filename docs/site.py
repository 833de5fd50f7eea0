"""Hook of mkdocs: files outside docs/ that pages show or link to are part of the site.

On disk and on GitHub a page in docs/ links to ``../research/...``; in the site that file lies
beside the page, and the link is shortened.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "research/*.md", "research/results/**/*.*",
           "examples/**/*.*")  # fmt: skip
LEFT_OUT = re.compile(r"_runs\.jsonl$|\.html$|__pycache__")
PROGRAM = re.compile(r"^\[[\w.]+\.py\]\(([^)]+)\)$", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth):<code>~?")  # of docstrings, which name things by it
SHIM = re.compile(r'<script src="https://[^"]*iframe-worker/shim"></script>')
LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")  # none with a scheme


def on_files(files: Any, config: Any) -> Any:
    """Add them."""
    from mkdocs.structure.files import File

    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and not LEFT_OUT.search(name):
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links from a place in the repository become links between places in the site.

    A link to a program that stands alone becomes the program.
    """
    source = page.file.src_uri
    inside = (ROOT / "docs" / source).exists()
    before = posixpath.dirname(f"docs/{source}" if inside else source)
    now = posixpath.dirname(source) or "."

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(before, match[1])).removeprefix("docs/")
        return f"]({posixpath.relpath(target, now)}{match[2] or ''})"

    def shown(match: re.Match[str]) -> str:
        path = ROOT / posixpath.normpath(posixpath.join(before, match[1]))
        return f'```python title="{path.name}"\n{path.read_text().rstrip()}\n```'

    return LINK.sub(moved, PROGRAM.sub(shown, markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Without roles of Sphinx."""
    return ROLE.sub("<code>", html)


def on_post_page(output: str, **_: Any) -> str:
    """Nothing is fetched from elsewhere: our own stand-in for a worker."""
    own = Path(__file__).with_name("search_from_disk.js").read_text()
    return SHIM.sub(lambda _: f"<script>{own}</script>", output)
