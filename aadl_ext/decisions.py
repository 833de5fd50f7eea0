"""Numbers and decisions of a step: Python's own on the CPU, 0-dim tensors on other devices.

Reading a number of a device waits until the device has done all that was asked of it. So a step
reads none: it decides with numbers that stay where they are, by the few functions here, and by
operators that floats and tensors share. What it decides are *flags*, and ops write only where
theirs is true.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import ops

Number = float | Tensor
Flag = bool | Tensor


def readable(tensor: Tensor) -> bool:
    """Whether reading an entry does not wait."""
    return tensor.is_cpu


def numbers(tensor: Tensor) -> list[Number]:
    """The entries of a vector."""
    return tensor.tolist() if readable(tensor) else list(tensor.unbind())


def number(tensor: Tensor) -> Number:
    """The entry of a 0-dim tensor."""
    return tensor.item() if readable(tensor) else tensor


def flag(tensor: Tensor) -> Flag:
    """The entry of a 0-dim tensor of bool."""
    return bool(tensor) if readable(tensor) else tensor


def negate(condition: Flag) -> Flag:
    """Not."""
    return condition ^ True


def finite(value: Number) -> Flag:
    """Neither infinite nor NaN."""
    return torch.isfinite(value) if isinstance(value, Tensor) else math.isfinite(value)


def choose(condition: Flag, yes: Number, no: Number) -> Number:
    """``yes`` if the condition holds, else ``no``."""
    if isinstance(condition, bool):
        return yes if condition else no
    if not isinstance(yes, Tensor) and not isinstance(no, Tensor):
        no = condition.new_full((), no, dtype=torch.float64)
    return torch.where(condition, yes, no)


def larger(one: Number, other: Number) -> Number:
    """The larger number; ``other`` if they cannot be compared."""
    return choose(one > other, one, other)


def smaller(one: Number, other: Number) -> Number:
    """The smaller number; ``other`` if they cannot be compared."""
    return choose(one < other, one, other)


def told(value: Number) -> float:
    """The number on the host; waits for its device."""
    return value.item() if isinstance(value, Tensor) else value


def differ(one: Tensor, other: Tensor) -> Flag:
    """Whether two vectors differ in an entry; NaN differs from all."""
    return not torch.equal(one, other) if readable(one) else torch.ne(one, other).any()


def choose_vector(condition: Flag, yes: Tensor, no: Tensor) -> Tensor:
    """A vector with the entries of ``yes`` or of ``no``, which may be changed in place."""
    if isinstance(condition, bool):
        return yes if condition else no
    return ops.gather((yes,), no, when=condition)


def spoil(vector: Tensor, when: Flag) -> None:
    """Make the first entry NaN, in place: what is measured of it will not be finite."""
    if not isinstance(when, bool):
        vector[:1].masked_fill_(when, math.nan)
    elif when:
        vector[0] = math.nan


def possible(condition: Flag) -> bool:
    """False only where the host sees that it is."""
    return condition is not False


def table(rows: list[list[float]], like: Tensor) -> Tensor:
    """A matrix of these numbers beside ``like``, copied there without waiting."""
    host = torch.tensor(rows, dtype=like.dtype, pin_memory=like.is_cuda)
    return host.to(like.device, non_blocking=True)


def any_of(*flags: Flag) -> Flag:
    """Whether one of them is true."""
    result: Flag = False
    for one in flags:
        result = result | one
    return result


def exp(value: Number) -> Number:
    """The exponential function."""
    return value.exp() if isinstance(value, Tensor) else math.exp(value)


def add_scaled_(vector: Tensor, other: Tensor, factor: Number) -> None:
    """``vector += factor * other``."""
    if isinstance(factor, Tensor):
        vector.addcmul_(other, factor.to(vector.dtype))
    else:
        vector.add_(other, alpha=factor)


class Scalars:
    """Reads numbers that users give; a tensor on a device once, and again when it has changed."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[Tensor, int, float]] = {}

    def read(self, value: float | Tensor) -> float:
        """The number on the host."""
        if not isinstance(value, Tensor) or readable(value):
            return float(value)
        last, version, known = self._read.get(id(value), (None, 0, 0.0))
        if last is not value or version != value._version:
            known = float(value)
            self._read[id(value)] = (value, value._version, known)
        return known


class Delayed:
    """Lets the host learn a number of a device without waiting: the next time that it asks."""

    def __init__(self, value: float = 0) -> None:
        self._number = torch.tensor(float(value))
        self._arrived: torch.cuda.Event | None = None

    @property
    def value(self) -> float:
        """What the next exchange will return."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._number.item()

    def exchange(self, number: Number) -> float:
        """Send a number; returns the one sent before, or itself if it is on the host.

        Nothing is sent while a CUDA graph is captured; 0 is returned.
        """
        if not isinstance(number, Tensor):
            return number
        if number.is_cuda and torch.cuda.is_current_stream_capturing():
            return 0
        value = self.value
        self._number = torch.empty_like(number, device="cpu", pin_memory=number.is_cuda)
        self._number.copy_(number, non_blocking=True)
        if number.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        return value
