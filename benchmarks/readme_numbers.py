"""The README's table, from what the convergence suite has measured.

    python benchmarks/readme_numbers.py [--write]

prints it, or puts it into README.md between its marks; a test compares the two.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "research" / "results"
BEGIN, END = "<!-- numbers: begin -->\n", "<!-- numbers: end -->\n"
LINES = [  # of the table: file, regime and method there, what is said of them
    ("convergence_full_batch", "full batch", "newton", "full batch", "accelerated"),
    ("convergence", "mini-batch 16 and up", "newton", "batches of 16 to 256", "accelerated"),
    ("convergence", "mini-batch 16 and up", "null", "", "not, batches in another order"),
    ("convergence", "batch 8", "newton", "batches of 8", "accelerated"),
    ("convergence", "batch 8", "null", "", "not, batches in another order"),
]


def table() -> str:
    """In Markdown."""
    lines = [
        "| | | evaluations: median, 90 % of runs | slower than the base [95 %] "
        "| training loss | validation loss |",
        "|---|---|---|---|---|---|",
    ]
    for file, regime, method, name, said in LINES:
        rows: list[dict[str, Any]] = json.loads((FOLDER / f"{file}.json").read_text())["rows"]
        (row,) = (x for x in rows if (x["regime"], x["method"]) == (regime, method))
        lines.append(f"| {name} | {said} | {_cells(row)} |")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> str:
    low, high = wilson(row["> 1.02"], row["runs"])
    return " | ".join(
        [
            f"{_times(row['median'])}, {_times(row['90 %'])}",
            f"{row['> 1.02']} of {row['runs']} runs [{low:.0%}, {high:.0%}]",
            _times(row["final loss"]),
            _times(row["validation"]),
        ]
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2f}"


def wilson(count: int, runs: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    z = 1.959964
    share, spread = count / runs, z * z / runs
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / runs + spread / runs / 4)
    return max(middle - half, 0.0), middle + half


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into README.md")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
