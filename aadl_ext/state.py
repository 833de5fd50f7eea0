"""What a checkpoint holds: the fields of dataclasses, whatever they are.

That has the same names, lengths, shapes and types at all times: some loaders
(``torch.distributed.checkpoint``) fill a state that they first ask for. So no field is None, or
shorter, for as long as there is nothing to keep.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

from torch import Tensor

T = TypeVar("T")
#: Type of a field that a checkpoint leaves out: made anew, or of no use after a step.
Scratch = Annotated[T, "not saved"]


def state_dict(holder: Any) -> dict[str, Any]:
    """The fields of a dataclass by name; tensors are copies."""
    return {f.name: _saved(getattr(holder, f.name)) for f in _fields(holder)}


def load_state_dict(holder: Any, state: dict[str, Any]) -> None:
    """Inverse of :func:`state_dict`; tensors are filled in place.

    Raises:
        KeyError: a field is missing.
    """
    for f in _fields(holder):
        setattr(holder, f.name, _restored(getattr(holder, f.name), state[f.name]))


def tensors(holder: Any) -> list[Tensor]:
    """All tensors in the fields of a dataclass, scratch ones too."""
    return [x for f in fields(holder) for x in _tensors(getattr(holder, f.name))]


def _fields(holder: Any) -> list[Any]:
    return [f for f in fields(holder) if "Scratch[" not in str(f.type)]


def _saved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if is_dataclass(value):
        return state_dict(value)
    return [_saved(x) for x in value] if isinstance(value, list) else value


def _restored(value: Any, saved: Any) -> Any:
    if isinstance(value, Tensor):
        return value.copy_(saved)
    if is_dataclass(value):
        load_state_dict(value, saved)
        return value
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [x.copy_(y) for x, y in zip(value, saved, strict=True)]
    return list(saved) if isinstance(value, list) else saved


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return tensors(value)
    return [x for y in value for x in _tensors(y)] if isinstance(value, list) else []
