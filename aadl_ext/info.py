"""What of the package runs here, and what to do about what does not."""

from __future__ import annotations

import os
import platform
import warnings
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy
import torch

from . import __version__
from .ops import library

#: import names of what the demo and the experiments need, and how pip calls them
DEMO = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm", "rich": "rich"}
FRAMEWORKS = ("transformers", "accelerate", "lightning")


class Part(NamedTuple):
    """Something that may run here."""

    name: str
    works: bool
    what: str  #: what it does, or why it does not run
    remedy: str = ""  #: what would make it run; "" where nothing is wrong


def parts() -> list[Part]:
    """All of them."""
    return [_cpu(), _gpu(), _cuda_kernels(), _demo(), _frameworks()]


def versions() -> dict[str, str]:
    """To be named in a bug report."""
    return {
        "aadl_ext": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
    }


def as_dict() -> dict[str, Any]:
    """Versions and parts in plain values."""
    return {"versions": versions(), "parts": [part._asdict() for part in parts()]}


def as_text() -> str:
    """The same for people."""
    head = "\n".join(f"{name:<10}{value}" for name, value in versions().items())
    lines = [head, ""]
    for part in parts():
        lines.append(f"{'yes' if part.works else 'no':<5}{part.name}: {part.what}")
        if part.remedy:
            lines.append(f"{'':<5}-> {part.remedy}")
    return "\n".join(lines)


def _cpu() -> Part:
    name = "compiled kernels for CPUs"
    if library.missing is None:
        return Part(name, True, "steps on CPU parameters run on them")
    remedy = "install g++ or clang, then: AADL_EXT_NATIVE=1 pip install --no-build-isolation ."
    if os.environ.get("AADL_EXT_NATIVE") == "0":
        remedy = "unset AADL_EXT_NATIVE"
    slower = "steps run on PyTorch definitions, which give the same and take longer"
    return Part(name, False, f"{library.missing}; {slower}", remedy)


def _gpu() -> Part:
    name, (count, told) = "GPU", _devices()
    if count:
        return Part(name, True, ", ".join(map(torch.cuda.get_device_name, range(count))))
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA"
        return Part(name, False, why, "only if you have one: a CUDA build of torch, pytorch.org")
    why = f"torch is built for CUDA {torch.version.cuda}, but finds no device"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        why += f" among CUDA_VISIBLE_DEVICES={visible!r}"
        return Part(
            name, False, why, "unset CUDA_VISIBLE_DEVICES, or name what nvidia-smi -L lists"
        )
    why += f": {told}" if told else ""
    return Part(name, False, why, "only if you have one: see whether nvidia-smi lists it")


def _devices() -> tuple[int, str]:
    """How many GPUs there are, and what torch warns of, such as a driver that is too old."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return count, "; ".join(str(x.message).partition(" (Triggered")[0] for x in told)


def _cuda_kernels() -> Part:
    name, slower = "compiled kernels for GPUs", "steps there run on PyTorch definitions"
    if library.cuda_missing is not None:
        why = f"{library.cuda_missing}; {slower}"
        advice = "with nvcc on PATH, AADL_EXT_CUDA=1 pip install --no-build-isolation ."
        return Part(name, False, why, f"only for a GPU: {advice}")
    refusals = {i: library.refusal(torch.device("cuda", i)) for i in range(_devices()[0])}
    refused = {i: why for i, why in refusals.items() if why}
    if not refused:
        return Part(name, True, "steps on CUDA parameters run on them")
    archs = sorted({"{}{}".format(*torch.cuda.get_device_capability(i)) for i in refused})
    remedy = (
        f'AADL_EXT_CUDA=1 AADL_EXT_CUDA_ARCHS="{" ".join(archs)}" pip install '
        "--no-build-isolation . with an nvcc that knows these, and no newer than the driver"
    )
    return Part(name, False, "; ".join([*dict.fromkeys(refused.values()), slower]), remedy)


def _demo() -> Part:
    missing = [pip for name, pip in DEMO.items() if find_spec(name) is None]
    if not missing:
        return Part("demo and the paper's experiments", True, "all packages are installed")
    why = f"not installed: {', '.join(missing)}"
    return Part("demo and the paper's experiments", False, why, 'pip install "aadl_ext[demo]"')


def _frameworks() -> Part:
    found = [name for name in FRAMEWORKS if find_spec(name) is not None]
    what = f"installed: {', '.join(found)}" if found else "none installed, none is needed"
    return Part("frameworks with a callback", bool(found), what)
