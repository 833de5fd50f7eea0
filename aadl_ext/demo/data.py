"""Real regression data: embedded in scikit-learn, or the paper's Graduate Admissions file."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ADMISSIONS_FEATURES = (
    "GRE Score",
    "TOEFL Score",
    "University Rating",
    "SOP",
    "LOR",
    "CGPA",
    "Research",
)
ADMISSIONS_TARGET = "Chance of Admit"
LEAST_ROWS = 50


class DataError(ValueError):
    """A data file that cannot be used, with the reason."""


@dataclass(frozen=True)
class Regression:
    """A table to learn from; ``features`` is [rows, columns], ``target`` [rows]."""

    name: str
    features: NDArray[np.float64]
    target: NDArray[np.float64]
    scale_target: bool  # to unit variance; not where it is a probability already
    scale_features: bool = True  # likewise


@dataclass(frozen=True)
class Split:
    """Training and validation part, float32, scaled by the training part's mean and deviation."""

    train_x: Tensor
    train_y: Tensor
    valid_x: Tensor
    valid_y: Tensor

    def to(self, device: torch.device | str) -> Split:
        """The same on another device."""
        return Split(*(getattr(self, field.name).to(device) for field in fields(self)))


def load(path: Path | None) -> Regression:
    """Read the Graduate Admissions file at ``path``, or else the diabetes data.

    Raises:
        DataError: the file cannot be read or is another one.
    """
    return _diabetes() if path is None else _admissions(path)


def split(data: Regression, seed: int, share: float = 0.8) -> Split:
    """Split at random; the split depends on ``seed`` only."""
    order = np.random.default_rng(seed).permutation(len(data.target))
    train, valid = np.split(order, [round(share * len(order))])
    x, y = data.features, data.target[:, None]
    if data.scale_features:
        x = (x - x[train].mean(axis=0)) / np.maximum(x[train].std(axis=0), 1e-12)
    if data.scale_target:
        y = (y - y[train].mean()) / y[train].std()
    parts = [torch.from_numpy(part).float() for part in (x[train], y[train], x[valid], y[valid])]
    return Split(*parts)


def _diabetes() -> Regression:
    from sklearn.datasets import load_diabetes

    table = load_diabetes()
    return Regression("diabetes (scikit-learn)", table.data, table.target, scale_target=True)


def _admissions(path: Path) -> Regression:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    names = [name.strip() for name in header]
    wanted = [*ADMISSIONS_FEATURES, ADMISSIONS_TARGET]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(
            f"{path} is not the Graduate Admissions file: no column {', '.join(missing)}; "
            f"its header is: {', '.join(names) or '(empty)'}"
        )
    columns = [names.index(name) for name in wanted]
    numbers = [
        _numbers(path, line, row, columns) for line, row in enumerate(rows, start=2) if any(row)
    ]
    if len(numbers) < LEAST_ROWS:
        raise DataError(f"{path} has {len(numbers)} rows of data; at least {LEAST_ROWS} are needed")
    table = np.array(numbers)
    return Regression("graduate admissions", table[:, :-1], table[:, -1], scale_target=False)


def _numbers(path: Path, line: int, row: list[str], columns: list[int]) -> list[float]:
    try:
        values = [float(row[column]) for column in columns]
    except (IndexError, ValueError) as error:
        raise DataError(f"{path}, line {line}: expected numbers, got {','.join(row)}") from error
    if not np.isfinite(values).all():
        raise DataError(f"{path}, line {line}: a value is not finite: {','.join(row)}")
    return values
