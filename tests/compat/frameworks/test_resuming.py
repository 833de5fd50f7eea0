"""Under each framework a run that is killed goes on from its last checkpoint bit for bit."""

from __future__ import annotations

import os
import signal
import socket
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


def two_processes(folder: Path, *death: str) -> list[int]:
    """The Trainer under DDP, of which the first rank may die; how they end."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1])}
    command = [sys.executable, "-W", "ignore", str(WORKER), "transformers", str(folder)]
    processes = []
    for rank, arguments in (("0", death), ("1", ())):
        its = {**os.environ, **place, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
        processes.append(
            subprocess.Popen([*command, *arguments], env=its, stderr=subprocess.DEVNULL)
        )
    return [process.wait(timeout=300) for process in processes]


def test_two_processes_go_on_bit_for_bit_after_one_was_killed(tmp_path: Path) -> None:
    pytest.importorskip("transformers", exc_type=ImportError)
    assert two_processes(tmp_path / "whole") == [0, 0]
    whole = torch.load(tmp_path / "whole" / "end0.pt")
    assert len(whole["judged"]) > 2
    assert all(whole["judged"])
    for death in ("save", "rotation"):
        folder = tmp_path / death
        first, second = two_processes(folder, death, "14")
        assert first == -signal.SIGKILL
        assert second != 0
        assert two_processes(folder) == [0, 0]
        for rank in (0, 1):
            assert same(torch.load(folder / f"end{rank}.pt")["model"], whole["model"])
        assert len(list(folder.glob("checkpoint-*/aadl_ext*"))) == 1  # the first rank's


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
