"""How many gradient evaluations acceleration saves: tasks x optimizers x batches x seeds x methods.

A run of a base optimizer has a fixed number of gradient evaluations. The training loss over all
samples is watched every 10 of them (not timed) and smoothed over 5 values. The *ratio* of another
method is the number of gradient evaluations after which its smoothed loss first is at most the
final one of base (same task, optimizer, batch size, seed), over the number that base had; 5 stands
for "never", that is not within twice the number. The wall-time ratio is the same in seconds of
forward, backward and step. Losses and validation losses are compared at equal evaluations. Base
itself may reach its final loss early, by noise: its own row tells how often, and that of "null"
(base with the batches in another order) what luck alone does.

Learning rates are tuned for each task, optimizer and batch size, by the final smoothed loss, on
seeds that are not reported, on a grid that grows until the best rate is inside. All methods use
them. So the ratios are against base at its best rate, and there is no separate column for that.

Finished runs are kept, one JSON line each, and not run again, unless their settings change or they
are forgotten (which a change of the package asks for):

    python benchmarks/convergence.py [--quick] [--ablate] [--tune] [--jobs N]
    python benchmarks/convergence.py --seeds tuning --methods newton --set short:history_depth=5
    python benchmarks/convergence.py --forget newton "newton fixed"
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from profiles import NEVER, Record, plot, show, show_medians, summarize
from records import RESULTS, compact, save, write
from rich.console import Console
from rich.table import Table
from tasks import ALL_TASKS, TASKS
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, RMSprop
from tqdm import tqdm

from aadl_ext import Anderson, Storage, SubspaceNewton, accelerate, get_accelerator

EVERY = 10  # gradient evaluations between two looks at the training loss
WINDOW = 5  # looks in the running mean
MOST = 2  # times as many evaluations as base
ROUNDING = 1e-6  # relative; losses that differ less are equal
OTHER_ORDER = 1000  # added to the seed of the batches
TUNING_POINTS, MOST_POINTS = 3, 9  # of a grid of rates
SEEDS = {"tuning": [0, 1, 2], "reporting": [100, 101, 102, 103, 104]}
BATCHES = [0, 8, 16, 64, 256]  # 0: all samples
QUICK_TASKS = ["digits MLP", "diabetes", "quadratic", "factorization"]
QUICK_OPTIMIZERS = ["SGD", "momentum", "Adam"]
QUICK_BATCHES = [0, 8, 64]
QUICK_STEPS = 350

#: how they are made, and the middle of the grid of learning rates, as a power of sqrt(10)
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], int]] = {
    "SGD": (SGD, -2),
    "momentum": (partial(SGD, momentum=0.9), -3),
    "Nesterov": (partial(SGD, momentum=0.9, nesterov=True), -3),
    "Adam": (Adam, -5),
    "AdamW": (partial(AdamW, weight_decay=1e-2), -5),
    "RMSprop": (RMSprop, -5),
}
#: run where they are named
MORE_OPTIMIZERS = {"AdamW, decay .1": (partial(AdamW, weight_decay=0.1), -5)}
ALL_OPTIMIZERS = OPTIMIZERS | MORE_OPTIMIZERS


def newton(**options: Any) -> dict[str, Any]:
    """Subspace Newton, as it is written to disk; the ``dtype`` of its storage by name."""
    return {"method": "SubspaceNewton", **options}


def anderson(**options: Any) -> dict[str, Any]:
    """Anderson acceleration, likewise."""
    return {"method": "Anderson", **options}


METHODS: dict[str, dict[str, Any] | None] = {
    "base": None,
    "null": None,  # the batches in another order
    "newton": newton(),
    "newton fixed": newton(adaptive_blocks=False),
    "anderson p=10": anderson(frequency=10, history_depth=10, relaxation=1.0),
    "anderson paper": anderson(history_depth=10, relaxation=0.1),
    "anderson average": anderson(history_depth=10, relaxation=0.1, average=True),
    "lbfgs": None,  # in place of the base optimizer
}
#: newton with one ingredient changed or left out; the others without the first, which hides them
ABLATIONS: dict[str, dict[str, Any]] = {
    "no quasi-Newton steps": newton(quasi_newton=False),
    **{
        f"and {name}": newton(quasi_newton=False, **options)
        for name, options in {
            "fixed blocks": {"adaptive_blocks": False},
            # Noise samples of blocks of one step are the gradients themselves: none would be left.
            "no block means": {"block_length": 1, "noise_samples": 0},
            "no noise shrinkage": {"noise_samples": 0},
            "no gradient guard": {"safeguard": ("descent", "limits")},
            "no trust, no damping": {"safeguard": ("residual", "descent")},
            "m = 3, 2 noise rows": {"history_depth": 3, "noise_samples": 2},  # memory_light
            "m = 8, 9 noise rows": {"history_depth": 8, "noise_samples": 9},
            "float32 rows": {"dtype": "float32"},
            "a system per tensor": {"scope": "tensor"},
        }.items()
    },
}


@dataclass(frozen=True)
class Run:
    """What a result depends on."""

    task: str
    optimizer: str
    batch: int  #: 0: all samples
    seed: int
    rate: float
    steps: int
    method: str = "base"
    settings: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """The same for equal runs."""
        return json.dumps(asdict(self), sort_keys=True)


def key_of(record: Record) -> str:
    """The key of the run that a record is of."""
    return Run(**{field.name: record[field.name] for field in fields(Run)}).key


class Training:
    """A model on its way, with what it has cost so far."""

    def __init__(self, run: Run) -> None:
        task = ALL_TASKS[run.task]
        self.problem, self._clip = task.build(run.seed), task.clip
        order = run.seed + (OTHER_ORDER if run.method == "null" else 0)
        self._batches = batches(self.problem.samples, run.batch, order)
        parameters = self.problem.model.parameters()
        self._wants_closure = run.method == "lbfgs"
        self.optimizer: Optimizer
        if run.method == "lbfgs":
            self.optimizer = LBFGS(
                parameters, max_iter=10, history_size=10, line_search_fn="strong_wolfe"
            )
        else:
            self.optimizer = ALL_OPTIMIZERS[run.optimizer][0](parameters, lr=run.rate)
        if run.settings is not None:
            method = method_of(run.settings)
            accelerate(self.optimizer, method)
            self._wants_closure = "loss" in method.tests
        self.evaluations, self.seconds = 0, 0.0

    def step(self) -> None:
        """One step of the optimizer; every call of its closure is a gradient evaluation."""
        start = time.perf_counter()
        pick = next(self._batches)

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.problem.loss(pick)
            loss.backward()  # type: ignore[no-untyped-call]
            if self._clip < math.inf:
                clip_grad_norm_(self.problem.model.parameters(), self._clip)
            self.evaluations += 1
            return loss

        if self._wants_closure:
            self.optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            self.optimizer.step()
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def loss(self) -> float:
        """Over all samples, as in training, but the statistics of BatchNorm do not see it."""
        buffers = list(self.problem.model.buffers())
        kept = [buffer.clone() for buffer in buffers]
        value = float(self.problem.loss(None))
        for buffer, values in zip(buffers, kept, strict=True):
            buffer.copy_(values)
        return value

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """On the samples held out, in evaluation mode."""
        if self.problem.validation is None:
            return None
        self.problem.model.eval()
        value = float(self.problem.validation())
        self.problem.model.train()
        return value

    @property
    def lost(self) -> bool:
        """Whether a parameter is not finite."""
        return not all(bool(p.isfinite().all()) for p in self.problem.model.parameters())


def method_of(settings: dict[str, Any]) -> Anderson | SubspaceNewton:
    """From what can be written as JSON."""
    options = {name: value for name, value in settings.items() if name not in ("method", "dtype")}
    if "dtype" in settings:
        options["storage"] = Storage(getattr(torch, settings["dtype"]))
    if settings["method"] == "Anderson":
        return Anderson(**options)
    return SubspaceNewton(**options)


def batches(samples: int, size: int, seed: int) -> Iterator[Tensor | None]:
    """Random order in each epoch, full batches only; ``size`` 0: all samples, each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        if size == 0:
            yield None
            continue
        order = torch.randperm(samples, generator=generator)
        yield from order[: samples // size * size].view(-1, size)


def train(run: Run, base: Record | None = None) -> Record:
    """Run to the end, and on until the final loss of ``base`` is reached, if it will be."""
    training = Training(run)
    due = run.steps // EVERY
    losses: list[float] = []
    smoothed: list[float] = []
    clock: list[float] = []
    validation: float | None = None
    target = -math.inf if base is None else base["final"] * (1 + ROUNDING)
    reached: int | None = None
    while len(losses) < due or (base and not reached and len(losses) < MOST * due):
        training.step()
        while training.evaluations >= EVERY * (len(losses) + 1):
            losses.append(training.loss())
            smoothed.append(fmean(losses[-WINDOW:]))
            clock.append(training.seconds)
            if reached is None and smoothed[-1] <= target:
                reached = len(losses)
            if len(losses) == due:
                validation = training.validation_loss()
        if losses and not math.isfinite(losses[-1]) and training.lost:
            break
    final = smoothed[due - 1] if len(smoothed) >= due else math.nan
    if base is None:
        reached = next((i + 1 for i, x in enumerate(smoothed) if x <= final), None)
    record: Record = {
        **asdict(run),
        "final": finite(final),
        "validation": finite(validation),
        "seconds": clock[min(due, len(clock)) - 1] if clock else None,
        "reached": reached and EVERY * reached,
        "reached_seconds": reached and clock[reached - 1],
    }
    if run.settings is not None:
        stats = get_accelerator(training.optimizer).stats.as_dict()
        counts = ("extrapolations", "accepted", "shortened", "rejected", "restarts")
        record["stats"] = {name: stats[name] for name in counts}
    return {**record, **ratios(record, record if base is None else base)}


def ratios(record: Record, base: Record) -> Record:
    """Against base; there are none where base diverged."""
    if base["final"] is None:
        return {}
    found: Record = {
        "ratio": record["reached"] / base["steps"] if record["reached"] else NEVER,
        "wall_ratio": record["reached_seconds"] / base["seconds"] if record["reached"] else NEVER,
        "loss_ratio": quotient(record["final"], base["final"]),
    }
    if base["validation"] is not None:
        found["validation_ratio"] = quotient(record["validation"], base["validation"])
    return found


def finite(value: float | None) -> float | None:
    """None for what is not a number that JSON has."""
    return value if value is not None and math.isfinite(value) else None


def quotient(a: float | None, b: float) -> float | None:
    """Of two losses; that of two zeros is 1."""
    return None if a is None else (a + 1e-30) / (b + 1e-30)


# ---- learning rates -------------------------------------------------------------------------


def tune(key: str, run: Run, seeds: list[int]) -> tuple[str, Record]:
    """The best rate of a grid with about a factor of 3; it grows where the best is at its edge."""

    def score(power: int) -> float:
        finals = [train(replace(run, seed=s, rate=rate_of(power)))["final"] for s in seeds]
        if None in finals:
            return math.inf
        return math.exp(fmean(math.log(max(final, 1e-30)) for final in finals))

    middle = ALL_OPTIMIZERS[run.optimizer][1]
    first, last = middle - TUNING_POINTS // 2, middle + TUNING_POINTS // 2
    scores = {power: score(power) for power in range(first, last + 1)}

    def best() -> int:  # the lowest where all diverge
        return min(scores, key=lambda power: (scores[power], power))

    while best() in (min(scores), max(scores)) and len(scores) < MOST_POINTS:
        power = best() - 1 if best() == min(scores) else best() + 1
        scores[power] = score(power)
    grid = {str(rate_of(power)): finite(scores[power]) for power in sorted(scores)}
    return key, {"rate": rate_of(best()), "steps": run.steps, "losses": grid}


def rate_of(power: int) -> float:
    """1, 3, 10, ... and 0.3, 0.1, ..."""
    return float(f"{10 ** (power / 2):.0e}")


def tuned_rates(path: Path, options: argparse.Namespace) -> dict[str, Record]:
    """Those on file, and the others made (all of them with ``--tune``) and put there."""
    rates: dict[str, Record] = json.loads(path.read_text()) if path.exists() else {}
    seeds = SEEDS["tuning"][: 1 if options.quick else 2]
    missing: list[tuple[str, Run, list[int]]] = []
    for task in options.tasks:
        for optimizer in options.optimizers:
            for batch in sizes_of(task, options.batches):
                key = rate_key(task, optimizer, batch)
                if options.tune or key not in rates or rates[key]["steps"] != options.steps(task):
                    run = Run(task, optimizer, batch, 0, 0.0, options.steps(task))
                    missing.append((key, run, seeds))
    progress = tqdm(total=len(missing), unit="rate", desc="learning rates", disable=not missing)
    for key, found in each(tune, shuffled(missing), options.jobs):
        rates[key] = found
        write(path, compact(dict(sorted(rates.items()))))
        progress.update()
    progress.close()
    return rates


def rate_key(task: str, optimizer: str, batch: int) -> str:
    """Of the file of rates."""
    return f"{task}, {optimizer}, {f'batch {batch}' if batch else 'full batch'}"


def show_rates(rates: dict[str, Record], options: argparse.Namespace) -> None:
    """Print the best ones and the ends of the grids, whose losses are on file."""

    def text(entry: Record | None) -> str:
        grid = sorted(map(float, entry["losses"])) if entry else []
        return f"{entry['rate']:g} of {grid[0]:g} to {grid[-1]:g}" if entry else "-"

    for batch in options.batches:
        table = Table("", *options.optimizers, title=f"learning rates, {batch or 'full'} batch")
        for task in options.tasks:
            keys = [rate_key(task, optimizer, batch) for optimizer in options.optimizers]
            table.add_row(task, *(text(rates.get(key)) for key in keys))
        Console(width=20 + 24 * len(options.optimizers)).print(table)


# ---- the suite ------------------------------------------------------------------------------


def sizes_of(task: str, wanted: list[int]) -> list[int]:
    """The batch sizes that a task can have."""
    samples = ALL_TASKS[task].build(0).samples
    return [size for size in wanted if size < samples and size <= ALL_TASKS[task].largest_batch]


def cells(options: argparse.Namespace, rates: dict[str, Record]) -> list[Run]:
    """All runs of base."""
    return [
        Run(
            task,
            optimizer,
            batch,
            seed,
            rates[rate_key(task, optimizer, batch)]["rate"],
            options.steps(task),
        )
        for task in options.tasks
        for optimizer in options.optimizers
        for batch in sizes_of(task, options.batches)
        for seed in options.seeds
    ]


def shuffled(items: list[Any]) -> list[Any]:
    """In an order that makes the time left a fair guess."""
    return random.Random(0).sample(items, len(items))


def each(function: Callable[..., Any], calls: list[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """The results, in any order, from ``jobs`` processes of one thread each."""
    if jobs == 1:
        yield from (function(*call) for call in calls)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,))
    try:
        for future in as_completed([pool.submit(function, *call) for call in calls]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def run_all(options: argparse.Namespace, rates: dict[str, Record]) -> list[Record]:
    """Run what is missing, first of base, then of the others; the records of all runs wanted."""
    finished = read(options.out, options.forget)
    bases = cells(options, rates)
    others = [
        (replace(run, method=method, settings=settings), run.key)
        for run in bases
        for method, settings in options.methods.items()
        if method not in {"base", "lbfgs" if run.batch else "null"}
    ]
    wanted = [run.key for run in bases] + [run.key for run, _ in others]
    found = sum(key in finished for key in wanted)
    print(f"{found} of {len(wanted)} runs are in {options.out}")
    progress = tqdm(total=len(wanted), initial=found, unit="run", smoothing=0.02)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as lines:

        def run_missing(calls: list[tuple[Any, ...]]) -> None:
            missing = [call for call in calls if call[0].key not in finished]
            for record in each(train, shuffled(missing), options.jobs):
                finished[key_of(record)] = record
                print(json.dumps(record), file=lines, flush=True)
                progress.update()

        run_missing([(run,) for run in bases])
        calls = [(run, finished[base]) for run, base in others]
        run_missing([call for call in calls if call[1]["final"] is not None])
    progress.close()
    return [finished[key] for key in wanted if key in finished]


def read(path: Path, forget: list[str] | None) -> dict[str, Record]:
    """The records on file; those of methods to forget (of all, if none is named) are removed."""
    if not path.exists():
        return {}
    lines: dict[str, str] = {}
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the suite was killed while it wrote
            continue
        if forget is None or (forget and record["method"] not in forget):
            lines[key_of(record)] = line
    write(path, "".join(f"{line}\n" for line in lines.values()))
    return {key: json.loads(line) for key, line in lines.items()}


def variant(text: str) -> tuple[str, dict[str, Any]]:
    """Parse ``name:key=value,...``."""
    name, _, settings = text.partition(":")
    call = ast.parse(f"_({settings})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args:
        raise argparse.ArgumentTypeError(f"{text!r} is not name:key=value,...")
    values = {
        str(keyword.arg): keyword.value.id
        if isinstance(keyword.value, ast.Name)
        else ast.literal_eval(keyword.value)
        for keyword in call.keywords
    }
    return name, newton(**values)


def parse() -> argparse.Namespace:
    """The command line, with ``methods``, ``seeds`` and ``steps`` (of a task) resolved."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a subset of few steps, under three minutes")
    add("--ablate", action="store_true", help="variants of newton in place of other methods")
    add("--tune", action="store_true", help="tune the learning rates anew")
    add("--jobs", type=int, default=1, help="processes (wall times suffer from many)")
    add("--tasks", nargs="+", choices=ALL_TASKS)
    add("--optimizers", nargs="+", choices=ALL_OPTIMIZERS)
    add("--batches", nargs="+", type=int, help="0 is the full batch")
    add("--seeds", nargs="+", default=["reporting"], help="tuning, reporting, or numbers")
    add("--methods", nargs="+", choices=METHODS, help="all, if none is named")
    add("--set", nargs="+", type=variant, default=[], metavar="NAME:KEY=VALUE,...",
        help="variants of newton: options of SubspaceNewton, or dtype=NAME")  # fmt: skip
    add("--forget", nargs="*", metavar="METHOD", help="finished runs to run again; none: all")
    add("--by", choices=["task", "optimizer", "batch"], help="print medians for each, too")
    add("--out", type=Path, help="JSON lines; summary and plot are put beside it")
    given = parser.parse_args()
    given.tasks = given.tasks or (QUICK_TASKS if given.quick else list(TASKS))
    given.optimizers = given.optimizers or (QUICK_OPTIMIZERS if given.quick else list(OPTIMIZERS))
    given.batches = given.batches or (QUICK_BATCHES if given.quick else BATCHES)
    given.seeds = SEEDS.get(given.seeds[0]) or [int(seed) for seed in given.seeds]
    given.seeds = given.seeds[: 1 if given.quick else None]
    given.steps = lambda task: QUICK_STEPS if given.quick else ALL_TASKS[task].steps
    names = given.methods or (["newton"] if given.ablate else METHODS)
    variants = ABLATIONS if given.ablate else {}
    chosen = {"base": None} | {name: METHODS[name] for name in names}
    given.methods = chosen | variants | dict(given.set)
    name = "convergence_quick" if given.quick else "convergence"
    given.rates = RESULTS / f"{name}_rates.json"
    name += "_ablation" if given.ablate else ""
    given.out = given.out or RESULTS / f"{name}_runs.jsonl"
    return given


def main() -> None:
    """Tune, run, print, write."""
    options = parse()
    torch.set_num_threads(1)
    rates = tuned_rates(options.rates, options)
    show_rates(rates, options)
    records = run_all(options, rates)
    methods = list(options.methods)
    rows = summarize(records, methods)
    if options.by:
        show_medians(records, methods, options.by)
    show(rows)
    diverged = sum(r["method"] == "base" and r["final"] is None for r in records)
    print(f"base diverged, so that nothing was compared, in {diverged} cells")
    result = {
        "seeds": options.seeds,
        "batches": options.batches,
        "methods": options.methods,
        "base_diverged": diverged,
        "rates": options.rates.name,
        "rows": rows,
    }
    path = save(options.out.stem.removesuffix("_runs"), result, options.out.parent)
    plot(records, methods, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
