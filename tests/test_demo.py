"""The main job: what it reads, what it writes, and what it says when it cannot."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import aadl_ext
from aadl_ext.__main__ import main
from aadl_ext.demo import data, report, training
from aadl_ext.demo.training import METHODS

HEADER = (
    "Serial No.,GRE Score,TOEFL Score,University Rating,SOP,LOR ,CGPA,Research,Chance of Admit "
)


def admissions_file() -> Path:
    """The paper's data, which is not part of the repository but may lie beside it."""
    for folder in Path(__file__).resolve().parents:
        file = folder / "shared" / "data" / "graduate_admissions.csv"
        if file.exists():
            return file
    pytest.skip("shared/data/graduate_admissions.csv is not beside the checkout")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--seeds", "2", "--epochs", "4", "--out", str(out)]) == 0
    return out


def test_demo_writes_every_curve_and_a_picture(finished: Path) -> None:
    content = json.loads((finished / "demo.json").read_text())
    runs = {(run["method"], run["seed"]): run for run in content["runs"]}
    assert set(runs) == {(method, seed) for method in METHODS for seed in (0, 1)}
    for run in runs.values():
        assert len(run["train"]) == len(run["valid"]) == 4
        assert np.isfinite(run["train"]).all()
        assert run["step_ms"] > run["optimizer_ms"] > 0
    averaged = runs[METHODS[2], 0]["stats"]
    steps = 4 * -(-round(0.8 * 442) // training.BATCH)
    assert averaged["steps"] == averaged["pairs"] == steps
    assert averaged["extrapolations"] > 0
    assert content["versions"]["torch"] == torch.__version__
    assert (finished / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_demo_is_redrawn_from_its_json_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "demo.json"
    copy.write_bytes((finished / "demo.json").read_bytes())
    assert main(["demo", "--redraw", str(copy)]) == 0
    assert (tmp_path / "demo.png").read_bytes() == (finished / "demo.png").read_bytes()
    table = capsys.readouterr().out
    assert all(method in table for method in METHODS)


def test_equal_seeds_give_equal_runs() -> None:
    table = data.load(None)
    for method in METHODS:
        first, second = (training.train(table, method, seed=3, epochs=2) for _ in range(2))
        assert (first.train, first.valid, first.stats) == (second.train, second.valid, second.stats)


def test_methods_start_from_the_same_weights_and_batches() -> None:
    # The first extrapolation is at k = 2, so one step of each method must agree bitwise.
    table = data.Regression("tiny", np.eye(50), np.arange(50.0), scale_target=True)
    losses = {training.train(table, method, seed=0, epochs=1).train[0] for method in METHODS}
    assert len(losses) == 1


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


def test_the_papers_file_is_read_and_trained_on(tmp_path: Path) -> None:
    table = data.load(admissions_file())
    assert table.features.shape == (500, 7)
    assert 0.3 < table.target.min() < table.target.max() < 1
    arguments = ["--seeds", "1", "--epochs", "2", "--out", str(tmp_path)]
    assert main(["demo", "--data", str(admissions_file()), *arguments]) == 0
    assert json.loads((tmp_path / "demo.json").read_text())["data"] == "graduate admissions"


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


def test_missing_demo_packages_are_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert 'pip install "aadl_ext[demo]"' in capsys.readouterr().err


def test_info_tells_versions_and_why_a_backend_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["aadl_ext"].strip() == aadl_ext.__version__
    assert lines["torch"].strip() == torch.__version__
    assert "available" in lines["backend: pytorch"]


def test_module_runs_from_the_shell_without_the_demo_packages() -> None:
    # The library itself must not import what only the demo needs.
    code = (
        "import sys\n"
        "for name in ('sklearn', 'matplotlib', 'tqdm', 'rich', 'scipy'): sys.modules[name] = None\n"
        "import aadl_ext, runpy\n"
        "sys.argv = ['aadl_ext', 'info']\n"
        "runpy.run_module('aadl_ext', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "aadl_ext" in done.stdout
