"""The compiled library: load it, or say why not.

``AADL_EXT_NATIVE=0`` in the environment leaves it out; ``1`` makes a missing one an error; a path
takes the library of this file instead, which must be there too.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

NO_KERNELS = "no kernels run on"  # in the message of a device without fitting code (ops/checks.h)


def _load() -> str | None:
    """Load the compiled library; the reason if that is not possible."""
    choice = os.environ.get("AADL_EXT_NATIVE", "auto")
    if choice == "0":
        return "switched off by AADL_EXT_NATIVE=0"
    own = choice in ("auto", "1")
    found = sorted(Path(__file__).parents[1].glob("_native*")) if own else [Path(choice)]
    missing = None
    if not found:
        missing = "not built: install with a C++ compiler and AADL_EXT_NATIVE=1 to see why"
    else:
        try:
            torch.ops.load_library(str(found[0]))  # type: ignore[no-untyped-call]
        except OSError as error:
            missing = (
                f"{found[0].name} does not load with torch {torch.__version__}, reinstall with "
                f"pip install --no-build-isolation . to build it for that: {error}"
            )
    if missing and choice != "auto":
        raise ImportError(
            f"AADL_EXT_NATIVE={choice}, but the compiled library is missing: {missing}"
        )
    if missing:
        warnings.warn(
            f"aadl_ext runs on its slower PyTorch definitions: the compiled library is {missing}. "
            "AADL_EXT_NATIVE=0 silences this",
            RuntimeWarning,
            stacklevel=2,
        )
    return missing


missing = _load()  #: why there is no compiled library; None if there is one


def _cuda_missing() -> str | None:
    if missing is not None:
        return missing
    if torch._C._dispatch_has_kernel_for_dispatch_key("aadl_ext::push_secant", "CUDA"):
        return None
    return "not built: install with nvcc and AADL_EXT_CUDA=1 to see why"


cuda_missing = _cuda_missing()  #: why there are no CUDA kernels; None if there are

use_kernels = missing is None  #: whether ops ask compiled kernels first


@contextmanager
def definitions_only() -> Iterator[None]:
    """Leave compiled kernels aside for a while, to compare them with the definitions."""
    global use_kernels  # noqa: PLW0603
    before, use_kernels = use_kernels, False
    try:
        yield
    finally:
        use_kernels = before


def refusal(device: torch.device) -> str | None:
    """Why compiled kernels do not run on a device, told by the smallest; None if they do."""
    try:
        torch.ops.aadl_ext.squared_norm([torch.ones(1, device=device)])
    except RuntimeError as error:  # of torch's own kernels, or of ours
        return said(str(error))
    return None


def said(refusal: str) -> str:
    """What it comes to, without where in the library it was made and by which calls."""
    _, no_kernels, reason = refusal.partition("\n")[0].rpartition(NO_KERNELS)
    return no_kernels + reason


def backends() -> dict[str, str]:
    """Name of each backend and whether it serves the ops here, or why it does not."""
    return {
        "pytorch": f"available (torch {torch.__version__})",
        "cpu kernels": missing or "available",
        "cuda kernels": cuda_missing or "available",
    }
