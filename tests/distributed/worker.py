"""The ranks of the tests in this folder: they run all cases for their number, and write what came.

    python tests/distributed/worker.py FOLDER RANKS [NAME ...]

Ranks are forks of one process, which imports torch for all. ``AADL_THOROUGH`` in the environment
adds cases, see ``--thorough``.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer

import aadl_ext
from aadl_ext import (
    Anderson,
    Storage,
    SubspaceNewton,
    accelerate,
    get_accelerator,
    offload,
    quasi_newton,
)
from aadl_ext.ops import library
from aadl_ext.ranks import local

Result = dict[str, Any]
Make = Callable[..., Optimizer]
Method = Anderson | SubspaceNewton
FLOATS = {torch.float64: "float64", torch.float32: "float32"}

momentum: Make = partial(SGD, lr=0.1, momentum=0.9)
adam: Make = partial(Adam, lr=0.01)
NEWTON = SubspaceNewton(block_length=4, history_depth=4, noise_samples=3, quasi_newton=False)
EXACT = SubspaceNewton(history_depth=4)  # where batches are full
DESCENDING = Anderson(frequency=5, relaxation=0.5, history_depth=4, solver="gram")
ANDERSON = replace(DESCENDING, safeguard=("residual", "limits"))
AVERAGED = replace(ANDERSON, solver="tsqr", average=True)
METHODS: dict[str, Method] = {"newton": NEWTON, "anderson": ANDERSON, "averaged": AVERAGED}
TOLD = ("accepted", "dropped", "rejected", "skipped", "restarts")
THOROUGH = "AADL_THOROUGH" in os.environ
STEPS = 60  # as far as they are compared
SHORT = 34  # quasi-Newton steps of a network, where rounding errors grow a hundred times in ten
LONG = 200 if THOROUGH else STEPS  # FSDP2 over two ranks
CASES: dict[str, tuple[tuple[int, ...], Callable[[], Result]]] = {}


def case(name: str, run: Callable[[], Result], *sizes: int, thorough: bool = False) -> None:
    """Of Anderson steps those that averages or Newton steps have, too, count as thorough."""
    assert name not in CASES
    alike = name.endswith(" anderson") and not name.startswith(("fsdp2 float64 m", "collectives"))
    if THOROUGH or not (thorough or alike):
        CASES[name] = sizes, run


# ---- one problem, trained in many ways --------------------------------------------------------


class Net(nn.Sequential):
    """Uneven sizes, a norm, weight decay in the loss: runs of it forget their rounding errors."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 10), nn.Tanh(), nn.LayerNorm(10), nn.Linear(10, 3))
        self.to(dtype)


def batch(dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(32, 6, generator=generator)
    targets = (inputs @ torch.randn(6, 3, generator=torch.Generator().manual_seed(3))).argmax(1)
    return inputs.to(dtype), targets


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs), targets)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    share: tuple[int, int] = (0, 1),
    after: Callable[[], object] = lambda: None,
    closure: bool = False,
    full: bool = False,
) -> None:
    """Steps on a share of the same global batches; ``full``: of one, at all steps."""
    generator = torch.Generator().manual_seed(7)
    dtype = next(model.parameters()).dtype
    index, count = share
    for _ in range(steps):
        if full:
            generator.manual_seed(7)
        inputs, targets = (x[index::count] for x in batch(dtype, generator))

        def evaluate(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            model.zero_grad()
            loss = loss_of(model, inputs, targets)
            loss.backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
        after()


def whole(model: nn.Module) -> Tensor:
    """All entries, of all ranks."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model):
            return torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    values = (p.detach() for p in model.parameters())
    return torch.cat([getattr(p, "full_tensor", lambda p=p: p)().flatten() for p in values])


@functools.cache  # many ways are compared with one run
def alone(make: Make, method: Method, dtype: torch.dtype, steps: int, **options: Any) -> Tensor:
    """Where a single process gets."""
    model = Net(dtype)
    optimizer = accelerate(make(model.parameters(), **options), method)
    train(model, optimizer, steps, full=method is EXACT)
    return whole(model)


def same_on_all(value: Tensor) -> bool:
    """Whether it has the same bits on all ranks."""
    every = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(every, value.contiguous())
    return all(torch.equal(x.nan_to_num(7.5), every[0].nan_to_num(7.5)) for x in every)


def compared(model: nn.Module, optimizer: Optimizer, reference: Tensor) -> Result:
    """How far it is from the single process, and whether all ranks agree."""
    end, verdicts = whole(model), get_accelerator(optimizer).iteration.verdicts
    assert end.shape == reference.shape
    stats = get_accelerator(optimizer).stats
    return {
        "error": float((end - reference).abs().max() / reference.abs().max()),
        "same": same_on_all(end),
        "verdicts": same_on_all(verdicts.control) and same_on_all(verdicts.counts),
        "accepted": stats.accepted,
        "extrapolations": stats.extrapolations,
        "averaged": stats.averaged,
    }


def here() -> tuple[int, int]:
    return dist.get_rank(), dist.get_world_size()


def mesh(*shape: int) -> DeviceMesh:
    names = ("outer", "inner")[: len(shape)]
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


# ---- the ways ---------------------------------------------------------------------------------


def fsdp2(make: Make, method: Method, dtype: torch.dtype, steps: int, *shape: int) -> Result:
    model = Net(dtype)
    fully_shard(model[0], mesh=mesh(*(shape or (here()[1],))))
    fully_shard(model, mesh=mesh(*(shape or (here()[1],))))
    optimizer = accelerate(make(model.parameters()), method)
    train(model, optimizer, steps, here())
    return compared(model, optimizer, alone(make, method, dtype, steps))


def without_kernels(method: Method) -> Result:
    """By the definitions, beside one process that has the kernels."""
    with library.definitions_only():
        model = fully_shard(Net(torch.float64), mesh=mesh(here()[1]))
        optimizer = accelerate(momentum(model.parameters()), method)
        train(model, optimizer, STEPS, here())
    return compared(model, optimizer, alone(momentum, method, torch.float64, STEPS))


def split(model: nn.Module, shards: int) -> None:
    """Tensor parallel, the norm and a bias as plain tensors or copies; with FSDP2 over shards."""
    both = mesh(shards, here()[1] // shards)
    # The norm sees all features: the first layer gathers them, the last splits them again.
    plan = {
        "0": ColwiseParallel(output_layouts=Replicate()),
        "3": RowwiseParallel(input_layouts=Replicate()),
    }
    parallelize_module(model, both["inner"], plan)
    if shards > 1:
        fully_shard(model, mesh=both["outer"])


def tensor_parallel(method: Method, shards: int, scope: str = "all") -> Result:
    method, dtype = replace(method, scope=scope), torch.float64
    model, (rank, ranks) = Net(dtype), here()
    split(model, shards)
    optimizer = accelerate(momentum(model.parameters(), foreach=False), method)
    train(model, optimizer, STEPS, (rank // (ranks // shards), shards))
    return compared(model, optimizer, alone(momentum, method, dtype, STEPS, foreach=False))


class Convex(nn.Sequential):
    """With weight decay in the loss a problem of one minimum."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 10))
        self.to(dtype)


def exact(make: Make, parallel: str, net: type = Net, dtype: torch.dtype = torch.float64) -> Result:
    """Full batches: steps are quasi-Newton's, up to and into a trial of the base optimizer."""
    model, reference = net(dtype), net(dtype)
    steps = SHORT if net is Net else min(LONG, 190)  # a second trial begins from rounding errors
    optimizers = [accelerate(make(reference.parameters()), EXACT)]
    group, share = None, here()
    if parallel == "fsdp2":
        fully_shard(model, mesh=mesh(share[1]))
    elif parallel == "ddp":
        model, group = DistributedDataParallel(model), dist.group.WORLD
    else:
        shards = share[1] // 2
        split(model, shards)
        share = (share[0] // 2, shards)
    optimizers.append(accelerate(make(model.parameters()), EXACT, process_group=group))
    train(reference, optimizers[0], steps, full=True)
    train(model, optimizers[1], steps, share, full=True)
    active = [get_accelerator(x).iteration.quasi_newton.active for x in optimizers]
    return {**compared(model, optimizers[1], whole(reference)), "active": all(active)}


def descending(parallel: str) -> Result:
    """On full batches, where extrapolations lead downhill often enough; a ridge, as rows repeat."""
    method = replace(DESCENDING, reg_acc=0.01)
    model, reference = Net(torch.float64), Net(torch.float64)
    single = accelerate(momentum(reference.parameters(), foreach=False), method)
    train(reference, single, STEPS, full=True)
    if parallel == "fsdp2":
        fully_shard(model, mesh=mesh(here()[1]))
    else:
        split(model, 1)
    optimizer = accelerate(momentum(model.parameters(), foreach=False), method)
    train(model, optimizer, STEPS, here() if parallel == "fsdp2" else (0, 1), full=True)
    return compared(model, optimizer, whole(reference))


def fsdp1(method: Method, original: bool) -> Result:
    dtype = torch.float64
    model = FullyShardedDataParallel(
        Net(dtype), use_orig_params=original, device_id=torch.device("cpu")
    )
    optimizer = accelerate(momentum(model.parameters()), method)
    train(model, optimizer, STEPS, here())
    return compared(model, optimizer, alone(momentum, method, dtype, STEPS))


def zero(method: Method, inner: bool) -> Result:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when it is imported

    dtype = torch.float64
    model = DistributedDataParallel(Net(dtype))
    outer = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.1, momentum=0.9)
    watched = accelerate(outer.optim if inner else outer, method)
    train(model, outer, STEPS, here())
    return compared(model, watched, alone(momentum, method, dtype, STEPS))


def ddp(method: Method, group: bool) -> Result:
    dtype = torch.float64
    model = DistributedDataParallel(Net(dtype))
    optimizer = accelerate(
        momentum(model.parameters()), method, process_group=dist.group.WORLD if group else None
    )
    train(model, optimizer, STEPS, here())
    return compared(model, optimizer, alone(momentum, method, dtype, STEPS))


def stages(method: Method) -> Result:
    """Each rank has a part of the layers, the last none, as in a pipeline."""
    dtype, (rank, ranks) = torch.float64, here()
    model = DistributedDataParallel(Net(dtype))
    parameters = list(model.parameters())
    owners = [i % (ranks - 1) for i in range(len(parameters))]
    own = [p for p, owner in zip(parameters, owners, strict=True) if owner == rank]
    own = own or [nn.Parameter(torch.empty(0))]
    optimizer = accelerate(momentum(own), method, process_group=dist.group.WORLD)

    def tell() -> None:
        for parameter, owner in zip(parameters, owners, strict=True):
            dist.broadcast(parameter.data, owner)

    steps = SHORT if method is EXACT else STEPS
    train(model, optimizer, steps, here(), tell, full=method is EXACT)
    return compared(model, optimizer, alone(momentum, method, dtype, steps))


def muon(method: Method, parallel: str, kernels: bool = True) -> Result:
    """A base optimizer that looks at whole matrices, here in float64 in place of bfloat16."""
    reference, model = Net(torch.float64), Net(torch.float64)
    if parallel == "fsdp2":
        fully_shard(model, mesh=mesh(here()[1]))
    else:
        model = DistributedDataParallel(model)
    groups, optimizers = (None, None if parallel == "fsdp2" else dist.group.WORLD), []
    for net, group in zip((reference, model), groups, strict=True):
        base = torch.optim.Muon([p for p in net.parameters() if p.ndim == 2], lr=0.02)
        optimizers.append(accelerate(base, method, process_group=group))
    full = method is EXACT
    with mock.patch.object(Tensor, "bfloat16", Tensor.double):
        train(reference, optimizers[0], SHORT if full else STEPS, full=full)
        with nullcontext() if kernels else library.definitions_only():
            train(model, optimizers[1], SHORT if full else STEPS, here(), full=full)
    return compared(model, optimizers[1], whole(reference))


def offloaded(run: Callable[[Method], Result]) -> Result:
    """With rows in parts, and the CPU as a device that has other memory than the host."""
    with mock.patch.multiple(offload, AT_HOME=(), PART=64):
        return run(replace(NEWTON, storage=Storage(offload=True)))


for kind, method in METHODS.items():
    for dtype, name in FLOATS.items():
        # In bfloat16 a rounding of a gradient in float32 may be a last bit of a row, or not.
        exact_rows = replace(method, storage=Storage(dtype))
        run = partial(fsdp2, momentum, exact_rows, dtype, LONG if dtype is torch.float32 else STEPS)
        narrow = dtype is torch.float32 and kind != "newton"
        case(f"fsdp2 {name} momentum {kind}", run, 2, thorough=narrow)
    case(f"without kernels {kind}", partial(without_kernels, method), 2)
for kind, method in METHODS.items():
    case(f"hsdp {kind}", partial(fsdp2, momentum, method, torch.float64, STEPS, 2, 2), 4)
    case(f"tensor parallel {kind}", partial(tensor_parallel, method, 1), 2)
    case(f"tensor parallel and fsdp2 {kind}", partial(tensor_parallel, method, 2), 4)
    case(f"fsdp1 original {kind}", partial(fsdp1, method, True), 2)
    case(f"stages {kind}", partial(stages, method), 4)
for kind in ("newton", "anderson"):
    method = METHODS[kind]
    case(f"fsdp2 float64 adam {kind}", partial(fsdp2, adam, method, torch.float64, LONG), 2)
    case(f"tensor parallel by tensor {kind}", partial(tensor_parallel, method, 1, "tensor"), 2)
    case(f"fsdp1 flat {kind}", partial(fsdp1, method, False), 2)
    case(f"zero inner {kind}", partial(zero, method, True), 2)
    case(f"zero outer {kind}", partial(zero, method, False), 2)
    case(f"ddp {kind}", partial(ddp, method, False), 2)
    case(f"ddp with a group {kind}", partial(ddp, method, True), 2)
decaying: Make = partial(momentum, weight_decay=0.003, foreach=False)
for dtype, name in FLOATS.items():
    run = partial(exact, decaying, "fsdp2", Convex, dtype)
    case(f"fsdp2 {name} momentum exact", run, 2)
run = partial(exact, partial(adam, weight_decay=0.003), "fsdp2")
case("fsdp2 adam exact", run, 4)
case("stages exact", partial(stages, EXACT), 4)
case("ddp with a group exact", partial(exact, decaying, "ddp"), 2)
case("tensor parallel exact", partial(exact, decaying, "tensor parallel"), 2)
case("tensor parallel and fsdp2 exact", partial(exact, decaying, "tensor parallel"), 4)
case("fsdp2 descending", partial(descending, "fsdp2"), 2)
case("tensor parallel descending", partial(descending, "tensor parallel"), 2)
for kind, method in {"newton": NEWTON, "anderson": ANDERSON, "exact": EXACT}.items():
    case(f"muon fsdp2 {kind}", partial(muon, method, "fsdp2"), 2)
# Over four ranks the last has no row, which Muon itself cannot do with.
case("muon ddp newton", partial(muon, NEWTON, "ddp"), 4)
case("muon without kernels newton", partial(muon, NEWTON, "fsdp2", False), 2)
run = partial(fsdp2, momentum, dtype=torch.float64, steps=STEPS)
case("fsdp2 float64 momentum offloaded", partial(offloaded, run), 2)
COMPARED = tuple(CASES)


# ---- what happens on one rank -----------------------------------------------------------------


def shared(method: Method, make: Make = momentum) -> tuple[nn.Module, Optimizer]:
    model = fully_shard(Net(torch.float64), mesh=mesh(here()[1]))
    return model, accelerate(make(model.parameters()), method)


def agreement(model: nn.Module, optimizer: Optimizer) -> Result:
    accelerator = get_accelerator(optimizer)
    tensors = accelerator.iteration.verdicts
    end = whole(model)
    return {
        "same": same_on_all(end) and same_on_all(tensors.control) and same_on_all(tensors.counts),
        "finite": bool(end.isfinite().all()),
        **{x: getattr(accelerator.stats, x) for x in TOLD},
    }


def collectives(method: Method) -> Result:
    """Calls of each step, and the bytes that a rank sends."""
    if method is NEWTON:
        method = replace(method, adaptive_blocks=False)
    model, optimizer = shared(method)
    sent: list[list[int]] = []
    gather = dist.all_gather

    def count(every: list[Tensor], mine: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent[-1].append(mine.nbytes)
        return gather(every, mine, *args, **kwargs)

    def begin() -> None:
        sent.append([])

    begin()
    dist.all_gather = count
    try:
        train(model, optimizer, 40, here(), begin, full=method is EXACT)
    finally:
        dist.all_gather = gather
    calls = [len(x) for x in sent[:-1]]
    found = {
        "calls": calls,
        "bytes": [sum(x) for x in sent[:-1]],
        "most": max(x for step in sent for x in step),
    }
    plan, held = aadl_ext.plan(optimizer), get_accelerator(optimizer).stats.bytes_held
    steps = plan.repeating if method is EXACT else plan
    assert steps is not None
    return {
        **found,
        "planned": (plan.ranks, steps.most_sent, steps.collectives),
        "held": round(steps.bytes_held / held, 1),  # small ones begin in a step
    }


class Careful(Optimizer):
    """Uses no gradient that is not finite; what watches the step sees it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:  # else the step is left out
                    sound = parameter.grad.nan_to_num(0.0, 0.0, 0.0)
                    parameter.add_(sound, alpha=-group["lr"])


def bad_gradients(method: Method, pending: bool) -> Result:
    """Now and then the last rank has a gradient that is not finite."""
    model, optimizer = shared(method, Careful)
    accelerator = get_accelerator(optimizer)
    bad = 0
    for k in range(60):
        seed = 0 if method is EXACT else k
        inputs, targets = batch(torch.float64, torch.Generator().manual_seed(seed))
        model.zero_grad()
        loss_of(model, inputs[here()[0] :: here()[1]], targets[here()[0] :: here()[1]]).backward()
        if accelerator.pending == pending and k > 10 and bad < 5 and (pending or k % 7 == 5):
            bad += 1
            if here()[0] == here()[1] - 1:
                local(model[0].weight.grad).view(-1)[:1] = torch.nan
        optimizer.step()
    return {**agreement(model, optimizer), "bad": bad}


def moved_on_one_rank(method: Method) -> Result:
    """Something else moves the entries of the last rank while a step is pending."""
    model, optimizer = shared(method)
    accelerator, moves = get_accelerator(optimizer), 0

    def move() -> None:
        nonlocal moves
        if accelerator.pending and moves < 3:
            moves += 1
            if here()[0] == here()[1] - 1:
                with torch.no_grad():
                    local(model[0].weight).add_(0.01)

    train(model, optimizer, 60, here(), move, full=method is EXACT)
    return {**agreement(model, optimizer), "moves": moves}


def losses(method: Method, parallel: str) -> Result:
    """Each rank has the loss of its own share, and all come to one verdict."""
    method = replace(method, safeguard="loss")
    dtype, model = torch.float64, Net(torch.float64)
    reference = Net(dtype)
    alone = accelerate(momentum(reference.parameters()), method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(reference, alone, STEPS, closure=True)
    group = None
    if parallel == "fsdp2":
        fully_shard(model, mesh=mesh(here()[1]))
    else:
        model, group = DistributedDataParallel(model), dist.group.WORLD
    optimizer = accelerate(momentum(model.parameters()), method, process_group=group)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    model.register_forward_pre_hook(count)
    train(model, optimizer, STEPS, here(), closure=True)
    return {**compared(model, optimizer, whole(reference)), "calls": calls}


def settles(method: Method) -> Result:
    """A pending step is set aside and back on all ranks; training ends at judged parameters."""
    model, optimizer = shared(method)
    aside = []

    def look() -> None:
        if get_accelerator(optimizer).pending:
            before = whole(model)
            with aadl_ext.settled(optimizer):
                within = whole(model)
            after = whole(model)
            aside.append(torch.equal(before, after) and not torch.equal(before, within))

    train(model, optimizer, 40, here(), look, full=method is EXACT)
    aadl_ext.finish(optimizer)
    return {**agreement(model, optimizer), "aside": aside}


def uneven(method: Method) -> Result:
    """The first rank stops early; afterwards it takes over the states of one that did not."""
    model = DistributedDataParallel(Net(torch.float64))
    optimizer = accelerate(momentum(model.parameters()), method)
    with Join([model]):
        train(model, optimizer, 23 if here()[0] == 0 else 30, here())
    before = same_on_all(get_accelerator(optimizer).iteration.verdicts.control)
    state = [optimizer.state_dict(), get_accelerator(optimizer).state_dict()]
    dist.broadcast_object_list(state, src=here()[1] - 1)
    optimizer.load_state_dict(state[0])
    get_accelerator(optimizer).load_state_dict(state[1])
    train(model, optimizer, 40, here())
    return {**agreement(model, optimizer), "before": before}


def averaged_from_outside(method: Method) -> Result:
    """Each rank trains a model of its own; from time to time they meet in their mean."""
    model, met = Net(torch.float64), []
    optimizer = accelerate(momentum(model.parameters()), method, process_group=dist.group.WORLD)
    averager = PeriodicModelAverager(period=7)

    def average() -> None:
        averager.average_parameters(model.parameters())
        if averager.step % 7 == 1:
            met.append(same_on_all(whole(model)))

    train(model, optimizer, 85, here(), average)
    accelerator = get_accelerator(optimizer)
    verdicts, stats = accelerator.iteration.verdicts, accelerator.stats
    return {
        "same": same_on_all(verdicts.control) and same_on_all(verdicts.counts),
        "met": met,
        "moved": stats.restarts["moved_outside"],
        "accepted": stats.accepted,
        "finite": bool(whole(model).isfinite().all()),
    }


def freeze(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    parameters[1].requires_grad_(False)
    parameters[1].grad = None


def thaw(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    parameters[2].requires_grad_(True)


def resize(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    parameters[0].data = parameters[0].detach()[:2].clone()
    parameters[0].grad = None
    optimizer.state.pop(parameters[0], None)


def remove(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"].remove(parameters[0])


def changes_on_one_rank(method: Method) -> Result:
    """First and last rank in turn, each with a step pending and without telling the other."""
    torch.manual_seed(here()[0])
    parameters = [nn.Parameter(torch.randn(3, 5, dtype=torch.float64)) for _ in range(3)]
    parameters[2].requires_grad_(False)
    optimizer = accelerate(momentum(parameters), method, process_group=dist.group.WORLD)
    accelerator, steps = get_accelerator(optimizer), []
    last = here()[1] - 1
    for rank, change in ((0, freeze), (last, thaw), (0, resize), (last, remove)):
        for _ in range(30):
            descend(optimizer, parameters)
        while not accelerator.pending:
            descend(optimizer, parameters)
        if here()[0] == rank:
            change(optimizer, parameters)
        steps.append(0)
        while accelerator.stats.restarts["parameters"] < len(steps) and steps[-1] < 20:
            descend(optimizer, parameters)
            steps[-1] += 1
        if change is freeze:
            frozen = parameters[1].detach().clone()
    accepted = accelerator.stats.accepted
    for _ in range(30):
        descend(optimizer, parameters)
    verdicts, stats = accelerator.iteration.verdicts, accelerator.stats
    return {
        "same": same_on_all(verdicts.control) and same_on_all(verdicts.counts),
        "steps": steps,
        "fits": accelerator.layout.fits(optimizer.param_groups),
        "still": torch.equal(frozen, parameters[1]) == (here()[0] == 0),
        "accepted": stats.accepted - accepted,
    }


def descend(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    optimizer.zero_grad()
    sum((p - 1).square().mul(torch.arange(1, 6)).sum() / 50 for p in parameters).backward()
    optimizer.step()


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def refusals() -> Result:
    rank, group = here()[0], dist.group.WORLD
    odd = nn.Parameter(torch.ones(2, dtype=torch.complex64 if rank else torch.float32))
    one = [nn.Parameter(torch.ones(2)) for _ in range(1 + rank)]
    partial_sums = distribute_tensor(torch.ones(4), mesh(here()[1])).redistribute(
        placements=[Replicate()]
    )
    partial_sums = DTensor.from_local(partial_sums.to_local(), mesh(here()[1]), [Partial()])
    depth = SubspaceNewton(history_depth=3 + rank)
    by_tensor = SubspaceNewton(scope="tensor")
    compares = SubspaceNewton(safeguard="loss")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        accelerate(SGD([nn.Parameter(torch.ones(2))]), compares)
        alone = [str(x.message) for x in warned]
        accelerate(SGD([nn.Parameter(torch.ones(2))]), compares, distributed=True)
        together = [str(x.message) for x in warned[len(alone) :]]
    return {
        "warned": (alone, together),
        "complex": refusal(lambda: accelerate(SGD([odd]), process_group=group)),
        "options": refusal(lambda: accelerate(SGD(one[:1]), depth, process_group=group)),
        "tensors": refusal(lambda: accelerate(SGD(one), by_tensor, process_group=group)),
        "partial": refusal(lambda: accelerate(SGD([nn.Parameter(partial_sums)]))),
    }


def without_gradients(method: Method) -> Result:
    """Steps without any gradient leave the parameters where they are, on all ranks."""
    model, optimizer = shared(method)
    train(model, optimizer, 20, here())
    before = whole(model)
    while get_accelerator(optimizer).pending:
        train(model, optimizer, 1, here())
        before = whole(model)
    model.zero_grad()
    optimizer.step()
    still = torch.equal(before, whole(model))
    train(model, optimizer, 40, here())
    return {**agreement(model, optimizer), "still": still}


# ---- checkpoints ------------------------------------------------------------------------------


class Run:
    """A training that can be stopped; ``parallel``: "fsdp2", "hsdp", "2-d", "ddp" or "alone"."""

    def __init__(self, method: Method, parallel: str) -> None:
        self.model: nn.Module = Net(torch.float64)
        self.share, ranks = here(), here()[1]
        if parallel == "2-d":
            split(self.model, 2)
            self.share = (here()[0] // (ranks // 2), 2)
        elif parallel == "ddp":
            self.model = DistributedDataParallel(self.model)
        elif parallel == "alone":
            self.share = (0, 1)
        else:
            fully_shard(self.model, mesh=mesh(2, ranks // 2) if parallel == "hsdp" else mesh(ranks))
        self.alone, self.step, self.full = parallel == "alone", 0, method is EXACT
        self.optimizer = accelerate(momentum(self.model.parameters(), foreach=False), method)
        self.accelerator = get_accelerator(self.optimizer)

    def go(self, steps: int) -> Tensor:
        for _ in range(steps):
            self.step += 1
            index, count = self.share
            seed = 0 if self.full else self.step
            inputs, targets = batch(torch.float64, torch.Generator().manual_seed(seed))
            self.model.zero_grad()
            loss_of(self.model, inputs[index::count], targets[index::count]).backward()
            self.optimizer.step()
        return whole(self.model)

    def state(self) -> Result:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "accelerator": self.accelerator}

    def save(self, folder: Path) -> None:
        dcp.save(self.state(), checkpoint_id=folder, no_dist=self.alone)

    def load(self, folder: Path, step: int) -> None:
        state = self.state()
        dcp.load(state, checkpoint_id=folder, no_dist=self.alone)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.step = step


RESUMED = {"fsdp2": ("hsdp", "2-d", "ddp", "alone"), "2-d": ("alone",), "ddp": ("fsdp2",)}


def checkpoints(method: Method, parallel: str) -> Result:
    """Saved in the middle of a block; pending, when there is most to load, for other meshes too."""
    ended = {}
    for pending in (True,) if method is EXACT else (False, True):
        first = Run(method, parallel)
        first.go(21)
        while first.accelerator.pending != pending:
            first.go(1)
        step, folder = first.step, Path(sys.argv[1], f"{method} {parallel} {pending}"[-60:])
        first.save(folder)
        end = first.go(15)
        for other in (parallel, *(RESUMED[parallel] if pending else ())):
            again = Run(method, other)
            again.load(folder, step)
            found = again.go(15)
            error = float((found - end).abs().max() / end.abs().max())
            stats = [x.accelerator.stats.as_dict() for x in (first, again)]
            ended[f"{other}, {pending}"] = (
                error,
                torch.equal(found, end),
                other != parallel or stats[0] == stats[1],
            )
    return {"ended": ended, "extrapolations": first.accelerator.stats.extrapolations}


class Spread:
    """A training with whole parameters on each of ``count`` ranks: "stages", or under "zero"."""

    def __init__(self, method: Method, kind: str, count: int) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when it is imported

        self.model, (rank, ranks), self.step = Net(torch.float64), here(), 0
        named, group = dict(self.model.named_parameters()), dist.group.WORLD
        self.owners = [i % count for i in range(len(named))]
        if kind == "stages":
            owned = zip(named.items(), self.owners, strict=True)
            own = [item for item, owner in owned if owner == rank]
            self.outer = self.base = momentum(own or [("none", nn.Parameter(torch.empty(0)))])
        elif count == 1:
            self.owners, self.outer = [], momentum(named.values())
            self.base = self.outer
        else:  # as often as there is room
            groups = [dist.new_group(range(i, i + count)) for i in range(0, ranks, count)]
            group, self.owners = groups[rank // count], []
            self.outer = ZeroRedundancyOptimizer(
                named.values(), SGD, process_group=group, lr=0.1, momentum=0.9
            )
            self.base = self.outer.optim
        accelerate(self.base, method, process_group=group if kind == "stages" else None)
        self.accelerator = get_accelerator(self.base)

    def go(self, steps: int) -> Tensor:
        for _ in range(steps):
            self.step += 1
            inputs, targets = batch(torch.float64, torch.Generator().manual_seed(self.step))
            self.model.zero_grad()
            loss_of(self.model, inputs, targets).backward()
            self.outer.step()
            for parameter, owner in zip(self.model.parameters(), self.owners, strict=False):
                dist.broadcast(parameter.data, owner)
        return whole(self.model)

    @property
    def own(self) -> list[tuple[str, Tensor]]:
        layout = self.accelerator.layout
        return list(zip(layout.names, layout.parameters, strict=True))

    def state(self) -> Result:
        state = self.base.state
        return {
            "model": self.model.state_dict(),
            "momentum": {x: state[p].get("momentum_buffer", p * 0) for x, p in self.own},
            "accelerator": self.accelerator,
        }

    def load(self, folder: Path, step: int) -> None:
        state, self.step = self.state(), step
        dcp.load(state, checkpoint_id=folder)
        for name, parameter in self.own:
            self.base.state[parameter]["momentum_buffer"] = state["momentum"][name]


def spread(method: Method, kind: str) -> Result:
    """Saved on four ranks while a step is pending, loaded on these, on two and on one."""
    first = Spread(method, kind, 4)
    first.go(21)
    while not first.accelerator.pending:
        first.go(1)
    step, folder = first.step, Path(sys.argv[1], f"{method} {kind}"[-60:])
    dcp.save(first.state(), checkpoint_id=folder)
    alone = first.accelerator.state_dict()
    end, errors, refused = first.go(15), {}, ""
    for count in (4, 2, 1):
        again = Spread(method, kind, count)
        if count == 2:
            refused = refusal(partial(again.accelerator.load_state_dict, alone))
        again.load(folder, step)
        found = again.go(15)
        errors[count] = float((found - end).abs().max() / end.abs().max())
    return {
        "errors": errors,
        "accepted": first.accelerator.stats.accepted,
        "refused": "saved with parameters" in refused,
    }


case("spread stages newton", partial(spread, NEWTON, "stages"), 4)
case("spread zero averaged", partial(spread, AVERAGED, "zero"), 4)
for kind in ("newton", "averaged"):
    case(f"checkpoints fsdp2 {kind}", partial(checkpoints, METHODS[kind], "fsdp2"), 4)
case("checkpoints ddp newton", partial(checkpoints, NEWTON, "ddp"), 4)
case("checkpoints 2-d averaged", partial(checkpoints, AVERAGED, "2-d"), 4)
case("checkpoints fsdp2 exact", partial(checkpoints, EXACT, "fsdp2"), 4)
for kind, method in {**METHODS, "exact": EXACT}.items():
    case(f"collectives {kind}", partial(collectives, method), 2)
    case(f"settles {kind}", partial(settles, method), 2)
    case(f"bad gradients, pending {kind}", partial(bad_gradients, method, True), 2)
    if method is not EXACT:  # there a step is always pending
        case(f"bad gradients {kind}", partial(bad_gradients, method, False), 2)
    case(f"moved {kind}", partial(moved_on_one_rank, method), 2)
    if kind != "averaged":  # nothing is pending there for long
        case(f"changes {kind}", partial(changes_on_one_rank, method), 2)
for kind in ("newton", "anderson"):
    case(f"losses fsdp2 {kind}", partial(losses, METHODS[kind], "fsdp2"), 2)
    case(f"losses ddp {kind}", partial(losses, METHODS[kind], "ddp"), 2)
    case(f"uneven {kind}", partial(uneven, METHODS[kind]), 2)
    case(f"averaged from outside {kind}", partial(averaged_from_outside, METHODS[kind]), 2)
run = partial(bad_gradients, pending=False)
case("bad gradients offloaded newton", partial(offloaded, run), 2)
case("without gradients newton", partial(without_gradients, NEWTON), 2)
case("refusals", refusals, 2)


# ---- run --------------------------------------------------------------------------------------


def work(rank: int, folder: str, ranks: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    meeting, longest = f"file://{folder}/meeting", datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", meeting, longest, rank=rank, world_size=ranks)
    results: dict[str, Result] = {}
    for name, (sizes, run) in CASES.items():
        if ranks not in sizes or (names and not any(name.startswith(x) for x in names)):
            continue
        try:
            results[name] = run()
        except Exception:
            results[name] = {"failed": traceback.format_exc()}
        Path(folder, f"{ranks}-{rank}.json").write_text(json.dumps(results))
        if rank == 0 and names:
            print(name, results[name], flush=True)
        failed = [None] * ranks
        dist.all_gather_object(failed, "failed" in results[name])
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # threads of gloo may end after what they use; all results are written


if __name__ == "__main__":
    quasi_newton.FIRST = 2  # the middle of the first block asks
    warnings.simplefilter("ignore")
    folder, ranks, *names = sys.argv[1:]
    start_processes(work, (folder, int(ranks), names), int(ranks), start_method="fork")
