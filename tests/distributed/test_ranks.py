"""Trainings over 2 and 4 processes, compared with one: ``worker.py`` runs them, a launch a size."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from worker import CASES, COMPARED, RESUMED, STEPS, THOROUGH

import aadl_ext

WORKER = Path(__file__).with_name("worker.py")
pytestmark = pytest.mark.xdist_group("ranks")  # a launch serves many tests


@functools.cache  # also of a launch that failed
def launched(ranks: int) -> tuple[list[dict[str, Any]], str]:
    """What each rank has to tell of its cases, or how they failed.

    A launch in which a rank dies of a signal is made once more: threads of gloo may use what is
    gone (seen in a program without aadl_ext, too). Kernels are tested under AddressSanitizer.
    """
    told, error = launch(ranks)
    if "terminated with signal" in error:
        sys.stderr.write(error)
        told, error = launch(ranks)
    return told, error


def launch(ranks: int) -> tuple[list[dict[str, Any]], str]:
    """What each rank tells, or how they ended."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(aadl_ext.__file__).parents[1]),
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(WORKER), folder, str(ranks)]
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        if run.returncode != 0:
            return [], f"ended with {run.returncode}: {run.stderr[-5000:]}"
        files = [Path(folder, f"{ranks}-{rank}.json") for rank in range(ranks)]
        return [json.loads(file.read_text()) for file in files], ""


def results(name: str, ranks: int) -> list[dict[str, Any]]:
    """Of one case, of each rank."""
    if ranks > 2 and not THOROUGH:
        pytest.skip("more than two ranks are --thorough")
    told, error = launched(ranks)
    assert not error, error
    found = [every[name] for every in told]
    for result in found:
        assert "failed" not in result, result["failed"]
    return found


def result(name: str, ranks: int = 2) -> dict[str, Any]:
    """The same, where all ranks tell the same."""
    first, *others = results(name, ranks)
    assert all(other == first for other in others)
    return first


def each(case: str) -> pytest.MarkDecorator:
    """Of the cases whose names begin so, the last word."""
    kinds = [name.split()[-1] for name in CASES if name.startswith(case)]
    return pytest.mark.parametrize("kind", dict.fromkeys(kinds))


@pytest.mark.parametrize(
    ("name", "ranks"), [(name, ranks) for name in COMPARED for ranks in CASES[name][0]]
)
def test_the_run_is_that_of_one_process_and_all_ranks_have_the_same_bits(
    name: str, ranks: int
) -> None:
    found = result(name, ranks)
    assert found["error"] <= (1e-5 if "float32" in name else 1e-10)
    assert found["same"]
    assert found["verdicts"]
    assert found["accepted"] > 2
    assert (found["averaged"] > 10) == name.endswith("averaged")
    assert found.get("active", True)


@each("collectives")
def test_a_step_that_needs_figures_makes_one_collective_of_a_few_kilobytes(kind: str) -> None:
    found = result(f"collectives {kind}")
    calls = found["calls"]
    if kind == "newton":  # blocks of four: the last step of one takes a step, the next judges it
        assert set(calls) == {0, 1}
        assert sum(calls) <= len(calls) / 2 + 1
    elif kind == "anderson":  # the new point is judged after every fifth, and by the next gradient
        assert set(calls) == {1, 2}
        assert sum(calls[-20:]) == 28
    elif kind == "exact":  # gradients are watched; then the last point is judged and a step taken
        assert calls[:4] == [0, 0, 1, 1]
        assert set(calls[4:]) == {2}
    else:  # and the window that has it
        assert set(calls[5:]) == {2, 3}
    # Quasi-Newton steps: 200 rows by four vectors.
    assert 0 < max(found["bytes"]) < (7000 if kind == "exact" else 2000)
    ranks, most, mean = found["planned"]
    assert ranks == 2
    assert most == pytest.approx(found["most"], rel=0.1)
    assert mean == pytest.approx(sum(calls[-20:]) / 20, rel=0.1)
    assert found["held"] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("bad gradients")])
def test_a_gradient_that_is_not_finite_on_one_rank_counts_on_all(name: str) -> None:
    found, kind = result(name), name.rsplit(maxsplit=1)[-1]
    assert found["same"]
    assert found["finite"]
    assert found["bad"] == 5
    if (
        kind == "exact"
    ):  # a point nearer to the last is tried, but by the steps of blocks after that
        assert sum(found["rejected"].values()) < 5
        assert found["accepted"] > 5
    elif "pending" in name:
        assert found["rejected"]["nonfinite"] == 5
    else:  # Anderson acceleration looks at steps, and this base optimizer makes finite ones
        assert found["skipped"] == ({"nonfinite": 5} if kind == "newton" else {})
        assert found["accepted"] > 0


@each("moved")
def test_a_move_of_one_rank_from_outside_counts_on_all(kind: str) -> None:
    found = result(f"moved {kind}")
    assert found["same"]
    assert found["moves"] == (2 if kind == "exact" else 3)  # and it ends quasi-Newton steps
    assert found["restarts"]["moved_outside"] == found["dropped"] == found["moves"]


@each("losses")
@pytest.mark.parametrize("parallel", ["fsdp2", "ddp"])
def test_the_mean_loss_over_ranks_counts(kind: str, parallel: str) -> None:
    found = result(f"losses {parallel} {kind}")
    assert found["error"] <= 1e-10
    assert found["same"]
    assert found["verdicts"]
    assert 0 < found["accepted"] < found["extrapolations"]
    assert found["calls"] > STEPS


@each("averaged from outside")
def test_averages_of_the_parameters_are_a_move_on_all_ranks_at_once(kind: str) -> None:
    found = result(f"averaged from outside {kind}")
    assert found["same"]
    assert len(found["met"]) == 13
    assert all(found["met"])
    assert found["moved"] > 0
    assert found["accepted"] > 2
    assert found["finite"]


@each("changes")
def test_parameters_that_change_on_one_rank_begin_a_new_history_on_all(kind: str) -> None:
    found = result(f"changes {kind}")
    assert found["same"]
    assert max(found["steps"]) <= 5  # until all know of it
    assert found["fits"]
    assert found["still"]
    assert found["accepted"] > 0


@each("uneven")
def test_after_uneven_inputs_ranks_go_on_alike_with_the_states_of_one(kind: str) -> None:
    found = result(f"uneven {kind}")
    assert not found["before"]
    assert found["same"]
    assert found["accepted"] > 2


@each("settles")
def test_a_pending_step_is_set_aside_on_all_ranks(kind: str) -> None:
    found = result(f"settles {kind}")
    assert found["same"]
    assert len(found["aside"]) > 2
    assert all(found["aside"])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("checkpoints")])
def test_a_checkpoint_of_four_ranks_resumes_over_any_mesh(name: str) -> None:
    found, (_, parallel, kind) = result(name, 4), name.split()
    assert found["extrapolations"] > 4
    assert len(found["ended"]) == 1 + (kind != "exact") + len(RESUMED[parallel])
    for how, (error, same, stats) in found["ended"].items():
        assert error <= 1e-12, how
        # DDP sums gradients in another order after its first step.
        assert (same and stats) or parallel == "ddp" or not how.startswith(parallel), how


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("spread")])
def test_whole_parameters_go_to_other_ranks_with_their_history(name: str) -> None:
    found = result(name, 4)
    assert found["accepted"] > 2
    assert found["errors"].pop("4") == 0
    assert len(found["errors"]) == 2
    assert max(found["errors"].values()) <= 1e-12
    assert found["refused"]  # that of one rank alone


def test_losses_of_one_rank_are_warned_about() -> None:
    (warning,), together = result("refusals")["warned"]
    assert "compares the losses of this rank" in warning
    assert "process_group" in warning
    assert not together


def test_a_step_without_any_gradient_moves_nothing() -> None:
    found = result("without gradients newton")
    assert found["still"]
    assert found["same"]
    assert found["accepted"] > 0


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("complex", "rank 1: a parameter of shape (2,) is torch.complex64"),
        ("options", "the method must be the same on all ranks"),
        ("tensors", "the list of problems must be the same on all ranks"),
        ("partial", "a DTensor of partial sums"),
    ],
)
def test_what_one_rank_cannot_do_is_refused_on_all(what: str, reason: str) -> None:
    assert reason in result("refusals")[what]
