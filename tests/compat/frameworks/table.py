"""Writes docs/compatibility.md from what `make compat` found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "research" / "results" / "compat.json"
TEXT = """# Works with

Made by `make compat` from [what it found](../research/results/compat.json) with torch {torch}; what
to write for each framework is in [training.md](training.md).

## Frameworks

Train, evaluate, save; killed (`kill -9`) in the middle of a step and in the middle of a save;
resumed from the last whole checkpoint: the weights at the end are those of the uninterrupted run,
bit for bit, and no evaluation sees an extrapolation that nobody has judged.

| framework | version | resumes bit for bit |
|---|---|---|
{frameworks}

Wrappers and adapters of frameworks:

| | works |
|---|---|
{wrappers}

## Optimizers

Loss over all of scikit-learn's digits after 60 steps on mini-batches of 128, at judged weights,
with the default method: as a multiple of the bare optimizer's, geometric mean over three seeds.
More than 1.1 fails the test.

| optimizer | version | loss, accelerated over bare |
|---|---|---|
{optimizers}
"""


def main() -> None:
    found = json.loads(RESULTS.read_text())
    pins = [*(ROOT / "requirements.txt").open(), *(ROOT / "requirements-compat.txt").open()]
    versions = dict(line.split(";")[0].strip().split("==") for line in pins if "==" in line)

    def row(case: str, result: dict[str, Any], module: str) -> str:
        passed = f"{result['ratio']:.2f}" if "ratio" in result else "yes"
        value = passed if result["outcome"] == "passed" else result["outcome"]
        reason = f": {result['reason']}" if "reason" in result else ""
        return f"| {case} | {versions.get(module, '')} | {value}{reason} |"

    resumed = found["test_a_killed_run_goes_on_bit_for_bit"]
    losses = found["test_the_loss_is_not_worse"]
    frameworks = [row(x.replace("_", "."), r, x.split("_")[0]) for x, r in resumed.items()]
    optimizers = [row(x, r, x.split(".")[0]) for x, r in losses.items()]
    wrappers = [
        f"| {test.removeprefix('test_').replace('_', ' ')}{case and ', ' + case} "
        f"| {'yes' if r['outcome'] == 'passed' else r.get('reason', r['outcome'])} |"
        for test, cases in found.items()
        if cases not in (resumed, losses)
        for case, r in cases.items()
    ]
    tables = {"frameworks": frameworks, "wrappers": wrappers, "optimizers": optimizers}
    text = TEXT.format(torch=versions["torch"], **{x: "\n".join(y) for x, y in tables.items()})
    (ROOT / "docs" / "compatibility.md").write_text(text)


if __name__ == "__main__":
    main()
