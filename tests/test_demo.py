"""The main job: what it reads, what it writes, and what it says when it cannot."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import aadl_ext
from aadl_ext.__main__ import main
from aadl_ext.demo import compare, data, parts, report
from aadl_ext.demo import run as running
from aadl_ext.demo.parts import (
    ANDERSON,
    AVERAGE,
    BASE,
    DEFAULT,
    LINE_SEARCH,
    MOMENTUM,
    MOMENTUM_DEFAULT,
    Run,
)

HEADER = (
    "Serial No.,GRE Score,TOEFL Score,University Rating,SOP,LOR ,CGPA,Research,Chance of Admit "
)
pytestmark = pytest.mark.xdist_group("demo")  # one demo for many tests
METHODS = {
    "full-batch": {BASE, DEFAULT, LINE_SEARCH},
    "mini-batch": {MOMENTUM, MOMENTUM_DEFAULT},
    "paper": {BASE, ANDERSON, AVERAGE},
}


def admissions_file() -> Path:
    """The paper's data, which is not part of the repository but may lie beside it."""
    for folder in Path(__file__).resolve().parents:
        file = folder / "shared" / "data" / "graduate_admissions.csv"
        if file.exists():
            return file
    pytest.skip("shared/data/graduate_admissions.csv is not beside the checkout")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of short runs, in this process."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        assert main(["demo", "--seeds", "2", "--out", str(out)]) == 0
    return out


def shorten(patch: pytest.MonkeyPatch) -> None:
    for name, length in (("full-batch", 20), ("mini-batch", 30), ("paper", 4)):
        patch.setitem(parts.LENGTHS, name, length)
    patch.setattr(running, "train_all", lambda tasks: map(running.train, tasks))  # as they are here


def test_demo_writes_every_curve_a_picture_and_a_page(finished: Path) -> None:
    content = json.loads((finished / "demo.json").read_text())
    runs = [Run(**run) for run in content["runs"]]
    found = {(run.part, run.method, run.seed) for run in runs}
    assert found == {(p, m, seed) for p, own in METHODS.items() for m in own for seed in (0, 1)}
    for run in runs:
        assert len(run.train) == len(run.valid) == len(run.evaluations) > 0
        assert np.isfinite([*run.train, *run.valid]).all()
        assert np.all(np.diff(run.evaluations) > 0)
        assert run.seconds > 0
        assert bool(run.stats) == (run.method in parts.ACCELERATED)
    assert {run.stats["steps"] for run in runs if run.method == AVERAGE} == {4 * 9}
    assert content["settings"]["versions"]["torch"] == torch.__version__
    assert (finished / "demo.png").read_bytes().startswith(b"\x89PNG")
    page = (finished / "demo.html").read_text()
    assert page.count("<section") == 3
    assert "<svg" in page
    assert not re.search(r"(src|href)=.?https?:", page)  # nothing is fetched


def test_the_page_opens_in_a_browser(finished: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on PATH")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path}", "--dump-dom", (finished / "demo.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", done.stdout)
    assert {method for own in METHODS.values() for method in own} <= set(cells)


def test_demo_is_redrawn_from_its_json_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "demo.json"
    copy.write_bytes((finished / "demo.json").read_bytes())
    assert main(["demo", "--redraw", str(copy)]) == 0
    assert (tmp_path / "demo.png").read_bytes() == (finished / "demo.png").read_bytes()
    table = capsys.readouterr().out
    assert all(method in table for own in METHODS.values() for method in own)
    assert main(["demo", "--redraw", str(copy), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {row["method"] for row in summary["paper"]["rows"]} == METHODS["paper"]
    copy.write_text("[]")
    assert main(["demo", "--redraw", str(copy)]) == 2
    assert "was not written by this demo" in capsys.readouterr().err


def test_equal_seeds_give_equal_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    for part in parts.parts(data.load(None)):
        for method in part.methods[1:]:
            first, second = (part.train(method, 3) for _ in range(2))
            assert (first.train, first.valid) == (second.train, second.valid)
            assert first.stats == second.stats


def test_methods_start_from_the_same_weights_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    # No accelerator does anything in the first evaluations, so all must agree bitwise.
    for name, length in (("full-batch", 1), ("mini-batch", 1), ("paper", 1)):
        monkeypatch.setitem(parts.LENGTHS, name, length)
    tiny = data.Regression("tiny", np.eye(50), np.arange(50.0), scale_target=True)
    for part in parts.parts(tiny):
        methods = [method for method in part.methods if method != LINE_SEARCH]
        assert len({part.train(method, 0).train[0] for method in methods}) == 1


def test_validation_and_looks_happen_at_judged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parts.LENGTHS, "mini-batch", 200)
    pending: list[bool] = []

    def at_a_look(optimizer: torch.optim.Optimizer) -> Any:
        pending.append(aadl_ext.get_accelerator(optimizer).pending)
        return settled(optimizer)

    settled = aadl_ext.settled
    monkeypatch.setattr(aadl_ext, "settled", at_a_look)
    parts.mini_batch(MOMENTUM_DEFAULT, 0)
    assert len(pending) == parts.LOOKS
    assert any(pending)  # else nothing was tested


def run_of(method: str, losses: list[float], seed: int) -> Run:
    counts = [10 * (i + 1) for i in range(len(losses))]
    return Run("mini-batch", method, seed, counts, losses, losses)


def compared(base: list[list[float]], other: list[list[float]]) -> compare.Row:
    part = parts.parts(data.load(None))[1]
    runs = [run_of(MOMENTUM, losses, seed) for seed, losses in enumerate(base)]
    runs += [run_of(MOMENTUM_DEFAULT, losses, seed) for seed, losses in enumerate(other)]
    return compare.rows(part, runs)[1]


def test_ratios_are_taken_seed_by_seed() -> None:
    row = compared([[4.0] * 4, [400.0] * 4], [[1.0] * 4, [100.0] * 4])
    assert row.train_ratio is not None
    assert row.train_ratio.mean == pytest.approx(0.25)
    assert row.reached == 0.25


def test_the_share_of_evaluations_is_that_of_the_first_look_below() -> None:
    assert compared([[9, 5, 1, 1, 1]] * 2, [[9, 1, 1, 1, 1]] * 2).reached == pytest.approx(0.4)
    assert compared([[9, 5, 1, 1, 1]] * 2, [[9, 9, 9, 9, 9]] * 2).reached is None


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ([[0.5], [0.51], [0.49]], "lower"),
        ([[2.0], [2.1], [1.9]], "higher"),
        ([[0.5], [2.0], [1.1]], "no clear difference"),
        ([[0.5], [0.5], [math.inf]], "diverges"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_one(
    other: list[list[float]], verdict: str
) -> None:
    row = compared([[1.0]] * 3, other)
    assert row.train_ratio is not None
    assert row.train_ratio.verdict == verdict


def test_it_is_said_where_nothing_is_gained() -> None:
    part = parts.parts(data.load(None))[1]
    runs = [
        run_of(method, [1.0], seed) for method in (MOMENTUM, MOMENTUM_DEFAULT) for seed in range(3)
    ]
    said = " ".join(compare.sentences(part, compare.rows(part, runs)))
    assert "No gain in training" in said
    assert "No gain in validation" in said


def test_split_is_disjoint_and_standardised_by_the_training_part() -> None:
    table = data.load(None)
    parts = data.split(table, seed=0)
    assert len(parts.train_y) == round(0.8 * 442)
    assert len(parts.train_y) + len(parts.valid_y) == 442
    torch.testing.assert_close(parts.train_x.mean(dim=0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.train_x.std(dim=0, correction=0), torch.ones(10))
    assert abs(float(parts.valid_x.mean())) > 1e-4
    rows = {tuple(row) for row in torch.cat([parts.train_x, parts.valid_x]).tolist()}
    assert len(rows) == 442


def test_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(size=(8, 3))
    mean, half = report.mean_and_interval(values)
    low, high = stats.t.interval(0.95, 7, values.mean(axis=0), stats.sem(values))
    np.testing.assert_allclose([mean - half, mean + half], [low, high])


def test_the_papers_file_is_read_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = data.load(admissions_file())
    assert table.features.shape == (500, 7)
    assert 0.3 < table.target.min() < table.target.max() < 1
    shorten(monkeypatch)
    arguments = ["--only", "paper", "--seeds", "1", "--out", str(tmp_path)]
    assert main(["demo", "--data", str(admissions_file()), *arguments]) == 0
    content = json.loads((tmp_path / "demo.json").read_text())
    assert content["settings"]["data"] == "graduate admissions"
    assert {run["part"] for run in content["runs"]} == {"paper"}


@pytest.mark.thorough  # they import torch anew
def test_processes_train_as_this_one_would(tmp_path: Path) -> None:
    assert main(["demo", "--only", "mini-batch", "--seeds", "1", "--out", str(tmp_path)]) == 0
    base, _ = json.loads((tmp_path / "demo.json").read_text())["runs"]
    assert base["train"] == pytest.approx(parts.mini_batch(MOMENTUM, 0).train, rel=1e-4)


def test_column_order_and_stray_blanks_in_the_header_do_not_matter(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).uniform(size=(60, 9)).round(3)
    lines = [HEADER, *(",".join(map(str, row)) for row in numbers)]
    mirrored = [",".join(reversed(line.split(","))) for line in lines]
    (tmp_path / "mirrored.csv").write_text("\n".join(mirrored))
    table = data.load(tmp_path / "mirrored.csv")
    np.testing.assert_array_equal(table.features, numbers[:, 1:8])
    np.testing.assert_array_equal(table.target, numbers[:, 8])


GOOD_ROW = "1,330,110,4,4.5,4.5,9.1,1,0.8"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([HEADER.replace("CGPA", "GPA"), GOOD_ROW], "no column CGPA; its header is: Serial No."),
        ([HEADER, *[GOOD_ROW] * 20], "has 20 rows of data; at least 50"),
        ([HEADER, GOOD_ROW, "1,two,3", GOOD_ROW], "line 3: expected numbers, got 1,two,3"),
        ([HEADER, GOOD_ROW.replace("0.8", "nan")], "line 2: a value is not finite"),
        ([], "(empty)"),
    ],
)
def test_unfit_files_are_refused_with_the_reason(
    content: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.csv"
    file.write_text("\n".join(content))
    assert main(["demo", "--data", str(file), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert str(file) in message
    assert reason in message
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        assert main(["demo", "--data", str(path)]) == 2
        assert f"cannot read {path}" in capsys.readouterr().err
