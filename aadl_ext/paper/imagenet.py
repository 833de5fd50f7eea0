"""ResNet-50 on ImageNet-1k (the paper's Figure 4), data-parallel.

    torchrun --nproc-per-node 8 -m aadl_ext reproduce imagenet --data IMAGENET --device cuda

IMAGENET holds train/CLASS/*.jpeg and val/CLASS/*.jpeg. Without torchrun it is one process.
Nesterov 0.9, 64 images a process, 90 epochs: 5 at a learning rate of 0.05, then
0.05 sqrt(global batch / 64), divided by 10 at epochs 30, 60 and 80; p = 5, q = 5, m = 20,
beta = 0.5. That is the paper's 0.98 for 384 processes of 64 images and its 1.96 for 1,536.

All processes hold equal parameters and extrapolate equally: nothing but the gradients is
communicated. With --parallel fsdp2 each has a share of the parameters and of the history instead.
Checkpoints carry the accelerator's state, so that a killed run, started again by the
same command, ends as it would have (on the CPU bit for bit).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import harness
from .data_parallel import PRECISIONS, Group, Trainer
from .reporting import report

SMALLEST_RATE, REFERENCE_BATCH = 0.05, 64
WARM_UP, DROPS = 5, (30, 60, 80)  # epochs
COMMON = {
    "frequency": 5,
    "store_each_nth": 5,
    "history_depth": 20,
    "relaxation": 0.5,
    "average_window": 5,
    "average_threshold": 0.1,
}
METHODS: dict[str, Any] = {
    "Nesterov": None,
    "Nesterov + AADL": {**COMMON, "average": False},
    "Nesterov + AADL + average": {**COMMON, "average": True},
}


def rate_of(epoch: int, global_batch: int) -> float:
    """The learning rate in ``epoch``, counted from 0."""
    if epoch < WARM_UP:
        return SMALLEST_RATE
    largest = SMALLEST_RATE * math.sqrt(global_batch / REFERENCE_BATCH)
    return largest * 0.1 ** sum(epoch >= drop for drop in DROPS)


def join(device: torch.device) -> tuple[Group, torch.device]:
    """Meet the other processes that torchrun started; returns this one's device, too."""
    if "WORLD_SIZE" not in os.environ:
        return Group(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Group(dist.get_rank(), dist.get_world_size()), device


def leave(group: Group) -> None:
    """Part from the other processes; on CPUs this one ends here, for a thread of gloo may still
    release a tensor, and abort, as Python ends.
    """
    if group.world == 1:
        return
    gloo = dist.get_backend() == "gloo"
    dist.destroy_process_group()
    if gloo:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def experiment(options: argparse.Namespace, group: Group) -> harness.Experiment:
    """What the results depend on."""
    settings = {
        "model": options.model,
        "size": options.size,
        "processes": group.world,
        **({"parallel": options.parallel} if options.parallel != "ddp" else {}),
        "batch": options.batch,
        "precision": options.precision,
        "weight decay": options.weight_decay,
        "device": options.device.type,
    }
    title = f"{options.data.name}: {options.model}, global batch {options.batch * group.world}"
    return harness.Experiment(
        "imagenet",
        title,
        "epoch",
        options.iterations,
        {method: METHODS[method] for method in options.methods},
        settings,
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__ or "", iterations=90, seeds=1)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with train/CLASS/* and val/CLASS/*")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--model", choices=["resnet50", "tiny"], default="resnet50")
    add("--size", type=int, default=224, help="side of the images that the network sees (224)")
    add("--batch", type=int, default=64, help="images of a process in a step (64)")
    add("--precision", choices=PRECISIONS, default="float32", help="of autocast (float32)")
    add("--weight-decay", type=float, default=1e-4, help="(1e-4)")
    add("--history-device", help="where the history lies, in the paper the cpu (as the network)")
    add("--workers", type=int, default=4, help="processes that read images, for each process (4)")
    parallel = "each process has all parameters, or FSDP2 divides them and the history (ddp)"
    add("--parallel", choices=["ddp", "fsdp2"], default="ddp", help=parallel)
    add("--checkpoint-every", type=int, default=500, help="steps (500), and after each epoch")
    return parser.parse_args()


def main() -> None:
    """Train with each method, then print and draw."""
    options = parse()
    group, options.device = join(options.device)
    train_all(options, group)
    leave(group)


def train_all(options: argparse.Namespace, group: Group) -> None:
    """What is missing of methods and seeds."""
    wanted, path = experiment(options, group), options.out / "imagenet.json"
    results = harness.load(wanted, path)
    finished = group.told([harness.key_of(record) for record in results["runs"]])
    for seed in range(options.seeds):
        for method in options.methods:
            if (method, seed) in finished:
                continue
            name = method.lower().replace(" + ", "_")
            trainer = Trainer(
                options,
                seed,
                group,
                METHODS[method],
                partial(rate_of, global_batch=options.batch * group.world),
                {**results["settings"], "acceleration": METHODS[method]},
                options.out / f"imagenet_{name}_{seed}.pt",
            )
            record = {"method": method, "seed": seed, **trainer.run(f"seed {seed}, {method}")}
            if group.rank == 0:
                harness.add(results, record, path)
    if group.rank == 0:
        report(results, options.methods, path.with_suffix(".png"), "linear", options.json)
        print(f"results: {path}", file=sys.stderr if options.json else sys.stdout)
