"""Memory: the one function that allocates what outlives a step; CUDA graphs, which hold it."""

from __future__ import annotations

import math
import mmap
from contextlib import AbstractContextManager, suppress

import torch
from torch import Tensor

CPU = torch.device("cpu")
HUGE = 1 << 22  # bytes from which pages of 2 MiB are asked for
KEPT = (1 << 25) - (1 << 16)  # bytes of the largest block of whose kind glibc learns


@torch.inference_mode(False)
def zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, pinned: bool = False
) -> Tensor:
    """Zeros that take nothing from the mode of the caller; large ones on the CPU on huge pages.

    Made in inference mode, they could not be changed outside it. Passes over many long rows at once
    are 5 to 20 % faster on huge pages: a page table entry covers 2 MiB in place of 4 KiB.
    """
    entries = math.prod(shape)
    size = entries * dtype.itemsize
    if device.type != "cpu" or pinned or size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # zeros
    with suppress(OSError):  # a kernel built without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).reshape(shape)


@torch.inference_mode(False)
def unset(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is written before it is read; from malloc, or the device's own allocator.

    What malloc would not keep comes as pages of the system each time: huge ones are far fewer.
    """
    if device.type == "cpu" and math.prod(shape) * dtype.itemsize > KEPT:
        return zeros(shape, dtype, device)
    return torch.empty(shape, dtype=dtype, device=device)


def keep_freed() -> None:
    """Have glibc keep up to 64 MiB of what is freed, as it does once a block of half has been.

    Otherwise it gives the temporaries of each evaluation of a function back to the system, and
    every page of the next ones comes as a fault, which can take as long as all else. What has its
    memory from malloc teaches it by itself; ``zeros`` has not.
    """
    torch.empty(KEPT, dtype=torch.uint8)


def captured(device: torch.device) -> bool:
    """Whether a CUDA graph takes up what is called there now, so that memory has to stay."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def new_graph(device: torch.device) -> tuple[torch.cuda.CUDAGraph, AbstractContextManager[None]]:
    """A CUDA graph, and the context in which it takes up what is called.

    Raises:
        ValueError: the device is not of CUDA.
    """
    if device.type != "cuda":
        raise ValueError(f"capture=True is for tensors on a CUDA device, not on {device}")
    graph = torch.cuda.CUDAGraph()
    return graph, torch.cuda.graph(graph)
