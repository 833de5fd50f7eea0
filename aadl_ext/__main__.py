"""Command line: ``python -m aadl_ext demo``, ``info``, ``plan`` and ``reproduce``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

import numpy
import torch

from . import __version__, ops
from .reproduce import PROBLEMS, reproduce


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    if options.command == "reproduce":
        return reproduce(options.problem, others)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if options.command == "info":
        _info()
        return 0
    if options.command == "plan":
        return _plan(options)
    try:
        return _demo(options)
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: the demo needs {error.name}, which is not installed: "
            'pip install "aadl_ext[demo]"\n'
        )
        return 2


def _demo(options: argparse.Namespace) -> int:
    from .demo.data import DataError
    from .demo.run import draw, run

    try:
        if options.redraw is not None:
            draw(options.redraw)
        else:
            run(options.data, options.seeds, options.epochs, options.out)
    except (DataError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _plan(options: argparse.Namespace) -> int:
    from .imagined import imagined_model, settings
    from .plan import plan

    try:
        method = settings(options.method, options.set)
        model = imagined_model(options.parameters, getattr(torch, options.dtype), options.mesh)
        found = plan(model, method)
    except (AttributeError, TypeError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    seconds = found.seconds(options.bandwidth, options.network, options.latency)
    lines = [str(found), f"{'vectors':<12}  {found.vectors:.4g}", f"{'seconds':<12}  {seconds:.3g}"]
    if options.step:
        lines.append(f"{'share':<12}  {seconds / options.step:.2%} of a step")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _info() -> None:
    rows = {
        "aadl_ext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cpu": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "no device",
        **{f"backend: {name}": state for name, state in ops.backends().items()},
    }
    width = max(map(len, rows))
    sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in rows.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aadl_ext",
        description="Stable Anderson acceleration of deep-learning optimizers.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions and backends, and why a backend is missing")
    demo = commands.add_parser(
        "demo",
        help="train a regression network with and without acceleration",
        description="Trains a 3 x 64 ReLU network with Adam, Adam + AADL, and Adam + AADL + "
        "moving average, with the paper's settings, on real data. Prints a table, and writes a "
        "plot and all curves.",
    )
    demo.add_argument(
        "--data",
        type=Path,
        metavar="FILE.csv",
        help="the Graduate Admissions file; without it the diabetes data of scikit-learn",
    )
    demo.add_argument("--seeds", type=_positive, default=10, help="runs a method (default 10)")
    demo.add_argument("--epochs", type=_positive, default=300, help="epochs a run (default 300)")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("demo_results"),
        metavar="DIR",
        help="where demo.json and demo.png go (default demo_results)",
    )
    demo.add_argument(
        "--redraw",
        type=Path,
        metavar="demo.json",
        help="print the table and draw the plot of an earlier run, without training",
    )
    costs = commands.add_parser(
        "plan",
        help="print what acceleration of a model of some size costs on each rank",
        description="Memory, bytes moved and collectives of a step once the history is full, "
        "counted without allocating anything. aadl_ext.plan(model) does it for a model.",
    )
    costs.add_argument("--parameters", type=float, required=True, metavar="N")
    costs.add_argument("--dtype", default="float32", help="of the parameters (default float32)")
    costs.add_argument(
        "--mesh",
        default="1",
        metavar="AxB",
        help="sizes of the dimensions that divide the parameters; those with copies begin with r: "
        "r64x8 is HSDP on 512 ranks (default 1)",
    )
    costs.add_argument("--method", default="newton", choices=("newton", "anderson"))
    costs.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the method, such as history_depth=4; may be repeated",
    )
    costs.add_argument("--bandwidth", type=float, default=1e12, help="memory, bytes/s (1e12)")
    costs.add_argument("--network", type=float, default=1e10, help="of a rank, bytes/s (1e10)")
    costs.add_argument("--latency", type=float, default=5e-5, help="of a collective, s (5e-5)")
    costs.add_argument("--step", type=float, help="seconds of a step without acceleration")
    again = commands.add_parser(
        "reproduce",
        add_help=False,  # the script has its own
        help="run one of the paper's experiments, from a checkout",
        usage=f"aadl_ext reproduce {{{','.join(PROBLEMS)}}} [--help] [options of the experiment]",
    )
    again.add_argument("problem", choices=PROBLEMS)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
