"""What can be known of the CUDA kernels where there is no GPU: that ops choose and trace them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_dispatcher import SAMPLES, parted
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only

from aadl_ext import ops
from aadl_ext.ops import library

CASES = [(name, sample) for name, samples in SAMPLES.items() for sample in samples]
with_kernels = pytest.mark.skipif(
    library.cuda_missing is not None, reason=f"no CUDA kernels: {library.cuda_missing}"
)


def on(device: str, arguments: Any) -> Any:
    """The same shapes there, without data."""

    def like(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    return tree_map_only(torch.Tensor, like, arguments)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch knows no CUDA")
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_every_op_traces_on_cuda_as_on_the_cpu(name: str, arguments: tuple[Any, ...]) -> None:
    op = getattr(torch.ops.aadl_ext, name).default
    given, named = parted(op, arguments)
    with FakeTensorMode():
        here, there = (op(*on(x, given), **on(x, named)) for x in ("cpu", "cuda"))
    assert (here is None) == (there is None)
    results = [] if here is None else [here] if isinstance(here, torch.Tensor) else list(here)
    others = [] if there is None else [there] if isinstance(there, torch.Tensor) else list(there)
    for one, other in zip(results, others, strict=True):
        assert other.device.type == "cuda"
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


@with_kernels
def test_every_op_has_a_cuda_kernel() -> None:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert all(has(f"aadl_ext::{name}", "CUDA") for name in SAMPLES)
    assert ops.backends()["cuda kernels"] == "available"


def test_torch_tells_the_stream_by_the_name_that_is_looked_up() -> None:
    """That function is found by name, for its successor in the stable ABI came with torch 2.13."""
    header = Path(torch.__file__).parent / "include/torch/csrc/inductor/aoti_torch/c/shim.h"
    declared = r"aoti_torch_get_current_cuda_stream\(\s*int32_t \w+,\s*void\*\* \w+\)"
    assert re.search(declared, header.read_text())
