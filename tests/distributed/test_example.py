"""The example of FSDP2, uninterrupted and with a rank that is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import aadl_ext

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp2.py"
pytestmark = [pytest.mark.xdist_group("example of ranks"), pytest.mark.thorough]
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


def losses(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("step")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return finish(start(tmp_path_factory.mktemp("whole"), 2))


def kill_the_second_rank(folder: Path, moment: str, checkpoints: int) -> list[str]:
    """Lines of the first, which ends by itself, with an error."""
    first, second = start(folder, 2)
    assert first.stdout is not None
    seen: list[str] = []
    for line in first.stdout:
        seen.append(line.strip())
        if seen[-1].startswith(moment) and seen.count("saving") >= checkpoints:
            second.send_signal(signal.SIGKILL)
            break
    began = time.monotonic()
    _, errors = first.communicate(timeout=120)
    assert time.monotonic() - began < 90  # the timeout of the group is 60
    assert first.returncode != 0
    assert "RuntimeError" in errors or "DistBackendError" in errors
    second.communicate(timeout=60)
    assert second.returncode == -signal.SIGKILL
    return losses(seen)


def test_others_end_when_a_rank_is_killed_and_the_last_checkpoint_resumes(
    tmp_path: Path, whole: list[str]
) -> None:
    expected = losses(whole)
    assert whole[-1].startswith("extrapolations")
    in_a_step = kill_the_second_rank(tmp_path / "run", "step 25", 2)
    assert in_a_step == expected[: len(in_a_step)]
    shutil.copytree(tmp_path / "run", tmp_path / "one")

    in_a_save = kill_the_second_rank(tmp_path / "run", "saving", 1)
    assert in_a_save == expected[20 : 20 + len(in_a_save)]  # bit for bit, and not from the start

    again = finish(start(tmp_path / "run", 2))
    assert 4 <= len(losses(again)) <= 14
    assert losses(again) == expected[-len(losses(again)) :]
    assert again[-1] == whole[-1]

    alone = [line.split() for line in losses(finish(start(tmp_path / "one", 1)))]
    assert len(alone) == 14
    for found, wanted in zip(alone, expected[-14:], strict=True):
        assert found[:3] == wanted.split()[:3]
        assert float(found[3]) == pytest.approx(float(wanted.split()[3]), rel=1e-4)
