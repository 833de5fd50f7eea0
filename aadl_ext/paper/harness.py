"""Shared by the paper's experiments: run all methods and seeds, keep what is finished, report.

An experiment trains each method on each seed. A finished run goes into ``NAME.json`` at once, so
that an interruption loses at most one; the next call goes on with what is missing, more seeds can
be added later, and runs made with other settings are never mixed. Table and plot are made from
that file.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim import Optimizer
from tqdm import tqdm

import aadl_ext

from ..demo.data import DataError
from ..demo.report import write
from .reporting import Record, report

LOOKS = 150  # points of a curve that are kept
#: figures of ``Stats`` that are kept, under the name that they have in files
COUNTS = {
    "steps": "steps",
    "extrapolations": "jumps",
    "accepted": "accepted",
    "rejected": "rejected",
    "averaged": "averaged",
    "restarts": "restarts",
    "skipped": "skipped",
}


class SettingsError(ValueError):
    """The command cannot be carried out, with the reason and the remedy."""


class Training(Protocol):
    """A network on its way."""

    @property
    def optimizer(self) -> Optimizer:
        """What trains it, accelerated or not."""

    def advance(self) -> None:
        """Train for one unit (an epoch or an iteration)."""

    def measure(self) -> dict[str, float]:
        """The figures that are watched; the first is the one of the paper's plot."""


@dataclass(frozen=True)
class Experiment:
    """What is run, and everything that its results depend on besides the seed."""

    name: str  #: of the files
    title: str
    unit: str  #: "epoch" or "iteration"
    iterations: int  #: units of a run
    methods: dict[str, Any]  #: settings by name; the first is what the others are compared with
    settings: Record  #: the rest, in plain values
    #: a training by the method's settings and the seed, for :func:`run`
    start: Callable[[Any, int], Training] | None = None
    picture: str = ""  #: name of the plot, if it is another one


# ---- results --------------------------------------------------------------------------------


def looks(iterations: int) -> list[int]:
    """After which units a run is measured: at most ``LOOKS`` times, the last included."""
    count = min(LOOKS, iterations)
    return [round((i + 1) * iterations / count) for i in range(count)]


def fresh(experiment: Experiment) -> Record:
    """Results without runs."""
    return {
        "title": experiment.title,
        "unit": experiment.unit,
        "at": looks(experiment.iterations),
        "settings": {"iterations": experiment.iterations, **experiment.settings},
        "methods": experiment.methods,
        "versions": {},
        "runs": [],
    }


def load(experiment: Experiment, path: Path) -> Record:
    """The results at ``path``, or fresh ones.

    Raises:
        SettingsError: they were made with other settings.
    """
    new: Record = json.loads(json.dumps(fresh(experiment)))
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    for kind in ("settings", "methods"):
        for key in old[kind].keys() | new[kind].keys():
            if kind == "methods" and not (key in old[kind] and key in new[kind]):
                continue  # another method is none of these
            if old[kind].get(key) != new[kind].get(key):
                raise SettingsError(
                    f"{path} holds runs with {key} = {old[kind].get(key)!r}, but here it is "
                    f"{new[kind].get(key)!r}; give --out another folder, or the same settings"
                )
    return {**old, "title": new["title"], "methods": {**old["methods"], **new["methods"]}}


def save(results: Record, path: Path) -> None:
    """Write JSON with a line for each run, and one for all the rest."""

    def dense(value: Record) -> str:
        return json.dumps(value, separators=(",", ":"))

    head = dense({key: value for key, value in results.items() if key != "runs"})[:-1]
    runs = ",\n".join(map(dense, results["runs"]))
    write(path, f'{head},\n"runs":[\n{runs}\n]}}\n')


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {
        "aadl_ext": aadl_ext.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


# ---- running --------------------------------------------------------------------------------


def train(
    experiment: Experiment, method: str, seed: int, each: Callable[[], object] = lambda: None
) -> Record:
    """One run: its thinned curves and last figures; ``each`` is called after every unit.

    A run whose first figure is no longer finite is over; what is missing is None.
    """
    start = time.perf_counter()
    assert experiment.start is not None
    training = experiment.start(experiment.methods[method], seed)
    at = set(looks(experiment.iterations))
    watched: list[dict[str, float]] = []
    for unit in range(1, experiment.iterations + 1):
        lost = bool(watched) and not math.isfinite(next(iter(watched[-1].values())))
        if not lost:
            training.advance()
        if unit in at:
            watched.append(dict.fromkeys(watched[-1], math.nan) if lost else training.measure())
        each()
    curves = {name: [number(look[name], 4) for look in watched] for name in watched[0]}
    return {
        "method": method,
        "seed": seed,
        "final": {name: number(value, 7) for name, value in watched[-1].items()},
        "seconds": round(time.perf_counter() - start, 1),
        "stats": counts(training.optimizer),
        "curves": curves,
    }


def number(value: float, digits: int) -> float | None:
    """Rounded to significant digits; None for what JSON has no number for."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def counts(optimizer: Optimizer) -> Record:
    """What the accelerator did; empty without one."""
    try:
        stats = aadl_ext.get_accelerator(optimizer).stats.as_dict()
    except ValueError:
        return {}
    return {kept_as: stats[name] for name, kept_as in COUNTS.items()}


def run(experiment: Experiment, seeds: int, out: Path, as_json: bool = False) -> Path:
    """Run what is missing of the first ``seeds`` seeds, then report; returns the JSON's path.

    Interrupted, it reports what is finished. ``as_json``: on stdout is nothing but the report.

    Raises:
        SettingsError: the file on disk was made with other settings, or nothing is finished yet.
    """
    path = out / f"{experiment.name}.json"
    results = load(experiment, path)
    finished = {key_of(record) for record in results["runs"]}
    wanted = [(method, seed) for seed in range(seeds) for method in experiment.methods]
    missing = [task for task in wanted if task not in finished]
    tell = partial(print, file=sys.stderr if as_json else sys.stdout)
    tell(f"{experiment.title}\n{len(wanted) - len(missing)} of {len(wanted)} runs are in {path}")
    total = len(missing) * experiment.iterations
    try:
        with tqdm(total=total, unit=experiment.unit, disable=not missing) as bar:
            for method, seed in missing:
                bar.set_description(f"seed {seed}, {method}")
                add(results, train(experiment, method, seed, bar.update), path)
    except KeyboardInterrupt:
        tell("interrupted; the same command goes on from here")
    runs = [record for record in results["runs"] if key_of(record) in wanted]
    if not runs:
        raise SettingsError("no run is finished")
    picture = out / f"{experiment.picture or experiment.name}.png"
    report({**results, "runs": runs}, list(experiment.methods), picture, as_json=as_json)
    tell(f"results: {path}\nplot:    {picture}")
    return path


def add(results: Record, record: Record, path: Path) -> None:
    """Put a finished run among the others, in memory and on disk."""
    others = [r for r in results["runs"] if (r["method"], r["seed"]) != key_of(record)]
    order = list(results["methods"])
    others.append(record)
    results["runs"] = sorted(others, key=lambda r: (r["seed"], order.index(r["method"])))
    for name, version in versions().items():
        results["versions"][name] = sorted({*results["versions"].get(name, []), version})
    save(results, path)


def key_of(record: Record) -> tuple[str, int]:
    """What tells runs of one file apart."""
    return record["method"], record["seed"]


# ---- command line ---------------------------------------------------------------------------


def parser(description: str, iterations: int, seeds: int) -> argparse.ArgumentParser:
    """The options that all experiments have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--seeds", type=positive, default=seeds, help=f"0 to N - 1 (N = {seeds})")
    made.add_argument("--iterations", type=positive, default=iterations, help=f"({iterations})")
    made.add_argument("--device", type=device, default=torch.device("cpu"), help="(cpu)")
    out = Path("paper_results")
    made.add_argument("--out", type=Path, default=out, help=f"folder of the results ({out})")
    made.add_argument("--json", action="store_true", help="print JSON in place of the table")
    return made


def positive(text: str) -> int:
    """Parse a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def device(name: str) -> torch.device:
    """Parse a device that is usable here and now."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} cannot be used here: {error}") from error
    return torch.device(name)


def command(main: Callable[[], object]) -> None:
    """Run a script's ``main``; what it refuses becomes a line on stderr and status 2."""
    try:
        main()
    except (SettingsError, DataError, OSError) as reason:
        sys.stderr.write(f"error: {reason}\n")
        sys.exit(2)
