"""Rows of a history in host memory, of which parts come to the device and go.

A pass over rows goes part by part: while one is computed with, the next is on its way, on a stream
of its own. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .buffers import CPU, zeros
from .state import Scratch

PART = 1 << 20  # entries of each row that are on the device at a time, twice
AT_HOME = ("cpu",)  # devices whose own memory is the host's


class Aside:
    """Copies beside what the caller gives the device to do; here they are made at once."""

    def follow(self) -> None:
        """Copies from now on wait for what the caller has given the device until now."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Make a copy after those before it."""
        target.copy_(source)

    def mark(self) -> Any:
        """When all copies until now are made."""

    def wait(self, mark: Any) -> None:
        """What the caller gives the device from now on waits until then."""


class CudaAside(Aside):
    """On a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def follow(self) -> None:
        """Wait for the stream of the caller."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Begin it when those before it are made."""
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Any:
        """An event."""
        return self.stream.record_event()

    def wait(self, mark: Any) -> None:
        """The stream of the caller waits."""
        torch.cuda.current_stream(self.stream.device).wait_event(mark)


@cache
def beside(device: torch.device) -> Aside:
    """The one of a device."""
    return CudaAside(device) if device.type == "cuda" else Aside()


@dataclass(eq=False)
class Passes:
    """Over rows that are where they are computed with."""

    def parts(self, rows: Tensor, changed: Sequence[int] = ()) -> Iterator[tuple[slice, Tensor]]:
        """Slices of ``[N]``, which make up the whole, and of ``rows``: ``[R, n]``.

        ``changed``: rows that the caller writes, whole; what they held is not given.
        """
        yield slice(None), rows

    def bytes_offloaded(self, rows: Tensor) -> int:
        """Those of the rows, if they are not on the device."""
        return 0


@dataclass(eq=False)
class OffloadedPasses(Passes):
    """Over rows in host memory."""

    buffers: Scratch[Tensor]  #: [2, R, n] on the device

    def parts(self, rows: Tensor, changed: Sequence[int] = ()) -> Iterator[tuple[slice, Tensor]]:
        """In the end the stream of the caller has waited for what has changed to be back."""
        if rows.is_meta:  # nothing is there
            yield slice(None), rows
            return
        aside, size = beside(self.buffers.device), rows.shape[1]
        pieces = [slice(x, min(x + PART, size)) for x in range(0, max(size, 1), PART)]
        buffers = [
            self.buffers[i % 2, : len(rows), : x.stop - x.start] for i, x in enumerate(pieces)
        ]
        kept = [row for row in range(len(rows)) if row not in changed]

        def fetch(i: int) -> Any:
            for row in kept:
                aside.copy(buffers[i][row], rows[row, pieces[i]])
            return aside.mark()

        aside.follow()
        arrived = [fetch(0)]
        for i, (piece, buffer) in enumerate(zip(pieces, buffers, strict=True)):
            if i + 1 < len(pieces):  # where the one before was, which is done with
                arrived.append(fetch(i + 1))
            aside.wait(arrived[i])
            yield piece, buffer
            aside.follow()
            for row in changed:
                aside.copy(rows[row, piece], buffer[row])
        aside.wait(aside.mark())

    def bytes_offloaded(self, rows: Tensor) -> int:
        """Of all rows."""
        return rows.nbytes


def zero_rows(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, offload: bool
) -> tuple[Tensor, Passes]:
    """Rows ``[R, N]`` of zeros for a device, and how to pass over them."""
    if not offload or device.type in AT_HOME:
        return zeros(shape, dtype, device), Passes()
    meta = device.type == "meta"
    rows = zeros(shape, dtype, device if meta else CPU, pinned=device.type == "cuda")
    return rows, OffloadedPasses(zeros((2, shape[0], min(shape[1], PART)), dtype, device))
