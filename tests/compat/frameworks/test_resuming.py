"""Under each framework a run that is killed goes on from its last checkpoint bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training import same

# Of processes that are killed there are others: tests/distributed/test_example.py.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.thorough]
WORKER = Path(__file__).with_name("worker.py")
FRAMEWORKS = {  #: module by function of the worker
    "transformers": "transformers",
    "accelerate": "accelerate",
    "lightning": "lightning",
    "lightning_fabric": "lightning",
    "opacus": "opacus",
    "peft": "peft",
    "torch_distributed_checkpoint": "torch",
}


def work(framework: str, folder: Path, *death: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(WORKER), framework, str(folder), *death]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def end(framework: str, folder: Path) -> dict[str, Any]:
    process = work(framework, folder)
    assert process.returncode == 0, process.stderr[-3000:]
    return torch.load(folder / "end.pt")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_killed_run_goes_on_bit_for_bit(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(FRAMEWORKS[framework], exc_type=ImportError)
    whole = end(framework, tmp_path / "whole")
    assert len(whole["judged"]) > 2  # evaluations while an extrapolation was pending
    assert all(whole["judged"])
    # At step 12, the last checkpoint, one is pending; after step 14 there would be the next.
    deaths = [("step", "13"), ("save", "14")]
    if framework == "transformers":
        deaths.append(("rotation", "14"))
    for death in deaths:
        folder = tmp_path / death[0]
        process = work(framework, folder, *death)
        assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
        assert not (folder / "end.pt").exists()
        assert same(end(framework, folder)["model"], whole["model"])
