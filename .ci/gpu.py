"""Everything that needs a GPU, in two calls of under ten minutes each on a bare machine.

    python .ci/gpu.py check      # build, sanitizer, tests
    python .ci/gpu.py measure    # benchmarks

Needs nvcc, a CUDA build of torch, pytest and hypothesis in this Python, and nothing from the
network. Each part is a process of its own with a time of its own, so that a fault in one spoils no
other; what is left when the time of the call is over is not begun. What each part ended with is
written at once to ``research/results/gpu_check.json`` and ``gpu_measure.json``, figures to
``cuda.json`` and ``cuda_steps.json`` there, and all of them to ``$OUT`` where that is set.
``AADL=PATH`` names a checkout of AADL to compare with.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "research" / "results"
SECONDS = 570  # of a call
LAST_LINES = 15  # of the output of a part that failed
ARCH = "import torch; print('%d%d' % torch.cuda.get_device_capability())"


class Part(NamedTuple):
    """A command, and how long it may take."""

    name: str
    seconds: int
    command: list[str]


def pytest(*arguments: str) -> list[str]:
    """A run of tests, in which a warning that nobody has foreseen is shown, no failure."""
    shown = ["-v", "-W", "default", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *shown, *arguments]


def sanitized(tool: str) -> list[str]:
    """Our kernels alone, at small sizes."""
    options = ["--tool", tool, "--error-exitcode", "1", "--kernel-name", "kns=aadl"]
    small = pytest("tests/ops", "-k", "cuda and (5003 or (limits and bfloat16))")
    return ["compute-sanitizer", *options, *small]


def checks(archs: str) -> Iterator[Part]:
    """First what makes all others worthless if it fails; asked for when the build is done."""
    objects = [str(path) for path in ROOT.glob(f"build/temp*/cuda_{archs.replace(' ', '_')}")]
    yield Part("registers and stack", 20, [sys.executable, ".ci/cuda_limits.py", *objects])
    yield Part("loads under way", 60, [sys.executable, ".ci/loads_in_flight.py", *objects])
    if shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            yield Part(tool, 90, sanitized(tool))
    for path in sorted(path.relative_to(ROOT) for path in ROOT.glob("tests/ops/test_*.py")):
        yield Part(str(path), 60, pytest(str(path), "-k", "cuda"))
    for path in sorted(path.relative_to(ROOT) for path in ROOT.glob("tests/cuda/test_*.py")):
        yield Part(str(path), 120, pytest(str(path), "--durations", "5"))


def measurements() -> list[Part]:
    """The most telling first."""
    figures = ["--json", str(RESULTS / "cuda.json")]
    ops = (
        *("push_secant", "cross_products", "extrapolate_", "window_statistics", "add_sample_"),
        *("push_block", "gather", "scatter_", "squared_norm", "tsqr", "linalg.qr"),
    )
    kernels = [sys.executable, "benchmarks/cuda_kernels.py", *figures]
    parts = [Part(name, 40, [*kernels, "--op", name]) for name in ops]
    steps = [sys.executable, "benchmarks/cuda_steps.py", "--minutes", "4"]
    theirs = ["--aadl", os.environ["AADL"]] if "AADL" in os.environ else []
    return [*parts[:3], Part("whole steps", 260, [*steps, *theirs]), *parts[3:]]


def run(part: Part, seconds: float) -> dict[str, str | float]:
    """How it ended; its processes are gone then."""
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    print(f"== {part.name}", flush=True)
    try:
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return {"state": f"not started: {error}", "seconds": 0.0}
    try:
        output, _ = process.communicate(timeout=seconds)
        state = "passed" if process.returncode == 0 else f"failed ({process.returncode})"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        state = "out of time"
    print(output, flush=True)
    ended: dict[str, str | float] = {
        "state": state,
        "seconds": round(time.monotonic() - begin, 1),
    }
    lines = output.splitlines()
    return ended | {"end": "\n".join(lines[-1 if state == "passed" else -LAST_LINES :])}


def run_all(name: str, parts: Iterable[Part], begin: float, build: Part | None = None) -> int:
    """Run them, write how each ended as soon as that is known; returns how many did not pass."""
    ended: dict[str, dict[str, str | float]] = {}
    for part in chain([build] if build else [], parts):
        left = SECONDS - (time.monotonic() - begin)
        if left < min(part.seconds, 20):
            ended[part.name] = {"state": "not begun: no time", "seconds": 0.0}
        else:
            ended[part.name] = run(part, min(part.seconds, left))
        keep(name, ended)
        if part is build and ended[part.name]["state"] != "passed":
            break
    print(
        *(f"{x['state']:20} {x['seconds']:6.1f} s  {part}" for part, x in ended.items()), sep="\n"
    )
    return sum(x["state"] != "passed" for x in ended.values())


def keep(name: str, ended: dict[str, dict[str, str | float]]) -> None:
    """Write it, and copy all results where they are to go."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"gpu_{name}.json").write_text(json.dumps(ended, indent=1) + "\n")
    if out := os.environ.get("OUT"):
        for path in (*RESULTS.glob("gpu_*.json"), *RESULTS.glob("cuda*.json")):
            shutil.copy(path, out)


def main(asked: list[str]) -> int:
    """1 if a part did not pass."""
    if asked not in (["check"], ["measure"]):
        print(__doc__)
        return 2
    begin = time.monotonic()
    if "AADL_EXT_CUDA_ARCHS" not in os.environ:
        command = [sys.executable, "-c", ARCH]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            print(f"no GPU is seen by torch: {found.stderr.strip().splitlines()[-1]}")
            return 1
        os.environ["AADL_EXT_CUDA_ARCHS"] = found.stdout.strip()
    os.environ |= {"AADL_EXT_NATIVE": "1", "AADL_EXT_CUDA": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    build = Part("build", 300, command)
    parts = checks(os.environ["AADL_EXT_CUDA_ARCHS"]) if asked == ["check"] else measurements()
    return int(run_all(asked[0], parts, begin, build) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
