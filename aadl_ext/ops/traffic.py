"""Bytes that calls move: of an op what it declares, of anything else of torch all it is given."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .registry import FRESH, SHARES, asked


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is read and written while it is entered; on device "meta" nothing is moved.

    An op reads its arguments once, writes those that it changes once, and reads those, too, unless
    it says otherwise (``op(fresh=, shares=)``). Under a flag that the host sees to be false it
    moves nothing; one that it does not see counts as true.

    Attributes:
        read: bytes.
        written: bytes.
        calls: name, bytes read and bytes written of each call that moves any.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read = self.written = 0
        self.calls: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.is_view:
            return found
        names = [x.name for x in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        read, written = _moved(func, given, found)
        if read or written:
            self.calls.append((func._schema.name, read, written))
        self.read += read
        self.written += written
        return found


def _moved(func: Any, given: dict[str, Any], found: Any) -> tuple[int, int]:
    name = func._schema.name.removeprefix("aadl_ext::")
    ours = func.namespace == "aadl_ext"
    if not asked(given.get("when")) or name.startswith("aten::empty"):
        return 0, 0
    # What torch changes in place it mostly overwrites: copy_, zero_, fill_, and all with out=.
    fresh = FRESH[name] if ours else ("self", "out") if _overwrites(name) else ("out",)
    partly = SHARES[name] if ours else None
    shares = partly(given) if partly else {}
    read = written = 0
    for argument in func._schema.arguments:
        size = _bytes(given.get(argument.name))
        once = argument.is_write and argument.name not in fresh
        own = (size * (once or not argument.is_write), size * argument.is_write)
        own = shares.get(argument.name, own)
        read, written = read + own[0], written + own[1]
    changed = any(x.is_write for x in func._schema.arguments)
    return read, written + (0 if changed else _bytes(found))


def _overwrites(name: str) -> bool:
    return name.removeprefix("aten::") in ("copy_", "_foreach_copy_", "zero_", "fill_")


def _bytes(value: Any) -> int:
    return sum(x.nbytes for x in tree_leaves(value) if isinstance(x, Tensor))
