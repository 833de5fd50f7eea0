"""Which rooms of csrc may include which: nothing reaches upward."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
ROOMS = {
    "common": {"common"},
    "cpu": {"common", "cpu"},
    "cuda": {"common", "cuda"},
    "ops": {"common", "cpu", "cuda", "ops"},
    "lab": {"cuda", "lab"},
}
# The emulation takes the place of the CUDA runtime.
ALLOWED = {("cuda/device.h", "lab/cuda_on_host.h")}
FILES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})


def included(source: Path) -> list[Path]:
    """The files of csrc that a file names in quotes."""
    found = []
    for name in re.findall(r'^\s*#include "(.+)"', source.read_text(), re.MULTILINE):
        places = (source.parent / name, CSRC / name, CSRC / "lab" / name)
        found.append(next(place for place in places if place.exists()).resolve())
    return found


def test_every_file_is_in_a_room() -> None:
    assert {path.relative_to(CSRC).parts[0] for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("source", FILES, ids=lambda path: str(path.relative_to(CSRC)))
def test_includes_stay_in_the_rooms_below(source: Path) -> None:
    own = source.relative_to(CSRC)
    for target in included(source):
        other = target.relative_to(CSRC)
        allowed = other.parts[0] in ROOMS[own.parts[0]]
        assert allowed or (str(own), str(other)) in ALLOWED, f"{own} includes {other}"


def test_only_ops_know_torch() -> None:
    knows = {p.relative_to(CSRC).parts[0] for p in FILES if "#include <torch" in p.read_text()}
    assert knows == {"ops"}
