"""The script that runs all that needs a GPU, with stubs in the place of its parts."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "gpu.py"


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with folders of its own for results."""
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return module


def stub(gpu: ModuleType, name: str, code: str, seconds: int = 30) -> object:
    return gpu.Part(name, seconds, [sys.executable, "-c", code])


def gone(process: int) -> bool:
    """Whether it has ended, also if nobody has asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except OSError:
        return True


def test_a_part_that_fails_crashes_hangs_or_is_missing_hides_no_other(
    gpu: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    child = tmp_path / "child"
    hang = (
        "import subprocess, sys, time; print('begun', flush=True); "
        f"p = subprocess.Popen(['sleep', '600']); open({str(child)!r}, 'w').write(str(p.pid)); "
        "time.sleep(600)"
    )
    parts = [
        stub(gpu, "good", "print('12 passed')"),
        stub(gpu, "bad", "print('why'); raise SystemExit(3)"),
        stub(gpu, "crash", f"import os; os.kill(os.getpid(), {int(signal.SIGABRT)})"),
        stub(gpu, "hang", hang, 2),
        gpu.Part("missing", 30, ["/nonexistent/tool"]),
        stub(gpu, "last", "print('done')"),
    ]
    assert gpu.run_all("check", parts, time.monotonic()) == 4
    ended = json.loads((tmp_path / "results" / "gpu_check.json").read_text())
    states = {name: part["state"] for name, part in ended.items()}
    assert states.pop("missing").startswith("not started: ")
    assert states == {
        "good": "passed",
        "bad": "failed (3)",
        "crash": "failed (-6)",
        "hang": "out of time",
        "last": "passed",
    }
    assert ended["good"]["end"] == "12 passed"
    assert "why" in ended["bad"]["end"]
    assert "begun" in ended["hang"]["end"]
    assert (tmp_path / "out" / "gpu_check.json").read_text() == json.dumps(ended, indent=1) + "\n"
    table = capfd.readouterr().out.splitlines()[-len(parts) :]
    assert [line.split()[-1] for line in table] == list(ended)
    assert gone(int(child.read_text()))  # what it started has ended with it


def test_results_are_there_while_later_parts_run(gpu: ModuleType, tmp_path: Path) -> None:
    place = tmp_path / "out" / "gpu_measure.json"
    seen = stub(gpu, "second", f"import json; print(*json.load(open({str(place)!r})))")
    assert gpu.run_all("measure", [stub(gpu, "first", ""), seen], time.monotonic()) == 0
    assert json.loads(place.read_text())["second"]["end"] == "first"


def test_what_has_no_time_left_is_not_begun_and_says_so(gpu: ModuleType, tmp_path: Path) -> None:
    begin = time.monotonic() - gpu.SECONDS + 5
    assert gpu.run_all("check", [stub(gpu, "long", "raise SystemExit(9)", 60)], begin) == 1
    ended = json.loads((tmp_path / "results" / "gpu_check.json").read_text())
    assert ended["long"]["state"] == "not begun: no time"


def test_nothing_runs_with_kernels_that_were_not_built(gpu: ModuleType, tmp_path: Path) -> None:
    build, part = stub(gpu, "build", "raise SystemExit(1)"), stub(gpu, "tests", "")
    assert gpu.run_all("check", [part], time.monotonic(), build) == 1
    ended = json.loads((tmp_path / "results" / "gpu_check.json").read_text())
    assert list(ended) == ["build"]


def test_the_parts_are_there_and_fit_into_a_call(gpu: ModuleType) -> None:
    for parts in (list(gpu.checks("90")), gpu.measurements()):
        names = [part.name for part in parts]
        assert len(set(names)) == len(names)
        for part in parts:
            paths = [ROOT / word for word in part.command if word.endswith(".py")]
            assert all(path.exists() for path in paths), part
    assert {p.name for p in gpu.checks("90")} >= {
        "tests/ops/test_push_secant.py",
        "tests/cuda/test_steps_do_not_wait.py",
    }


def test_it_says_what_it_is_asked_for_and_that_there_is_no_gpu() -> None:
    run = [sys.executable, str(SCRIPT)]
    unknown = subprocess.run([*run, "all"], capture_output=True, text=True, check=False)
    assert (unknown.returncode, "gpu.py check" in unknown.stdout) == (2, True)
    hidden = {k: v for k, v in os.environ.items() if k != "AADL_EXT_CUDA_ARCHS"}
    hidden["CUDA_VISIBLE_DEVICES"] = ""
    none = subprocess.run([*run, "check"], capture_output=True, text=True, check=False, env=hidden)
    assert none.returncode == 1
    assert none.stdout.startswith("no GPU is seen by torch: ")


def test_a_warning_that_nobody_has_foreseen_is_shown_and_no_failure(
    gpu: ModuleType, tmp_path: Path
) -> None:
    test = tmp_path / "test_warns.py"
    test.write_text("import warnings\n\ndef test_warns():\n    warnings.warn('of CUDA')\n")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nfilterwarnings = ["error"]\n'
    )
    command = [*gpu.pytest(str(test)), "--rootdir", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "UserWarning: of CUDA" in done.stdout
