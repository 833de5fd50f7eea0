"""Long vectors are worked through in pieces, so that no definition needs a large temporary."""

from __future__ import annotations

from collections.abc import Iterator

CHUNK = 1 << 15  # entries of a row handled at a time; bounds every temporary


def chunks(start: int, stop: int) -> Iterator[slice]:
    """Consecutive slices of at most ``CHUNK`` entries."""
    for begin in range(start, stop, CHUNK):
        yield slice(begin, min(begin + CHUNK, stop))
