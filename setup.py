"""Builds the compiled ops; everything that does not depend on the machine is in pyproject.toml.

``AADL_EXT_NATIVE=auto|0|1``: build the kernels if that is possible (the default; the install
succeeds without them and says why), never, or fail loudly when it is not possible.

``AADL_EXT_CUDA=auto|0|1``: the CUDA kernels in the library. They need nvcc alone, no CUDA build of
torch, no GPU and no driver, but take minutes: so ``auto`` builds them for the GPUs that are here,
if any; ``1`` builds them for all architectures where there is none, or fails loudly.
``AADL_EXT_CUDA_ARCHS="80 90"`` asks for these, with PTX of the last one for those after it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

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


def present_archs() -> list[str]:
    """The architectures of the GPUs here, as the driver tells."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    found = {line.strip().replace(".", "") for line in told.stdout.splitlines()}
    return sorted((arch for arch in found if arch.isdigit()), key=int)


def known_archs(toolkit: Path | None) -> list[str] | None:
    """The architectures that nvcc has code for; None where there is no nvcc."""
    if toolkit is None:
        return None
    command = [toolkit / "bin" / "nvcc", "--list-gpu-arch"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line.strip().removeprefix("compute_") for line in told.stdout.splitlines()]
    return sorted((arch for arch in found if arch.isdigit()), key=int)


class CudaChoice(NamedTuple):
    """Architectures to compile for, none without CUDA kernels, and what to say of it."""

    archs: list[str]
    reason: str


def cuda_choice(choice: str, asked: str, known: list[str] | None, present: list[str]) -> CudaChoice:
    """What AADL_EXT_CUDA, AADL_EXT_CUDA_ARCHS and the machine together mean."""
    if choice == "0":
        return CudaChoice([], "AADL_EXT_CUDA=0")
    if known is None:
        return CudaChoice([], "there is no nvcc: put it on PATH or set CUDA_HOME")
    named = asked.replace(",", " ").split()
    if named:
        return CudaChoice(named, "AADL_EXT_CUDA_ARCHS")
    if present:
        return for_gpus(present, known)
    if choice == "1":
        return CudaChoice([arch for arch in CUDA_ARCHS.split() if arch in known], "AADL_EXT_CUDA=1")
    return CudaChoice(
        [], 'there is no GPU: AADL_EXT_CUDA=1 or AADL_EXT_CUDA_ARCHS="90" asks for them'
    )


def for_gpus(present: list[str], known: list[str]) -> CudaChoice:
    """A GPU newer than nvcc gets the newest code there is, whose PTX its driver translates."""
    fitting = [[arch for arch in known if int(arch) <= int(gpu)] for gpu in present]
    archs = sorted({archs[-1] for archs in fitting if archs}, key=int)
    if archs:
        return CudaChoice(archs, "the GPUs here")
    gpus = " ".join(present)
    return CudaChoice([], f"nvcc has no code for compute capability {gpus}: use an older nvcc")


def say(message: str) -> None:
    """Tell at once: an install is long, and its output may be a pipe."""
    print(f"aadl_ext: {message}", flush=True)


def cuda_objects(folder: Path) -> list[str]:
    """Compile the CUDA kernels; objects and static library to link, none if there are to be none.

    Objects newer than all sources are kept. Beside each lies what the assembler says of it.
    """
    choice, toolkit = wanted("AADL_EXT_CUDA"), cuda_toolkit()
    asked = os.environ.get("AADL_EXT_CUDA_ARCHS", "")
    archs, reason = cuda_choice(choice, asked, known_archs(toolkit), present_archs())
    if toolkit is None or not archs:
        if choice == "1":
            sys.exit(f"AADL_EXT_CUDA=1, but {reason}")
        say(f"no CUDA kernels, {reason}")
        return []
    say(f"CUDA kernels for {' '.join(archs)} ({reason})")
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
    sources = sorted(CSRC.glob("cuda/*.cu"))
    read = [p for room in ("common", "cuda") for p in (CSRC / room).iterdir()]
    newest = max(p.stat().st_mtime for p in read)
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compiled(source: Path, target: Path) -> tuple[Path, float]:
        begin = time.monotonic()
        command = [toolkit / "bin" / "nvcc", *flags, "-c", source, "-o", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        target.with_suffix(".log").write_text(done.stderr)
        if done.returncode != 0:
            target.unlink(missing_ok=True)
            print(done.stdout, done.stderr)
            done.check_returncode()
        return source, time.monotonic() - begin

    old = [
        pair
        for pair in zip(sources, objects, strict=True)
        if not pair[1].exists() or pair[1].stat().st_mtime < newest
    ]
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for count, job in enumerate(as_completed(pool.submit(compiled, *p) for p in old), 1):
                source, seconds = job.result()
                say(f"nvcc {count}/{len(old)} {source.name}, {seconds:.0f} s")
        places = [toolkit / "lib64", toolkit / "lib", *toolkit.glob("targets/*/lib")]
        runtime = [place / "libcudart_static.a" for place in places]
        library = next(library for library in runtime if library.exists())
        return [str(path) for path in (*objects, library)]
    except (subprocess.CalledProcessError, OSError, StopIteration) as error:
        if choice == "1":
            raise
        say(f"no CUDA kernels, they could not be built: {error!r}")
        return []


def native_build() -> dict[str, Any]:
    """Arguments of ``setup`` for the compiled library; none if it is not to be built."""
    if wanted() == "0":
        say("AADL_EXT_NATIVE=0, installing without compiled kernels")
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if wanted() == "1":
            raise
        say(f"installing without compiled kernels, torch is not importable: {error}")
        return {}

    class BuildIfPossible(BuildExtension):
        """Turns a failed build into a pure-Python install, unless that was ruled out."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp = "build/temp"  # an editable install has another each time

        def build_extension(self, ext: Any) -> None:
            objects = cuda_objects(Path(self.build_temp))
            if objects:
                ext.define_macros.append(("AADL_WITH_CUDA", None))
                ext.extra_objects += objects
                ext.libraries += ["dl", "rt", "pthread"]
            super().build_extension(ext)

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if wanted() == "1":
                    raise
                say(f"installing without compiled kernels, the build failed: {error}")
                self.extensions = []

    sources = [*CSRC.glob("cpu/*.cpp"), all_ops(Path("build/ops.cpp"))]
    library = CppExtension(
        "aadl_ext._native",
        sorted(map(str, sources), key=lambda path: -os.path.getsize(path)),  # the longest first
        py_limited_api=True,
        define_macros=[("TORCH_TARGET_VERSION", ABI_TORCH), ("Py_LIMITED_API", ABI_PYTHON)],
        extra_compile_args=compiler_flags(),
    )
    return {
        "ext_modules": [library],
        "cmdclass": {"build_ext": BuildIfPossible},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def all_ops(target: Path) -> Path:
    """A source that includes those of all ops: torch's headers take most of the compiler's time."""
    content = "".join(f'#include "{path}"\n' for path in sorted(CSRC.resolve().glob("ops/*.cpp")))
    if not target.exists() or target.read_text() != content:
        target.parent.mkdir(exist_ok=True)
        target.write_text(content)
    return target


def compiler_flags() -> list[str]:
    """Flags of one portable binary: vector code is chosen when the library is loaded."""
    if platform.system() == "Windows":
        return ["/O2", "/std:c++17"]
    # -g0: Python's own flags bring -g, and with it ten megabytes
    return ["-O3", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fvisibility=hidden", "-g0"]


if __name__ == "__main__":
    setup(packages=find_packages(include=["aadl_ext", "aadl_ext.*"]), **native_build())
