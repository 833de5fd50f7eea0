"""The example of FSDP2, uninterrupted and with a rank that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import aadl_ext

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp2.py"
pytestmark = pytest.mark.xdist_group("example of ranks")
OPTIONS = "--steps 34 --batch 16 --save-every 10 --timeout 60"


def start(folder: Path, ranks: int) -> list[subprocess.Popen[str]]:
    """The processes of a run, without torchrun, which would end them all."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(aadl_ext.__file__).parents[1]),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
    }
    command = [sys.executable, str(EXAMPLE), "--folder", str(folder), *OPTIONS.split()]
    return [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Lines of the first rank, once all have ended well."""
    told = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, told, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return told[0][0].splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return finish(start(tmp_path_factory.mktemp("whole"), 2))


@pytest.mark.parametrize("moment", ["step 25", "saving"])
def test_others_end_when_a_rank_is_killed_and_the_last_checkpoint_resumes(
    tmp_path: Path, whole: list[str], moment: str
) -> None:
    assert whole[-1].startswith("extrapolations")
    processes = start(tmp_path, 2)
    first, second = processes
    assert first.stdout is not None
    seen, checkpoints = [], 0
    for line in first.stdout:
        seen.append(line.strip())
        checkpoints += seen[-1] == "saving"
        if seen[-1].startswith(moment) and checkpoints >= 2:
            second.send_signal(signal.SIGKILL)
            break
    began = time.monotonic()
    _, errors = first.communicate(timeout=120)
    assert time.monotonic() - began < 90  # the timeout of the group is 60
    assert first.returncode != 0
    assert "RuntimeError" in errors or "DistBackendError" in errors
    second.communicate(timeout=60)
    assert second.returncode == -signal.SIGKILL

    again = finish(start(tmp_path, 2))
    steps = [line for line in again if line.startswith("step")]
    assert 0 < len(steps) < 34  # it did not begin anew
    expected = [line for line in whole if line.startswith("step")]
    assert steps == expected[-len(steps) :]  # bit for bit
    assert again[-1] == whole[-1]


def test_it_resumes_on_another_number_of_ranks(tmp_path: Path, whole: list[str]) -> None:
    processes = start(tmp_path, 2)
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if line.startswith("step 21"):
            break
    for process in processes:
        process.kill()
        process.communicate()
    again = [line.split() for line in finish(start(tmp_path, 1)) if line.startswith("step")]
    expected = [line.split() for line in whole if line.startswith("step")][-len(again) :]
    assert 0 < len(again) <= 14
    for found, wanted in zip(again, expected, strict=True):
        assert found[:3] == wanted[:3]
        assert float(found[3]) == pytest.approx(float(wanted[3]), rel=1e-4)
