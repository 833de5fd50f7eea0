"""Data-parallel training of a classifier, with checkpoints: the loop of imagenet.py."""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

import aadl_ext

from . import harness, readings
from .images import ImageFolder, batches, network
from .reporting import Record

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Group:
    """The processes that train together."""

    rank: int = 0
    world: int = 1

    def total(self, values: list[float], device: torch.device) -> list[float]:
        """Sums over all processes."""
        numbers = torch.tensor(values, dtype=torch.float64, device=device)
        if self.world > 1:
            dist.all_reduce(numbers)
        return numbers.tolist()

    def told(self, value: Any) -> Any:
        """What the first process has."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def equalize(self, tensors: list[Tensor]) -> None:
        """Give all processes the first one's."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


@dataclass
class Place:
    """How far a run is."""

    epoch: int = 0
    step: int = 0  #: in the epoch
    loss: float = 0.0  #: sum over the steps of the epoch, of this process
    seconds: float = 0.0
    curves: dict[str, list[float]] = field(
        default_factory=lambda: {"validation accuracy": [], "training loss": []}
    )


class Trainer:
    """A network, its optimizer, its data and its checkpoint.

    Args:
        options: of the command line, see imagenet.py.
        seed: of weights and batches.
        group: the processes that train together.
        acceleration: settings of ``readings.method_of``; None: not accelerated.
        rate: the learning rate in an epoch, counted from 0.
        settings: what the result depends on, in plain values.
        path: of the checkpoint.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        seed: int,
        group: Group,
        acceleration: dict[str, Any] | None,
        rate: Callable[[int], float],
        settings: Record,
        path: Path,
    ) -> None:
        self.options, self.seed, self.group, self.rate = options, seed, group, rate
        self.accelerated = acceleration is not None
        self.settings, self.path, self.device = settings, path, options.device
        torch.manual_seed(seed)
        data, size = options.data, options.size
        self.train_set = ImageFolder(data / "train", size, training=True, seed=seed)
        self.valid_set = ImageFolder(data / "val", size, training=False)
        self.model = network(options.model, len(self.train_set.classes)).to(self.device)
        self.parallel: nn.Module = self.model
        self.sharded = group.world > 1 and options.parallel == "fsdp2"
        if self.sharded:
            fully_shard(self.model, mesh=init_device_mesh(self.device.type, (group.world,)))
        elif group.world > 1:
            places = [self.device] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=places)
        self.optimizer = SGD(
            self.model.parameters(),
            lr=rate(0),
            momentum=0.9,
            nesterov=True,
            weight_decay=options.weight_decay,
        )
        if acceleration is not None:
            storage = aadl_ext.Storage(device=options.history_device)
            aadl_ext.accelerate(self.optimizer, readings.method_of(acceleration, storage))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "float16")
        self.place = Place()
        self.steps = len(batches(len(self.train_set), options.batch, 0, 0, world=group.world))
        if not self.steps:
            raise harness.SettingsError(
                f"{len(self.train_set)} images do not fill one global batch; use a smaller --batch"
            )

    def run(self, title: str) -> Record:
        """Train from the checkpoint, or from the start, to the end; what there is to record."""
        if self.path.exists():
            self.resume()
        place, epochs = self.place, self.options.iterations
        quiet = self.group.rank > 0
        done = place.epoch * self.steps + place.step
        self.bar = tqdm(total=epochs * self.steps, initial=done, desc=title, disable=quiet)
        while place.epoch < epochs:
            self.train_epoch()
            accuracy = self.validate()
            sums = self.group.total([place.loss], self.device)
            place.curves["validation accuracy"].append(accuracy)
            place.curves["training loss"].append(sums[0] / (self.group.world * self.steps))
            place.epoch, place.step, place.loss = place.epoch + 1, 0, 0.0
            self.save()
        self.bar.close()
        return {
            "final": {name: harness.number(curve[-1], 7) for name, curve in place.curves.items()},
            "seconds": round(place.seconds, 1),
            "stats": harness.counts(self.optimizer),
            "curves": {
                name: [harness.number(curve[epoch - 1], 4) for epoch in harness.looks(epochs)]
                for name, curve in place.curves.items()
            },
        }

    def train_epoch(self) -> None:
        """What is left of the present epoch."""
        place, options = self.place, self.options
        self.train_set.epoch = place.epoch
        group, samples = self.group, len(self.train_set)
        picked = batches(samples, options.batch, self.seed, place.epoch, group.rank, group.world)
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.rate(place.epoch)
        self.parallel.train()
        for images, labels in self.loader(self.train_set, picked[place.step :]):
            start = time.perf_counter()
            self.optimizer.zero_grad()
            with self.autocast():
                loss = cross_entropy(self.parallel(images), labels)
            torch.autograd.backward(self.scaler.scale(loss))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            place.loss += float(loss.detach())
            place.step += 1
            place.seconds += time.perf_counter() - start
            self.bar.update()
            if place.step % options.checkpoint_every == 0:
                self.save()

    @torch.no_grad()
    def validate(self) -> float:
        """Share of the validation images that are recognized."""
        self.group.equalize(list(self.model.buffers()))  # each process has seen other images
        self.model.eval()
        if isinstance(self.model, FSDPModule):
            self.model.unshard()  # once: processes may have different numbers of batches
        mine = list(range(self.group.rank, len(self.valid_set), self.group.world))
        size = self.options.batch
        picked = [mine[first : first + size] for first in range(0, len(mine), size)]
        right = 0.0
        for images, labels in self.loader(self.valid_set, picked):
            with self.autocast():
                right += float((self.model(images).argmax(dim=1) == labels).sum())
        if isinstance(self.model, FSDPModule):
            self.model.reshard()
        hits, count = self.group.total([right, len(mine)], self.device)
        return hits / count

    def loader(self, data: ImageFolder, picked: Any) -> Any:
        """The batches on the device, read by worker processes."""
        sampler: Sampler[list[int]] = picked  # any iterable of lists of indices
        pinned = self.device.type == "cuda"
        workers = self.options.workers
        for batch in DataLoader(
            data, batch_sampler=sampler, num_workers=workers, pin_memory=pinned
        ):
            yield [tensor.to(self.device, non_blocking=pinned) for tensor in batch]

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, if it is wanted."""
        dtype = PRECISIONS[self.options.precision]
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    # ---- checkpoints --------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint; an interrupted write leaves the old one. All processes call it."""
        total = self.group.total([self.place.loss], self.device)[0]
        place = {**vars(self.place), "loss": total}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        if self.sharded:
            # A checkpoint of all processes is a folder; its name, with the step, is told last.
            step = place["epoch"] * self.steps + place["step"]
            folder = self.path.with_suffix(f".{step}")
            state_dict_saver.save({**self.state(), "place": place}, checkpoint_id=folder)
            if self.group.rank == 0:
                last = self.path.read_text() if self.path.exists() else folder.name
                part.write_text(folder.name)
                os.replace(part, self.path)
                if last != folder.name:
                    shutil.rmtree(self.path.with_name(last), ignore_errors=True)
        elif self.group.rank == 0:
            torch.save({**self.state(), "place": place}, part)
            os.replace(part, self.path)

    def state(self) -> dict[str, Any]:
        """What is saved, but for the place; sharded, what is filled."""
        if self.sharded:
            model, optimizer = get_state_dict(self.model, self.optimizer)
        else:
            model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        state = {
            "settings": copy.deepcopy(self.settings),
            "model": model,
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
        }
        if self.accelerated:
            state["accelerator"] = aadl_ext.get_accelerator(self.optimizer).state_dict()
        return state

    def resume(self) -> None:
        """Go on from the checkpoint.

        Raises:
            SettingsError: it was made with other settings.
        """
        if self.sharded:
            folder = self.path.with_name(self.path.read_text())
            state = {**self.state(), "place": vars(Place())}
            state_dict_loader.load(state, checkpoint_id=folder)
        else:
            state = torch.load(self.path, map_location=self.device, weights_only=True)
        if state["settings"] != self.settings:
            raise harness.SettingsError(
                f"{self.path} was made with {state['settings']}, but here it is {self.settings}; "
                "give --out another folder, or the same settings"
            )
        if self.sharded:
            set_state_dict(
                self.model,
                self.optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
            )
        else:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if "accelerator" in state:
            aadl_ext.get_accelerator(self.optimizer).load_state_dict(state["accelerator"])
        self.place = Place(**state["place"])
        if self.group.rank > 0:
            self.place.loss = 0.0  # the first process has the sum
