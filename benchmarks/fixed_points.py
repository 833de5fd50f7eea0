"""Fixed points of batches beside other packages: evaluations, seconds and memory to a tolerance.

x = b + d tanh((x + shifted x) / 2), float32, with d in [0, 0.95) for every entry: samples converge
at different speeds. Each solver runs in a process of its own, from the same start to the same
tolerance, in one thread, and where others work on the machine the processor's time tells more
than the clock's. A result counts as converged where |f(x) - x| <= tol |f(x)| for every sample,
computed here in float64. Packages: torchdeq, jaxopt, scipy (a sample at a time). What is not
installed is left out; a folder with packages can be given:

    pip install --target build/peers --no-deps torchdeq jaxopt jax jaxlib ml_dtypes opt_einsum
    python benchmarks/fixed_points.py --peers build/peers
"""

from __future__ import annotations

import argparse
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


SOLVERS = {
    "aadl_ext": ours,
    "torchdeq": torchdeq,
    "torchdeq, ridge 1e-8": torchdeq_small_ridge,
    "jaxopt": jaxopt,
    "scipy": scipy,
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
    return {
        "evaluations": evaluations,
        "seconds": min(seconds[1:] or seconds),
        "processor_seconds": min(processor[1:] or processor),
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
