"""One process of a data-parallel run: reports its parameters, or kills itself on the way.

KILL_AFTER_SAVES: the first process ends without warning after so many checkpoints.
DIGESTS: folder for a digest of the parameters and of the accelerator's rows, of each process.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "paper"))

import data_parallel
import harness
import imagenet
import torch
from reporting import Record

import aadl_ext

left = int(os.environ.get("KILL_AFTER_SAVES", "0"))
save, run = data_parallel.Trainer.save, data_parallel.Trainer.run


def save_and_die(trainer: data_parallel.Trainer) -> None:
    global left  # noqa: PLW0603
    save(trainer)
    left -= 1
    if left == 0 and trainer.group.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def run_and_tell(trainer: data_parallel.Trainer, title: str) -> Record:
    record = run(trainer, title)
    digest = hashlib.sha256()
    state = aadl_ext.get_accelerator(trainer.optimizer).state_dict()
    rows = [tensor for tensor in state["history"].values() if isinstance(tensor, torch.Tensor)]
    assert rows
    for tensor in [*trainer.model.parameters(), *rows, *state["iterates"]]:
        digest.update(tensor.detach().numpy().tobytes())
    (Path(os.environ["DIGESTS"]) / str(trainer.group.rank)).write_text(digest.hexdigest())
    return record


data_parallel.Trainer.save = save_and_die  # type: ignore[method-assign]
data_parallel.Trainer.run = run_and_tell  # type: ignore[method-assign]
harness.command(imagenet.main)
