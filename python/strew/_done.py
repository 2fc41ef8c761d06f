"""Operations of a loader that are done while it is followed: nothing of a source is in them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves


def key_of(tensor: torch.Tensor) -> int:
    """Alike for all views of one storage."""
    return int(tensor.untyped_storage()._cdata)


def changed_by(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that the operation writes to."""
    schema = func._schema.arguments
    changed = [value for argument, value in
               [*zip(schema, args), *((a, kwargs[a.name]) for a in schema if a.name in kwargs)]
               if argument.alias_info is not None and argument.alias_info.is_write]
    return [t for t in tree_leaves(changed) if isinstance(t, torch.Tensor)]


class Done:
    """Does them, and undoes what they have changed in memory that is not the loader's own."""

    def __init__(self) -> None:
        self._own: set[int] = set()  # storages that came into being while the loader ran
        self._saved: dict[int, tuple[Any, Any]] = {}  # others that it wrote to, and what they had

    def do(self, func: Any, args: Any, kwargs: Any) -> Any:
        """func(*args, **kwargs)"""
        for one in changed_by(func, args, kwargs) if func._schema.is_mutable else ():
            key = key_of(one)
            if not (one.is_meta or key in self._own or key in self._saved):
                storage = one.untyped_storage()
                self._saved[key] = storage, storage.clone()
        known = {key_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **kwargs)
        self._own |= {key_of(t) for t in tree_leaves(out) if isinstance(t, torch.Tensor)} - known
        return out

    def undo(self) -> None:
        """What was written to memory that is not the loader's own is as it was."""
        for storage, before in self._saved.values():
            storage.copy_(before)
        self._saved.clear()
