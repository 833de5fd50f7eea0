"""Fixed points of batches beside other packages: evaluations, seconds and memory to a tolerance.

x = b + d tanh((x + shifted x) / 2), float32, with d in [0, 0.95) for every entry: samples converge
at different speeds. Each solver runs in a process of its own, from the same start to the same
tolerance, in one thread, and where others work on the machine the processor's time tells more
than the clock's. A result counts as converged where |f(x) - x| <= tol |f(x)| for every sample,
computed here in float64. ``f_seconds`` is what the evaluations alone take of f as torch computes it
in float32. Packages: torchdeq, jaxopt, scipy (a sample at a time), SUNDIALS KINSOL (one system of
the whole batch, by its C library). What is not installed is left out; a folder with packages can
be given:

    pip install --target build/peers --no-deps torchdeq jaxopt jax jaxlib ml_dtypes opt_einsum
    apt-get download libsundials-kinsol6 libsundials-nvecserial6
    for package in libsundials*.deb; do dpkg -x $package build/peers; done
    python benchmarks/fixed_points.py --peers build/peers
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch
from torch import Tensor

SIZES = ((64, 4096), (1, 1_000_000), (4096, 64))
DEPTHS = (5, 10)
TOLERANCES = (1e-3, 1e-5)
MOST = 400  # evaluations
BUDGET = 6  # seconds of one solver on one problem
Run = Callable[[], tuple[Any, int]]  # the solution, and how often f was evaluated for a sample


def problem(count: int, size: int) -> tuple[Tensor, Tensor]:
    """D and b, ``[count, size]``."""
    torch.manual_seed(0)
    return 0.95 * torch.rand(count, size), torch.randn(count, size)


def ours(d: Tensor, b: Tensor, m: int, tol: float) -> Run:
    """fixed_point of this package."""
    from aadl_ext import AndersonMixing, fixed_point

    def run() -> tuple[Tensor, int]:
        method, x0 = AndersonMixing(history_depth=m), torch.zeros_like(b)
        options = {"tol": tol, "abs_tol": 0.0, "max_steps": MOST, "gradient": None}
        found = fixed_point(lambda x: torch_map(d, b, x), x0, method=method, **options)
        return found.solution, int(found.steps.max())

    return run


def torchdeq(d: Tensor, b: Tensor, m: int, tol: float, ridge: float = 1e-4) -> Run:
    """Its Anderson solver, with its default ridge or another one."""
    from torchdeq.solver.anderson import anderson_solver

    def run() -> tuple[Tensor, int]:
        calls = []

        def f(x: Tensor) -> Tensor:
            calls.append(0)
            return torch_map(d, b, x)

        options = {"max_iter": MOST, "tol": tol, "stop_mode": "rel", "m": m, "lam": ridge}
        with torch.no_grad():
            found, *_ = anderson_solver(f, torch.zeros_like(b), **options)
        return found, len(calls)

    return run


def torchdeq_small_ridge(d: Tensor, b: Tensor, m: int, tol: float) -> Run:
    """The same with a ridge that float32 still feels."""
    return torchdeq(d, b, m, tol, ridge=1e-8)


def jaxopt(d: Tensor, b: Tensor, m: int, tol: float) -> Run:
    """AndersonAcceleration, compiled, mapped over the batch; compilation is not timed."""
    import jax
    import jax.numpy as jnp
    from jaxopt import AndersonAcceleration

    D, B = jnp.asarray(d.numpy()), jnp.asarray(b.numpy())

    def f(x: Any, d: Any, b: Any) -> Any:
        return b + d * jnp.tanh((x + jnp.roll(x, 1, -1)) / 2)

    # Its tolerance is absolute, and of the residual; that of the others is relative.
    scale = float(torch.linalg.vector_norm(b, dim=1).min())

    def solve(d: Any, b: Any) -> Any:
        solver = AndersonAcceleration(
            f, history_size=m, maxiter=MOST, tol=tol * scale, ridge=1e-5, implicit_diff=False
        )
        found = solver.run(jnp.zeros_like(b), d, b)
        return found.params, found.state.iter_num

    mapped = jax.jit(jax.vmap(solve))

    def run() -> tuple[Any, int]:
        found, steps = jax.block_until_ready(mapped(D, B))
        return torch.from_numpy(np.array(found)), int(steps.max())

    return run


def scipy(d: Tensor, b: Tensor, m: int, tol: float) -> Run:
    """optimize.anderson without line search, float64, a sample after the other."""
    from scipy.optimize import NoConvergence, anderson

    D, B = d.double().numpy(), b.double().numpy()

    def run() -> tuple[Tensor, int]:
        found, most = [], 0
        for one_d, one_b in zip(D, B, strict=True):
            calls = []

            def rest(x: Any, one_d: Any = one_d, one_b: Any = one_b, calls: Any = calls) -> Any:
                calls.append(0)
                return one_b + one_d * np.tanh((x + np.roll(x, 1)) / 2) - x

            options = {
                "M": m,
                "alpha": 1.0,
                "line_search": None,
                "maxiter": MOST,
                "f_tol": tol * float(np.linalg.norm(one_b)),
                "tol_norm": np.linalg.norm,
            }
            try:
                found.append(anderson(rest, np.zeros_like(one_b), **options))
            except NoConvergence as error:
                found.append(error.args[0])
            most = max(most, len(calls))
        return torch.from_numpy(np.stack(found)), most

    return run


def kinsol(d: Tensor, b: Tensor, m: int, tol: float) -> Run:
    """KIN_FP with Anderson acceleration, float64: one history and one end for the whole batch.

    Its own test is of the largest entry, so f ends it, by the test that all others have.
    """
    library = shared("sundials_kinsol")
    vectors = shared("sundials_nvecserial")
    pointer, integer, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
    call = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, pointer)
    for function in (library.KINCreate, library.N_VGetArrayPointer, vectors.N_VMake_Serial):
        function.restype = pointer
    D, B = d.double().numpy(), b.double().numpy()

    def array(vector: int) -> Any:
        start = library.N_VGetArrayPointer(pointer(vector))
        return np.ctypeslib.as_array(ctypes.cast(start, ctypes.POINTER(number)), B.shape)

    def run() -> tuple[Tensor, int]:
        context, calls, found = pointer(), [], np.zeros_like(B)

        def step(x: int, y: int, _: int) -> int:
            calls.append(0)
            x, y = array(x), array(y)
            np.multiply(D, np.tanh((x + np.roll(x, 1, -1)) / 2), out=y)
            y += B
            rest = np.linalg.norm(y - x, axis=1)
            if (rest > tol * np.linalg.norm(y, axis=1)).any():
                return 0
            found[:] = x
            return -1  # an error, to KINSOL

        function = call(step)
        library.SUNContext_Create(None, ctypes.byref(context))
        start, scale = np.zeros_like(B), np.ones_like(B)
        x, ones = (
            pointer(vectors.N_VMake_Serial(integer(B.size), pointer(v.ctypes.data), context))
            for v in (start, scale)
        )
        solver = pointer(library.KINCreate(context))
        library.KINSetMAA(solver, integer(m))
        library.KINInit(solver, function, x)
        library.KINSetNumMaxIters(solver, integer(MOST))
        library.KINSetFuncNormTol(solver, number(1e-300))
        library.KINSol(solver, x, 3, ones, ones)
        library.KINFree(ctypes.byref(solver))
        for v in (x, ones):
            vectors.N_VDestroy(v)
        library.SUNContext_Free(ctypes.byref(context))
        return torch.from_numpy(found), len(calls)

    return run


def shared(name: str) -> ctypes.CDLL:
    """A C library of the system, or of a folder with packages."""
    there = (x for folder in sys.path for x in Path(folder).glob(f"usr/lib/*/lib{name}.so.*"))
    path = next(there, None) or ctypes.util.find_library(name)
    if path is None:
        raise ImportError(f"no lib{name}")
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


SOLVERS = {
    "aadl_ext": ours,
    "torchdeq": torchdeq,
    "torchdeq, ridge 1e-8": torchdeq_small_ridge,
    "jaxopt": jaxopt,
    "scipy": scipy,
    "kinsol": kinsol,
}


def torch_map(d: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """F."""
    return torch.addcmul(b, d, torch.tanh((x + x.roll(1, -1)) / 2))


def residual(d: Tensor, b: Tensor, x: Tensor) -> float:
    """Largest |f(x) - x| / |f(x)| of a sample, in float64."""
    x = x.double()
    y = torch_map(d.double(), b.double(), x)
    relative = torch.linalg.vector_norm(y - x, dim=1) / torch.linalg.vector_norm(y, dim=1)
    return float(relative.nan_to_num(float("inf")).max())


def measure(name: str, count: int, size: int, m: int, tol: float, repeats: int) -> dict[str, Any]:
    """Of one solver on one problem, in this process: the best of some runs after a warm-up."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    d, b = problem(count, size)
    run = SOLVERS[name](d, b, m, tol)
    torch_map(d, b, b)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, processor = [], []
    while len(seconds) <= repeats and sum(seconds) < BUDGET:  # the first is a warm-up
        start = time.perf_counter(), time.process_time()
        found, evaluations = run()
        seconds.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
        if len(seconds) == 1:
            memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    left = residual(d, b, found)
    x, once = torch.zeros_like(b), []
    for _ in range(5):
        start = time.process_time()
        x = torch_map(d, b, x)
        once.append(time.process_time() - start)
    return {
        "evaluations": evaluations,
        "seconds": min(seconds[1:] or seconds),
        "processor_seconds": min(processor[1:] or processor),
        "f_seconds": evaluations * min(once),
        "vectors": memory / (4 * count * size),  # of memory beyond that of the problem
        "residual": left,
        "converged": left <= 1.05 * tol,  # float32 rounds what it compares
    }


def main() -> None:
    """Run all, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder with other packages")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tolerances", type=float, nargs="+", default=TOLERANCES)
    parser.add_argument("--out", type=Path, default=records.RESULTS)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, *numbers = given.one
        count, size, m = map(int, numbers[:3])
        print(json.dumps(measure(name, count, size, m, float(numbers[3]), given.repeats)))
        return
    # One thread for all: OpenMP's, BLAS's and XLA's.
    one_thread = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XLA_FLAGS": one_thread}
    if given.peers:
        paths = [str(given.peers.resolve()), environment.get("PYTHONPATH", "")]
        # Behind what is installed here, so that torch and numpy are those of this environment.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, reversed(paths)))
    rows = []
    for count, size in SIZES:
        for m in DEPTHS:
            for tol in given.tolerances:
                for name in SOLVERS:
                    if name == "scipy" and count > 64:
                        continue  # minutes
                    case = [name, *map(str, (count, size, m, tol))]
                    command = [sys.executable, __file__, "--repeats", str(given.repeats), "--one"]
                    done = subprocess.run(
                        [*command, *case],
                        env=environment,
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    if done.returncode:
                        print(*case, "failed:", done.stderr.strip().splitlines()[-1:])
                        continue
                    row = json.loads(done.stdout.splitlines()[-1])
                    load = os.getloadavg()[0]
                    rows.append(
                        {
                            "solver": name,
                            "B": count,
                            "n": size,
                            "m": m,
                            "tol": tol,
                            **row,
                            "load": load,
                        }
                    )
                    print(json.dumps(records.rounded(rows[-1])), flush=True)
    records.save("fixed_points", {"rows": rows}, given.out)


if __name__ == "__main__":
    main()
