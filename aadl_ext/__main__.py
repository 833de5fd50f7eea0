"""Command line: ``python -m aadl_ext`` with ``info``, ``demo``, ``reproduce``, ``plan``, ``bench``.

Exit status: 0 done, 2 the command cannot be carried out; standard error then says what to do.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .plan import Plan

PROBLEMS = ("admissions", "burgers2d", "burgers100d", "imagenet")
PARTS = ("full-batch", "mini-batch", "paper")
REPRODUCE = """usage: aadl_ext reproduce NAME [options of the experiment]

The experiments of arXiv:2110.14813; each writes NAME.json, a table and a plot.
  admissions    graduate admissions, a small regression network
  burgers2d     Burgers' equation in x and t, a PINN
  burgers100d   the same in 99 dimensions and time
  imagenet      ResNet-50, data-parallel"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    if others and options.run is not _reproduce:
        parser.error(f"unrecognized arguments: {' '.join(others)}; see {options.command} --help")
    options.others = others
    try:
        return int(options.run(options))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("aadl_ext"):
            raise
        return _refuse(
            f'this needs {error.name}, which is not installed: pip install "aadl_ext[demo]"'
        )


# ---- the commands ---------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> int:
    from . import info

    _say(json.dumps(info.as_dict(), indent=2) if options.json else info.as_text())
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo.data import DataError
    from .demo.run import redraw, run

    try:
        if options.redraw is not None:
            summary = redraw(options.redraw, quiet=options.json)
        else:
            parts = options.only or list(PARTS)
            summary = run(options.data, parts, options.seeds, options.out, quiet=options.json)
    except (DataError, OSError) as error:
        return _refuse(str(error))
    if options.json:
        _say(json.dumps(summary, indent=2))
    return 0


def _plan(options: argparse.Namespace) -> int:
    from .imagined import imagined_model, settings
    from .plan import REPEATING, plan

    try:
        method = settings(options.method, options.set)
        model = imagined_model(options.parameters, getattr(torch, options.dtype), options.mesh)
        found = plan(model, method)
    except (AttributeError, TypeError, ValueError) as error:
        return _refuse(str(error))
    if options.json:
        _say(json.dumps(_figures(found, options), indent=2, default=str))
        return 0
    lines = [str(replace(found, repeating=None)), *_times(found, options)]
    if found.repeating:
        lines += [REPEATING, *found.repeating.costs(), *_times(found.repeating, options)]
    _say("\n".join(lines))
    return 0


def _figures(costs: Plan, options: argparse.Namespace) -> dict[str, Any]:
    again = costs.repeating and _figures(costs.repeating, options)
    derived = {"vectors": costs.vectors, "seconds": _seconds(costs, options)}
    return {**asdict(costs), **derived, "repeating": again}


def _seconds(costs: Plan, options: argparse.Namespace) -> float:
    return costs.seconds(options.bandwidth, options.network, options.latency)


def _times(costs: Plan, options: argparse.Namespace) -> list[str]:
    """Of a step, and as a share of it."""
    seconds = _seconds(costs, options)
    at = f"memory at {options.bandwidth:.3g} bytes/s"
    if costs.ranks > 1:
        at += f", network at {options.network:.3g}, {options.latency:.3g} s a collective"
    lines = [f"time         {1e3 * seconds:.3g} ms a step: {at}"]
    if options.step:
        lines.append(f"share        {seconds / options.step:.2%} of a step")
    return lines


def _reproduce(options: argparse.Namespace) -> int:
    if options.problem is None:
        _say(f"{REPRODUCE}\n\nOptions of an experiment: aadl_ext reproduce NAME --help")
        return 0 if {"-h", "--help"} & {*options.others} else 2
    sys.argv = [f"aadl_ext reproduce {options.problem}", *options.others]
    from .paper import harness

    harness.command(import_module(f"aadl_ext.paper.{options.problem}").main)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from .bench import bench, table

    torch.set_num_threads(options.threads)
    rows = bench(options.size, options.depth, options.seconds)
    _say(json.dumps(rows, indent=2) if options.json else table(rows))
    return 0


# ---- their options --------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aadl_ext", description="Acceleration of PyTorch optimizers by their own history."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    info = commands.add_parser("info", help="what runs here, and what to do about what does not")
    info.set_defaults(run=_info)

    demo = commands.add_parser(
        "demo",
        help="two minutes that show where it helps and where not",
        description="Trains with and without acceleration, in three parts: a network for "
        "Burgers' equation on full batches, digits on mini-batches, and the paper's method on a "
        "table. Prints what was measured, and writes a page, a figure and all curves.",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument("--only", nargs="+", choices=PARTS, help="only these parts")
    demo.add_argument(
        "--data",
        type=Path,
        metavar="FILE.csv",
        help="the Graduate Admissions file, for the last part; without it the diabetes data",
    )
    demo.add_argument("--seeds", type=_positive, default=5, help="runs of each method (default 5)")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("demo_results"),
        metavar="DIR",
        help="where demo.html, demo.png and demo.json go (default demo_results)",
    )
    demo.add_argument(
        "--redraw",
        type=Path,
        metavar="demo.json",
        help="table, figure and page of an earlier run, without training",
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
    costs.set_defaults(run=_plan)

    again = commands.add_parser(
        "reproduce",
        add_help=False,  # the experiment has its own
        help="run one of the paper's experiments",
        usage=f"aadl_ext reproduce {{{','.join(PROBLEMS)}}} [--help] [options of the experiment]",
    )
    again.set_defaults(run=_reproduce)
    again.add_argument("problem", choices=PROBLEMS, nargs="?")

    bench = commands.add_parser(
        "bench",
        help="time of the kernels here, beside what memory allows",
        description="Times the passes over memory that an accelerated step is made of, each "
        "beside the time that reading and writing its bytes takes on this machine, and beside its "
        "definition in PyTorch. A few seconds.",
    )
    bench.set_defaults(run=_bench)
    bench.add_argument("--size", type=_positive, default=1_000_000, help="entries (default 1e6)")
    bench.add_argument("--depth", type=_positive, default=10, help="rows of history (default 10)")
    bench.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    bench.add_argument("--seconds", type=float, default=0.1, help="for each op (default 0.1)")
    for command in (info, demo, costs, bench):
        command.add_argument("--json", action="store_true", help="print JSON in place of tables")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _refuse(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
