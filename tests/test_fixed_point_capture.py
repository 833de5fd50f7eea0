"""Fixed points by replayed graphs, with a stand-in on the CPU for what CUDA does."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aadl_ext import AndersonMixing, buffers, fixed_point
from aadl_ext.fixed_point import Iteration
from aadl_ext.ops import registry
from aadl_ext.samples import Samples

METHODS = {
    "default": AndersonMixing(),
    "even depth": AndersonMixing(history_depth=4),
    "plain": AndersonMixing(history_depth=0),
    "damped": AndersonMixing(relaxation=0.5),
    "alternating": AndersonMixing(history_depth=3, frequency=3, store_each_nth=2),
    "restarted": AndersonMixing(history_depth=3, restart_each_nth=9),
    "guarded": AndersonMixing(safeguard=("residual", "limits")),
    "tsqr": AndersonMixing(solver="tsqr"),
}


class Graph(TorchDispatchMode):
    """Takes up calls and undoes them; ``replay`` makes them again, in the same memory.

    As in a CUDA graph numbers of Python stay what they were, and no value can be read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value is read"
        arguments = func._schema.arguments
        names = dict(zip([x.name for x in arguments], args, strict=False)) | kwargs
        for written in (names.get(x.name) for x in arguments if x.is_write):
            for tensor in filter(is_tensor, tree_leaves(written)):
                self.before.append((tensor, tensor.clone()))
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if is_tensor(x)]
        self.calls.append((func, args, kwargs, made))
        return out

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        for tensor, kept in reversed(self.before):
            tensor.copy_(kept)

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, made in self.calls:
            again = [x for x in tree_leaves(func(*args, **kwargs)) if is_tensor(x)]
            for old, new in zip(made, again, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Those that are made, on a device whose values the host does not see."""
    made: list[Graph] = []

    def new_graph(device: torch.device) -> tuple[Graph, Graph]:
        made.append(Graph())
        return made[-1], made[-1]

    monkeypatch.setattr(buffers, "new_graph", new_graph)
    monkeypatch.setattr(registry, "seen", lambda tensor: False)
    return made


def problem(dtype: torch.dtype) -> Any:
    """Samples of all kinds: of several speeds, NaN, without a fixed point, left and taken again."""
    torch.manual_seed(0)
    rates = torch.tensor([0.1, 0.5, 0.9, 0.99, torch.nan, 1.0, 3.0], dtype=dtype)[:, None]
    b = torch.randn(7, 40, dtype=torch.float64).to(dtype)
    return (lambda x: b + rates * (x + x.roll(1, 1)).sin()), torch.zeros_like(b)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        *((method, torch.float32) for method in METHODS.values()),
        *product((METHODS["default"], METHODS["tsqr"]), (torch.float64, torch.bfloat16)),
    ],
)
def test_replayed_steps_are_the_eager_ones_bit_for_bit(
    method: AndersonMixing, dtype: torch.dtype, graphs: list[Graph]
) -> None:
    f, x0 = problem(dtype)
    options = {"method": method, "max_steps": 83, "tol": 1e-3, "gradient": None}
    eager = fixed_point(f, x0, check_every=84, **options)
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(0)
        return f(x)

    found = fixed_point(counted, x0, capture=True, **options)
    (graph,) = graphs
    assert graph.replays >= 2
    assert len(calls) < 83
    assert found.reason == eager.reason
    assert (found.steps == eager.steps).all()
    assert (found.residual == eager.residual).all()
    torch.testing.assert_close(found.solution, eager.solution, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_steps_allocate_nothing_that_stays(method: AndersonMixing) -> None:
    f, x0 = problem(torch.float32)
    samples = Samples.of(x0, 1)
    it = Iteration.empty(samples, method, 1e-3, 0.0, samples.rows(x0))

    def places() -> dict[str, Any]:
        own = {x.name: getattr(it, x.name) for x in fields(it)}
        own |= {f"history.{x.name}": getattr(it.history, x.name) for x in fields(it.history)}
        pairs = own.pop("history.pair"), own.pop("history.last_pair")  # they change places
        found = {name: x.data_ptr() for name, x in own.items() if is_tensor(x)}
        return found | {"pairs": {x.data_ptr() for x in pairs}}

    before = places()
    with torch.no_grad():
        for _ in range(2 * it.cycle):
            it.step(it.evaluate(f))
            assert places() == before


def test_few_steps_need_no_graph(graphs: list[Graph]) -> None:
    f, x0 = problem(torch.float64)
    found = fixed_point(f, x0, capture=True, max_steps=15, gradient=None)
    assert found.steps.max() == 15
    assert all(graph.replays == 0 for graph in graphs)


def test_what_cannot_be_captured_is_refused() -> None:
    f, x0 = problem(torch.float64)
    with pytest.raises(ValueError, match="CUDA device"):
        fixed_point(f, x0, capture=True)
    for options in ({"method": replace(AndersonMixing(), kind="I")}, {"check_every": 3}):
        with pytest.raises(ValueError, match="capture"):
            fixed_point(f, x0, capture=True, **options)
