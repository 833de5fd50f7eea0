"""The README is short, and its numbers are those of committed results."""

import re
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from aadl_ext import SubspaceNewton, accelerate, get_accelerator

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme_numbers  # noqa: E402


def test_table_is_what_was_measured() -> None:
    begin, end = readme_numbers.BEGIN, readme_numbers.END
    assert README.split(begin)[1].split(end)[0] == readme_numbers.table(), (
        "python benchmarks/readme_numbers.py --write"
    )


def test_there_are_no_other_figures() -> None:
    begin, end = readme_numbers.BEGIN, readme_numbers.END
    before, rest = README.split(begin)
    text = re.sub(r"```.*?```", "", before + rest.split(end)[1], flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|arXiv:[\d.]+|[\d.]+ vectors", "", text)  # these are tested below
    assert re.findall(r"\d*\.\d+|\d+ ?%|\d+ times", text) == []


def test_interval_is_wilsons() -> None:
    for count, runs in ((0, 12), (6, 299), (163, 747)):
        expected = stats.binomtest(count, runs).proportion_ci(method="wilson")
        assert readme_numbers.wilson(count, runs) == pytest.approx(tuple(expected))


def test_memory_is_what_is_held() -> None:
    for method, said in (
        (SubspaceNewton(), "the\n  memory for {} vectors"),
        (SubspaceNewton.memory_light(), "({} with `SubspaceNewton.memory_light()`,"),
        (SubspaceNewton.sketched(), "{} vectors with `SubspaceNewton.sketched()`)"),
    ):
        parameter = torch.nn.Parameter(torch.zeros(1 << 22))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        accelerate(optimizer, method)
        for step in range(25):  # two blocks, so that every buffer is there
            parameter.grad = torch.full_like(parameter, 1.0 / (step + 1))
            optimizer.step()
        vectors = get_accelerator(optimizer).stats.bytes_held / parameter.nbytes
        assert said.format(f"{round(2 * vectors) / 2:g}") in README


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130
