"""How loads are counted in machine code, on a listing as ``cuobjdump -sass`` writes it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / ".ci"


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        return runpy.run_path(str(FOLDER / "loads_in_flight.py"))


def listing(*lines: str) -> str:
    code = [f"        /*{16 * i:04x}*/      {x} ;     /* 0x0 */" for i, x in enumerate(lines)]
    return "\n".join(["code for sm_90", "\t\tFunction : _Z4copyPf", *code])


FOUR, EIGHT = ("LDG.E.128 R4, desc[UR4][R2.64]", "LDG.E.128 R8, desc[UR4][R2.64+0x10]")
USES = ["FADD R20, R6, R21", "STG.E desc[UR4][R20.64], R7", "LDG.E R22, desc[UR4][R4.64]"]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("before", "packs"),
    [
        ([FOUR, EIGHT], 2),
        ([FOUR, "FADD R6, R20, R21", "@P0 " + EIGHT], 2),  # written, not used
        (["LDG.E R4, desc[UR4][R2.64]", EIGHT, FOUR], 2),  # one is no pack
        ([FOUR, "FADD R20, R4, R4", EIGHT, "IADD3 R21, R11, 0x1, RZ"], 1),
        ([FOUR, "@P0 BRA 0x30", "NOP", EIGHT], 1),  # where a branch comes in
    ],
)
def test_packs_are_counted_up_to_the_first_use(
    script: Any, before: list[str], packs: int, use: str
) -> None:
    ((arch, name, found),) = script["kernels"](listing(*before, use, "EXIT"))
    assert (arch, name) == ("sm_90", "_Z4copyPf")
    assert script["packs_in_flight"](found) == packs


def test_without_objects_it_says_that_it_is_skipped(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script["main"]([tmp_path]) == 0
    assert "skipped" in capsys.readouterr().out


def test_without_a_disassembler_it_says_so(
    script: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "push.o").touch()
    monkeypatch.setitem(script["main"].__globals__, "disassembler", lambda: None)
    assert script["main"]([tmp_path]) == 0
    assert "no cuobjdump" in capsys.readouterr().out
