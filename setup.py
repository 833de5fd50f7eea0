"""Builds the compiled ops; everything that does not depend on the machine is in pyproject.toml.

``AADL_EXT_NATIVE=auto|0|1``: build the kernels if that is possible (the default; the install
succeeds without them and says why), never, or fail loudly when it is not possible.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ABI_TORCH = "0x020b000000000000"  # stable ABI of torch 2.11: the library loads there and later
ABI_PYTHON = "0x030a0000"  # limited API of Python 3.10


def wanted() -> str:
    """The choice of the user."""
    choice = os.environ.get("AADL_EXT_NATIVE", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"AADL_EXT_NATIVE is {choice!r}; set it to auto, 0 or 1")
    return choice


def native_build() -> dict[str, Any]:
    """Arguments of ``setup`` for the compiled library; none if it is not to be built."""
    if wanted() == "0":
        print("aadl_ext: AADL_EXT_NATIVE=0, installing without compiled kernels")
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if wanted() == "1":
            raise
        print(f"aadl_ext: installing without compiled kernels, torch is not importable: {error}")
        return {}

    class BuildIfPossible(BuildExtension):
        """Turns a failed build into a pure-Python install, unless that was ruled out."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if wanted() == "1":
                    raise
                print(f"aadl_ext: installing without compiled kernels, the build failed: {error}")
                self.extensions = []

    folder = Path("csrc")
    sources = sorted(map(str, [*folder.glob("torch/*.cpp"), *folder.glob("kernels/cpu/*.cpp")]))
    library = CppExtension(
        "aadl_ext._native",
        sources,
        py_limited_api=True,
        define_macros=[("TORCH_TARGET_VERSION", ABI_TORCH), ("Py_LIMITED_API", ABI_PYTHON)],
        extra_compile_args=compiler_flags(),
    )
    return {
        "ext_modules": [library],
        "cmdclass": {"build_ext": BuildIfPossible},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def compiler_flags() -> list[str]:
    """Flags of one portable binary: vector code is chosen when the library is loaded."""
    if platform.system() == "Windows":
        return ["/O2", "/std:c++17"]
    # -g0: Python's own flags bring -g, and with it ten megabytes
    return ["-O3", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fvisibility=hidden", "-g0"]


setup(packages=find_packages(include=["aadl_ext", "aadl_ext.*"]), **native_build())
