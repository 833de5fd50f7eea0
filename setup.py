"""Builds the compiled ops; everything that does not depend on the machine is in pyproject.toml.

``AADL_EXT_NATIVE=auto|0|1``: build the kernels if that is possible (the default; the install
succeeds without them and says why), never, or fail loudly when it is not possible.

``AADL_EXT_CUDA=auto|0|1``: the same for the CUDA kernels in the library. They need nvcc alone, no
CUDA build of torch, no GPU and no driver. ``AADL_EXT_CUDA_ARCHS="90"`` compiles for some of the
architectures only (each takes its time), with PTX of the last one for those after it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ABI_TORCH = "0x020b000000000000"  # stable ABI of torch 2.11: the library loads there and later
ABI_PYTHON = "0x030a0000"  # limited API of Python 3.10
CUDA_ARCHS = "75 80 86 90 100 120"
CSRC = Path("csrc")


def wanted(variable: str = "AADL_EXT_NATIVE") -> str:
    """The choice of the user."""
    choice = os.environ.get(variable, "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"{variable} is {choice!r}; set it to auto, 0 or 1")
    return choice


def cuda_toolkit() -> Path | None:
    """Where bin/nvcc and the static CUDA runtime are."""
    if platform.system() != "Linux":
        return None
    nvcc = shutil.which("nvcc")
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    homes = [Path(home) for home in named if home]
    if nvcc:
        homes.append(Path(nvcc).resolve().parents[1])
    return next((home for home in homes if (home / "bin" / "nvcc").exists()), None)


def cuda_objects(folder: Path) -> list[str]:
    """Compile the CUDA kernels; objects and static library to link, none if there are to be none.

    Objects newer than all sources are kept. Beside each lies what the assembler says of it.
    """
    choice, toolkit = wanted("AADL_EXT_CUDA"), cuda_toolkit()
    if choice == "0":
        return []
    if toolkit is None:
        if choice == "1":
            sys.exit("AADL_EXT_CUDA=1, but there is no nvcc: put it on PATH or set CUDA_HOME")
        print("aadl_ext: no CUDA kernels, there is no nvcc")
        return []
    archs = os.environ.get("AADL_EXT_CUDA_ARCHS", CUDA_ARCHS).replace(",", " ").split()
    flags = [
        "-O3",
        "-std=c++17",
        "--expt-relaxed-constexpr",
        "-Xptxas=-v",  # registers and stack of every kernel, for .ci/cuda_limits.py
        "-Xcompiler=-fPIC,-fvisibility=hidden",
    ]
    for arch in archs:
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
    flags.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    folder = folder / ("cuda_" + "_".join(archs))
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(p.stat().st_mtime for p in CSRC.glob("kernels/**/*") if p.is_file())

    def compiled(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < newest:
            command = [toolkit / "bin" / "nvcc", *flags, "-c", source, "-o", target]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            target.with_suffix(".log").write_text(done.stderr)
            if done.returncode != 0:
                target.unlink(missing_ok=True)
                print(done.stdout, done.stderr)
                done.check_returncode()
        return str(target)

    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sorted(CSRC.glob("kernels/cuda/*.cu"))))
        places = [toolkit / "lib64", toolkit / "lib", *toolkit.glob("targets/*/lib")]
        runtime = [place / "libcudart_static.a" for place in places]
        return [*objects, next(str(library) for library in runtime if library.exists())]
    except (subprocess.CalledProcessError, OSError, StopIteration) as error:
        if choice == "1":
            raise
        print(f"aadl_ext: no CUDA kernels, they could not be built: {error!r}")
        return []


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

        def build_extension(self, ext: Any) -> None:
            objects = cuda_objects(Path(self.build_temp))
            if objects:
                ext.sources += sorted(map(str, CSRC.glob("torch/cuda*.cpp")))
                ext.extra_objects += objects
                ext.libraries += ["dl", "rt", "pthread"]
                print("aadl_ext: with CUDA kernels")
            super().build_extension(ext)

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if wanted() == "1":
                    raise
                print(f"aadl_ext: installing without compiled kernels, the build failed: {error}")
                self.extensions = []

    sources = [p for p in CSRC.glob("torch/*.cpp") if not p.stem.startswith("cuda")]
    sources += CSRC.glob("kernels/cpu/*.cpp")
    library = CppExtension(
        "aadl_ext._native",
        sorted(map(str, sources)),
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
