"""Find and run the scripts of the paper's experiments, which are part of a checkout only."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

PROBLEMS = ("admissions", "burgers2d", "burgers100d", "imagenet")
FOLDER = Path("examples") / "paper"


def find(problem: str) -> Path | None:
    """The script of a problem: in the working directory, or beside an editable install."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[1]):
        script = root / FOLDER / f"{problem}.py"
        if script.exists():
            return script
    return None


def reproduce(problem: str, arguments: list[str]) -> int:
    """Run an experiment with the script's own arguments; returns the exit status."""
    script = find(problem)
    if script is None:
        sys.stderr.write(
            f"error: {FOLDER / problem}.py is neither in {Path.cwd()} nor beside the installed "
            "package: the experiments are not part of the wheel. git clone the repository and "
            f"call this in its folder: python -m aadl_ext reproduce {problem}\n"
        )
        return 2
    sys.path.insert(0, str(script.parent))  # the scripts share modules
    sys.argv = [f"aadl_ext reproduce {problem}", *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: this experiment needs {error.name}, which is not installed: "
            'pip install "aadl_ext[demo]"\n'
        )
        return 2
    finally:
        sys.path.remove(str(script.parent))
    return 0
