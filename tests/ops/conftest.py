"""All tests of this folder run on each backend that there is.

With ``AADL_EXT_NATIVE=PATH`` these are the kernels of that library alone: those of the CPU, or
those of CUDA emulated on the host, each case in one of two ways or, with ``--thorough``, in both.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import settings
from on_device import DEVICE, OnDevice, gpu_missing

from aadl_ext.ops import library

FILE = os.environ.get("AADL_EXT_NATIVE", "auto")
# What the emulation takes from the environment: cuda_on_host.h and csrc/ops/emulated.h.
EMULATED = {
    "emulated": {},
    "emulated otherwise": {"AADL_SCHEDULE": "1", "AADL_TILES": "2", "AADL_COMPENSATED": "1"},
}
BACKENDS = ["definition", "cpu", *(["cuda"] if gpu_missing() is None else [])]
if FILE not in ("auto", "0", "1"):
    BACKENDS = list(EMULATED) if "cuda_on_host" in FILE else ["cpu"]
    settings.register_profile("slow", settings.get_profile("repeatable"), max_examples=10)
    settings.load_profile("slow")


@pytest.fixture(scope="module", params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the whole module, so that examples of Hypothesis share it."""
    name: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        if name == "definition":
            with library.definitions_only():
                yield name
        elif library.missing is not None:
            pytest.skip(f"no compiled library: {library.missing}")
        elif name == "cuda":
            with OnDevice(DEVICE):
                yield name
        else:
            for variable, value in EMULATED.get(name, {}).items():
                patch.setenv(variable, value)
            yield name


@pytest.fixture(autouse=True)
def _skips(request: pytest.FixtureRequest, backend: str) -> None:
    mark = request.node.get_closest_marker("not_on_cuda")
    if mark and backend in {"cuda", *EMULATED}:
        pytest.skip(mark.args[0])
    if request.node.get_closest_marker("long") and backend in EMULATED:
        pytest.skip("too long for an emulation")
    if backend in EMULATED and "AADL_THOROUGH" not in os.environ:
        case = request.node.nodeid.replace(backend, "").encode()
        if backend != list(EMULATED)[zlib.crc32(case) % 2]:
            pytest.skip("emulated in the other way")
    if request.node.get_closest_marker("beyond_float32") and backend == "emulated otherwise":
        pytest.skip("compensated sums have the range of float32")
