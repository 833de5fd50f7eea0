"""Counts how many loads a thread of a CUDA kernel has under way before it uses one.

    python .ci/loads_in_flight.py build/temp*/cuda_*

Each folder holds the objects of one build. Counted are loads of 16 bytes from global memory in the
machine code of every architecture, from a branch or the last use on up to the instruction that uses
the first of them; the most of a kernel must not be less than cuda_limits.PACKS. Without
``cuobjdump``, which the CUDA toolkit has and triton brings along, it says that it is skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from cuda_limits import PACKS, plain_name

CODE = re.compile(r"code for (sm_\d+)|Function : (\w+)|^\s+/\*([0-9a-f]{4,})\*/\s+([^;]+);", re.M)
JUMP = re.compile(r"\b(?:BRA|BSSY|BREAK|CALL|JMP)\S* .*?(0x[0-9a-f]+)")
LOAD = re.compile(r"\bLDG\S*\.128\S* R(\d+), (.*)")
STORE = re.compile(r"^(?:@\S+ )?(?:ST|RED|ATOM|BAR|BRA|EXIT)")
REGISTER = re.compile(r"\bR(\d+)\b")


def packs_in_flight(instructions: list[tuple[int, str]]) -> int:
    """Most loads under way before the first use, of the (address, text) of one kernel."""
    targets = {int(x, 16) for _, text in instructions for x in JUMP.findall(text)}
    most, pending = 0, set[int]()
    for address, text in instructions:
        load = LOAD.search(text)
        written = 0 if STORE.match(text) else 1  # the first operand of all others
        sources = load[2] if load else text.partition(",")[2] if written else text
        used = {int(x) for x in REGISTER.findall(sources)}
        waits = any(register <= x < register + 4 for register in pending for x in used)
        if waits or address in targets:
            most, pending = max(most, len(pending)), set()
        if load:
            pending.add(int(load[1]))
    return most


def kernels(listing: str) -> Iterator[tuple[str, str, list[tuple[int, str]]]]:
    """Architecture, mangled name and instructions of each kernel."""
    arch, name, found = "", "", []
    for code, function, address, text in CODE.findall(listing):
        if (code or function) and found:
            yield arch, name, found
            found = []
        arch, name = code or arch, function or name
        if address:
            found.append((int(address, 16), text.strip()))
    if found:
        yield arch, name, found


def disassembler() -> str | None:
    """Where cuobjdump is."""
    places = ["/usr/local/cuda/bin"]
    if triton := find_spec("triton"):
        places.append(str(Path(str(triton.origin)).parent / "backends/nvidia/bin"))
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=":".join(places))


def main(folders: list[Path]) -> int:
    """Prints all faults; 1 if there are any, or a kernel that has a limit was not found."""
    objects = [path for folder in folders for path in sorted(folder.glob("*.o"))]
    program = disassembler()
    if not objects or program is None:
        why = "no cuobjdump here" if objects else "no CUDA kernels were compiled here"
        print(f"loads_in_flight: skipped, {why}")
        return 0
    counted, wrong, missing = 0, [], {*PACKS}
    for path in objects:
        command = [program, "-sass", path]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        for arch, mangled, instructions in kernels(told.stdout):
            name, packs = plain_name(mangled), packs_in_flight(instructions)
            least = PACKS.get(name)
            counted += least is not None
            missing.discard(name)
            if least is not None and packs < least:
                wrong.append(f"{name} for {arch}: {packs} loads under way, at least {least}")
    wrong += [f"{name} was not found" for name in sorted(missing)]
    print("\n".join(wrong))
    print(f"loads_in_flight: {counted} kernels in {len(objects)} files, {len(wrong)} faults")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
