"""Long vectors are worked through in pieces, so that no definition needs a large temporary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

CHUNK = 1 << 15  # entries of a row handled at a time; bounds every temporary
_sizes = [CHUNK]  # the last one counts; a list, for torch.compile cannot read context variables


def chunk_size() -> int:
    """``CHUNK``, or without end within ``undivided``."""
    return _sizes[-1]


def chunks(start: int, stop: int) -> Iterator[slice]:
    """Consecutive slices of at most ``chunk_size()`` entries."""
    size = chunk_size()
    for begin in range(start, stop, size):
        yield slice(begin, min(begin + size, stop))


@contextmanager
def undivided() -> Iterator[None]:
    """For device "meta", where temporaries need no memory: the time does not depend on sizes."""
    _sizes.append(1 << 62)
    try:
        yield
    finally:
        _sizes.pop()
