"""What a checkpoint holds: the fields of dataclasses, whatever they are.

That has the same names, lengths, shapes and types at all times: some loaders
(``torch.distributed.checkpoint``) fill a state that they first ask for. So no field is None, or
shorter, for as long as there is nothing to keep. It does not tell over how many ranks the
parameters are spread: the type of a field says where it depends on their layout.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from .parameters import Layout

T = TypeVar("T")
#: Type of a field that a checkpoint leaves out: made anew, or of no use after a step.
Scratch = Annotated[T, "not saved"]
#: Type of a field of vectors, ``[..., N]``: saved a parameter each.
Entries = Annotated[T, "saved by parameter"]
#: Type of a field of figures, ``[S, ...]`` or a tuple: saved a problem each.
Figures = Annotated[T, "saved by problem"]


def state_dict(holder: Any, layout: Layout | None = None) -> dict[str, Any]:
    """The fields of a dataclass by name; tensors are copies."""
    return {f.name: _saved(getattr(holder, f.name), str(f.type), layout) for f in _fields(holder)}


def load_state_dict(holder: Any, state: dict[str, Any], layout: Layout | None = None) -> None:
    """Inverse of :func:`state_dict`; tensors are filled in place.

    Raises:
        KeyError: a field is missing.
    """
    for f in _fields(holder):
        now = getattr(holder, f.name)
        setattr(holder, f.name, _restored(now, state[f.name], str(f.type), layout))


def tensors(holder: Any) -> list[Tensor]:
    """All tensors in the fields of a dataclass, scratch ones too."""
    return [x for f in fields(holder) for x in _tensors(getattr(holder, f.name))]


def bytes_held(holder: Any) -> int:
    """Memory of all tensors in the fields of a dataclass, each storage once."""
    storages = {x.untyped_storage()._cdata: x.untyped_storage() for x in tensors(holder)}
    return sum(x.nbytes() for x in storages.values())


def _fields(holder: Any) -> list[Any]:
    return [f for f in fields(holder) if "Scratch[" not in str(f.type)]


def _saved(value: Any, kind: str, layout: Layout | None) -> Any:
    if is_dataclass(value):
        return state_dict(value, layout)
    if isinstance(value, list):
        return [_saved(x, kind, layout) for x in value]
    if layout is not None and "Entries[" in kind:
        return layout.by_parameter(value)
    if layout is not None and "Figures[" in kind and value is not None:
        value = layout.counted(value)
    return value.detach().clone() if isinstance(value, Tensor) else value


def _restored(value: Any, saved: Any, kind: str, layout: Layout | None) -> Any:
    if is_dataclass(value):
        load_state_dict(value, saved, layout)
        return value
    if isinstance(value, list):
        olds = value if value and isinstance(value[0], Tensor) else [()] * len(saved)
        return [_restored(x, y, kind, layout) for x, y in zip(olds, saved, strict=True)]
    if layout is not None and "Entries[" in kind:
        return layout.fill(value, saved)
    if layout is not None and "Figures[" in kind and saved is not None:
        saved = layout.of_all(saved)
    return value.copy_(saved) if isinstance(value, Tensor) else saved


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return tensors(value)
    return [x for y in value for x in _tensors(y)] if isinstance(value, list) else []
