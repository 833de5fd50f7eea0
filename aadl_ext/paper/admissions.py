"""Graduate admissions (the paper's Figure 1): a small regression network, Adam, batches of 40.

500 applicants, 3 x 64 ReLU, mean squared error, 80 % for training; Adam 0.02, after epoch 1,000
4e-3; p = 1, q = 1, m = 10, beta = 0.1, epsilon = 0.1.

The file is not part of the repository: give it with ``--data`` or put it into
``shared/data/graduate_admissions.csv`` here or above; without it the diabetes data of
scikit-learn take its place. Results of other data go to other files.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..demo.data import Regression, load
from ..demo.training import BATCH, LATER_RATE, LEARNING_RATE, Training
from . import harness, readings

ACCELERATION = {"frequency": 1, "store_each_nth": 1, "history_depth": 10, "relaxation": 0.1}
DROP = 1000  # epoch at which the learning rate falls
AADL_SPLIT = 42  # the one split that the example in AADL's repository uses for all runs


def experiment(
    data: Regression, name: str, epochs: int, device: Any, split: Any
) -> harness.Experiment:
    """Train on ``data``; ``split`` fixes the split for all seeds."""
    methods = readings.paper(**ACCELERATION)

    def start(options: Any, seed: int) -> Training:
        accelerate = partial(readings.accelerate, method=options)
        closure = readings.wants_closure(options)
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
    readings.add_options(parser)
    add("--target", choices=["as-it-is", "standardised"], default="as-it-is")
    add("--features", choices=["standardised", "as-they-are", "0-to-1"], default="standardised")
    add("--columns", type=int, choices=[7, 9], default=7, help="9: the target among the inputs")
    add("--one-split", action="store_true", help="one split for all seeds, as AADL's example")
    options = parser.parse_args()
    file = options.data or find_file()
    data = load(file)
    if file is None:
        said = "the admissions file was not found; diabetes data instead (see --help)"
        print(said, file=sys.stderr)
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
    split = AADL_SPLIT if options.one_split else None
    made = experiment(data, name, options.iterations, options.device, split)
    readings.run(made, options, ACCELERATION)
