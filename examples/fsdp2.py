"""A model that is sharded by FSDP2 and trained with acceleration, with checkpoints and resume.

    torchrun --nproc-per-node 4 examples/fsdp2.py --folder checkpoints
    torchrun --nproc-per-node 2 examples/fsdp2.py --folder checkpoints    # goes on, on fewer

On GPUs by NCCL, else on CPUs by gloo. The model is a small transformer that learns to sort.
"""

from __future__ import annotations

import argparse
import os
import shutil
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import aadl_ext

LENGTH, LETTERS = 8, 16


class Sorter(nn.Module):
    """Says which letter is in each place once they are sorted."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, width)
        self.places = nn.Parameter(torch.randn(LENGTH, width) / width**0.5)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, LETTERS)

    def forward(self, letters: Tensor) -> Tensor:
        """``[batch, LENGTH]`` to ``[batch, LENGTH, LETTERS]``."""
        hidden = self.letters(letters) + self.places
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


class Training:
    """All that a checkpoint holds."""

    def __init__(self, device: torch.device, folder: Path) -> None:
        self.device, self.folder, self.step = device, folder, 0
        torch.manual_seed(0)
        self.model = Sorter().to(device)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        # The optimizer's parameters tell how they are sharded: nothing else has to be said.
        aadl_ext.accelerate(self.optimizer)
        self.accelerator = aadl_ext.get_accelerator(self.optimizer)

    def state(self) -> dict[str, object]:
        """What is to be saved, or filled."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "accelerator": self.accelerator,
            "step": self.step,
        }

    def save(self) -> None:
        """A checkpoint has its last name only once it is whole."""
        part, whole = self.folder / "part", self.folder / f"step-{self.step:06d}"
        dcp.save(self.state(), checkpoint_id=part)
        if dist.get_rank() == 0:
            os.replace(part, whole)
            for old in sorted(self.folder.glob("step-*"))[:-2]:
                shutil.rmtree(old)
        dist.barrier()

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one, of any number of ranks."""
        checkpoints = sorted(self.folder.glob("step-*"))
        if not checkpoints:
            return
        state = self.state()
        dcp.load(state, checkpoint_id=checkpoints[-1])
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.step = state["step"]

    def train(self, batch: int) -> Tensor:
        """One step on this rank's share of a batch; returns the mean loss of all."""
        generator = torch.Generator().manual_seed(self.step)  # the same batch on all ranks
        letters = torch.randint(LETTERS, (batch, LENGTH), generator=generator)
        letters = letters[dist.get_rank() :: dist.get_world_size()].to(self.device)
        scores = self.model(letters)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), letters.sort().values.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        return mean


def main() -> None:
    """Train, save now and then, and end at judged parameters."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("checkpoints"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64, help="of all ranks")
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--timeout", type=float, default=600, help="seconds to wait for a rank")
    options = parser.parse_args()

    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=options.timeout))
    options.folder.mkdir(parents=True, exist_ok=True)
    training = Training(device, options.folder)
    training.resume()
    while training.step < options.steps:
        loss = training.train(options.batch)
        if dist.get_rank() == 0:
            print(f"step {training.step} loss {loss.item():.17g}", flush=True)
        if training.step % options.save_every == 0:
            if dist.get_rank() == 0:
                print("saving", flush=True)
            training.save()
    aadl_ext.finish(training.optimizer)  # on all ranks
    stats = training.accelerator.stats
    if dist.get_rank() == 0:
        print(f"extrapolations {stats.extrapolations}, accepted {stats.accepted}", flush=True)
    dist.destroy_process_group()
    if backend == "gloo":  # a thread of it may still release a tensor, and abort, as Python ends
        os._exit(0)


if __name__ == "__main__":
    main()
