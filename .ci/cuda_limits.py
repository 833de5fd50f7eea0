"""Checks what the assembler reported of every CUDA kernel: registers, spills, stack.

    python .ci/cuda_limits.py build/temp*/cuda_*

Each folder holds the reports (``-Xptxas=-v``) that setup.py wrote beside the objects of one build.
Without any, because there was no nvcc, it says that it is skipped.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Registers a thread, from the occupancy that a kernel is planned for. An SM has 65536: in blocks of
# 256 threads 128 registers allow 2 blocks, 80 allow 3, 64 allow 4, 48 allow 5; of
# 128 threads 168 allow 3, which launch bounds see to.
LIMITS = {
    "push_tiles": 128,
    "product_tiles": 192,
    "conclude_push": 64,
    "close_block": 80,
    "window_tiles": 64,
    "sample_tiles": 80,
    "extrapolate_tiles": 80,
    "copy_tiles": 64,
    "square_tiles": 64,
    "sum_segments": 64,
    "sum_tiles": 64,
    "max_tiles": 64,
    "finish_products": 64,
    "differs_tiles": 64,
    "any_tile": 64,
    "sketch_runs": 64,
    "sum_runs": 64,
    "judge_samples": 64,
    # One block: the most that they take on any architecture, so that more is noticed.
    "judge_once": 128,
    "solve_quasi_newton_kernel": 136,
}
# Loads of 16 bytes that a thread has under way before it uses one, at least: what is the least of
# all architectures (loads_in_flight.py).
PACKS = {
    "push_tiles<Wide, float, float>": 8,
    "push_tiles<Wide, double, double>": 8,
    "push_tiles<Wide, double, float>": 4,
    "push_tiles<Wide, float, BFloat16>": 4,
    "push_tiles<Wide, float, Half>": 4,
    "push_tiles<Compensated, float, float>": 4,
    "push_tiles<Compensated, float, BFloat16>": 4,
    "push_tiles<Compensated, float, Half>": 4,
    "product_tiles<Wide, float>": 12,
    "product_tiles<Wide, double>": 8,
    "product_tiles<Wide, BFloat16>": 9,
    "product_tiles<Wide, Half>": 9,
    "product_tiles<Compensated, float>": 10,
    "product_tiles<Compensated, BFloat16>": 7,
    "product_tiles<Compensated, Half>": 8,
    "extrapolate_tiles<float, float>": 4,
    "extrapolate_tiles<double, double>": 4,
    "extrapolate_tiles<double, float>": 4,
    "extrapolate_tiles<float, BFloat16>": 4,
    "extrapolate_tiles<float, Half>": 4,
    "window_tiles<float>": 3,
    "window_tiles<double>": 4,
    "copy_tiles<72>": 6,
    "copy_tiles<600>": 6,
    "square_tiles<Wide, 72>": 3,
    "square_tiles<Wide, 600>": 3,
    "square_tiles<Compensated, 72>": 3,
    "square_tiles<Compensated, 600>": 3,
}
MOST = 255  # of kernels that have one block on an SM, or few threads
ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def plain_name(mangled: str) -> str:
    """Name of a kernel and its types, without namespaces and arguments."""
    full = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    bare = re.sub(r"\(anonymous namespace\)::|\w+::", "", full)
    found = re.search(r"\w+(<.*>)?(?=\()", bare)
    return found[0] if found else mangled


def faults(report: str) -> tuple[int, list[str]]:
    """How many kernels a report names, and what is wrong with them."""
    found, wrong = 0, []
    for entry in ENTRY.finditer(report):
        found += 1
        kernel = plain_name(entry["kernel"]).partition("<")[0]
        limit, registers = LIMITS.get(kernel, MOST), int(entry["registers"])
        where = f"{kernel} for {entry['arch']} ({entry['kernel']})"
        if registers > limit:
            wrong.append(f"{where}: {registers} registers, allowed are {limit}")
        for what in ("stack", "stores", "loads"):
            if int(entry[what]):
                wrong.append(f"{where}: {entry[what]} bytes of {what}")
    return found, wrong


def main(folders: list[Path]) -> int:
    """Prints all faults; 1 if there are any."""
    reports = [path for folder in folders for path in sorted(folder.glob("*.log"))]
    if not reports:
        print("cuda_limits: skipped, no CUDA kernels were compiled here")
        return 0
    results = [faults(path.read_text()) for path in reports]
    wrong = [fault for _, faults_ in results for fault in faults_]
    print("\n".join(wrong))
    kernels = sum(count for count, _ in results)
    print(f"cuda_limits: {kernels} kernels in {len(reports)} files, {len(wrong)} faults")
    return int(bool(wrong) or kernels == 0)


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
