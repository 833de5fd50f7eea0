"""A process of two data-parallel runs: one goes through, one is killed on its way.

The first process of the second run kills itself after its third checkpoint, once: the same command
goes on from there. Each process leaves in OUT/RUN/digests a digest of its parameters and of what
the accelerator holds.
"""

import hashlib
import os
import signal
from typing import Any

import torch

import aadl_ext
from aadl_ext.paper import data_parallel, imagenet
from aadl_ext.paper.data_parallel import Trainer


def tensors(value: Any) -> list[torch.Tensor]:
    """All in a part of a state."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for part in parts for tensor in tensors(part)]


class MortalTrainer(Trainer):
    saves = 0

    def save(self) -> None:
        super().save()
        self.saves += 1
        died = self.path.with_name("died")
        mortal = self.group.rank == 0 and self.path.parent.name == "killed"
        if mortal and self.saves == 3 and not died.exists():
            died.write_text(f"{self.place.epoch} {self.place.step}")
            os.kill(os.getpid(), signal.SIGKILL)

    def run(self, title: str) -> data_parallel.Record:
        record = super().run(title)
        state: dict[str, Any] = aadl_ext.get_accelerator(self.optimizer).state_dict()
        parts = (state["iteration"]["history"], state["iteration"]["window"])
        held = [value for part in parts for value in tensors(part)]
        assert held
        digest = hashlib.sha256()
        for tensor in [*self.model.parameters(), *held]:
            whole = getattr(tensor, "full_tensor", lambda x=tensor: x)()
            digest.update(whole.detach().numpy().tobytes())
        place = self.path.parent / "digests"
        place.mkdir(exist_ok=True)
        (place / str(self.group.rank)).write_text(digest.hexdigest())
        return record


imagenet.Trainer = MortalTrainer  # type: ignore[misc]
imagenet.report = lambda *_, **__: None  # plots take longest
options = imagenet.parse()
group, options.device = imagenet.join(options.device)
out = options.out
for name in ("whole", "killed"):
    options.out = out / name
    imagenet.train_all(options, group)
imagenet.leave(group)
