"""Graduate admissions (the paper's Figure 1): a small regression network, Adam, batches of 40.

500 applicants, 3 x 64 ReLU, mean squared error, 80 % for training; Adam 0.02, after epoch 1,000
4e-3; p = 1, q = 1, m = 10, beta = 0.1, epsilon = 0.1.

The file is not part of the repository: give it with ``--data`` or put it into
``shared/data/graduate_admissions.csv`` here or above; without it the diabetes data of
scikit-learn take its place. ``--readings`` tries what else the text may mean.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np

from aadl_ext.demo.data import Regression, load
from aadl_ext.demo.training import (
    ACCELERATION,
    BATCH,
    LATER_RATE,
    LEARNING_RATE,
    METHODS,
    Training,
    acceleration_of,
)

DROP = 1000  # epoch at which the learning rate falls
AADL_SPLIT = 42  # the one split that the example in AADL's repository uses for all runs

AVERAGE = {**ACCELERATION, "average": True}
WINDOW = {**AVERAGE, "average_window": 10}
CLASSIC = {"mixing": "anderson"}
LOSS = {"safeguard": "loss"}
#: What the text allows besides the settings of METHODS; ``accelerate``'s arguments.
READINGS: dict[str, dict[str, Any]] = {
    "AADL, classic damping": {**ACCELERATION, **CLASSIC},
    "average, classic damping": {**AVERAGE, **CLASSIC},
    "average, t = 2": {**AVERAGE, "average_window": 2},
    "average, t = m = 10": WINDOW,
    "average, safeguard by the loss": {**AVERAGE, **LOSS},
    "average, t = 10, classic, loss": {**WINDOW, **CLASSIC, **LOSS},
    "average, no acceleration": {
        "acceleration_type": "identity", "average": True, "average_window": 5,
        "average_threshold": 0.1,
    },
    **harness.CONTROL,
}  # fmt: skip
#: AADL's own code, imported where it is installed; its depth counts iterates, ours columns.
AADL_CODE: dict[str, Any] = {
    f"AADL's code, {name}": {
        "code": "AADL",
        "acceleration_type": "anderson",
        "relaxation": 0.1,
        "history_depth": 10,
        "frequency": 1,
        "store_each_nth": 1,
        **settings,
    }
    for name, settings in {
        "no average": {"average": False},
        "average": {"average": True},
        "average, safeguard": {"average": True, "closure": True},
    }.items()
}


def experiment(
    data: Regression, methods: dict[str, Any], name: str, epochs: int, device: Any, split: Any
) -> harness.Experiment:
    """Train on ``data`` with each method; ``split`` fixes the split for all seeds."""

    def start(options: Any, seed: int) -> Training:
        accelerate, closure = accelerator(options)
        return Training(data, seed, DROP, accelerate, device, split, closure)

    settings = {
        "data": data.name,
        "columns": data.features.shape[1],
        "features": "standardised" if data.scale_features else "as they are",
        "target": "standardised" if data.scale_target else "as it is",
        "split seed": split,
        "device": device.type,
        "network": "3 x 64 ReLU",
        "batch": BATCH,
        "optimizer": {"Adam": LEARNING_RATE, f"epoch {DROP}": LATER_RATE},
    }
    return harness.Experiment(name, data.name, "epoch", epochs, methods, settings, start)


def accelerator(options: Any) -> tuple[Callable[[Any], object] | None, bool]:
    """The call that accelerates an optimizer, and whether its steps want a closure."""
    if options is None:
        return None, False
    arguments = dict(options)
    closure = arguments.pop("closure", arguments.get("safeguard") == "loss")
    if arguments.pop("code", None) != "AADL":
        return partial(harness.accelerate, options=arguments), closure
    try:
        package = importlib.import_module("AADL")
    except ImportError as error:
        raise harness.SettingsError(
            f"AADL cannot be imported ({error}); git clone https://github.com/ORNL/AADL and put "
            "the folder on PYTHONPATH"
        ) from error
    return partial(package.accelerate, **arguments), closure


def find_file() -> Path | None:
    """The paper's file, here or above."""
    for folder in (Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents):
        file = folder / "shared" / "data" / "graduate_admissions.csv"
        if file.exists():
            return file
    return None


def all_columns(data: Regression, file: Path) -> Regression:
    """With serial number and the target itself among the inputs: 9, as the paper counts them."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [row for row in list(csv.reader(lines))[1:] if any(row)]
    features = np.array(rows, dtype=float)
    return replace(data, name=f"{data.name}, all 9 columns as inputs", features=features)


def unscaled(data: Regression, to_unit: bool) -> Regression:
    """With features as they are, or from 0 to 1."""
    x = data.features
    if to_unit:
        x = (x - x.min(axis=0)) / (x.max(axis=0) - x.min(axis=0))
    name = f"{data.name}, features {'from 0 to 1' if to_unit else 'as they are'}"
    return replace(data, name=name, features=x, scale_features=False)


def main() -> None:
    """Run, print, draw."""
    parser = harness.parser(__doc__ or "", iterations=1500, seeds=20)
    add = parser.add_argument
    add("--data", type=Path, help="the file (looked for in shared/data, here and above)")
    add("--readings", action="store_true", help="other settings that the text allows")
    add("--aadl", action="store_true", help="with --readings: AADL's own code, too")
    add("--methods", nargs="+", metavar="NAME", help="only these; the first is compared with")
    add("--target", choices=["as-it-is", "standardised"], default="as-it-is")
    add("--features", choices=["standardised", "as-they-are", "0-to-1"], default="standardised")
    add("--columns", type=int, choices=[7, 9], default=7, help="9: the target among the inputs")
    add("--one-split", action="store_true", help="one split for all seeds, as AADL's example")
    options = parser.parse_args()
    file = options.data or find_file()
    data = load(file)
    if file is None:
        print("the admissions file was not found; diabetes data instead (see --help)")
    names = ["admissions" if file else "admissions_on_diabetes"]
    if options.columns == 9:
        if file is None:
            raise harness.SettingsError("--columns 9 needs the admissions file: see --data")
        data = all_columns(data, file)
        names.append("9_columns")
    if options.target == "standardised":
        data = replace(data, scale_target=True)
        names.append("target_standardised")
    if options.features != "standardised":
        data = unscaled(data, options.features == "0-to-1")
        names.append("features_" + options.features.replace("-", "_"))
    if options.one_split:
        names.append("one_split")
    name = "_".join(names)
    methods: dict[str, Any] = {method: acceleration_of(method) for method in METHODS}
    if options.readings:
        methods |= READINGS | (AADL_CODE if options.aadl else {})
    if unknown := set(options.methods or []) - set(methods):
        raise harness.SettingsError(f"{unknown} are none of {', '.join(methods)}")
    methods = {method: methods[method] for method in options.methods or methods}
    split = AADL_SPLIT if options.one_split else None
    made = experiment(data, methods, name, options.iterations, options.device, split)
    if options.readings:
        made = replace(made, picture=f"{name}_readings")
    harness.run(made, options.seeds, options.out)


if __name__ == "__main__":
    harness.command(main)
