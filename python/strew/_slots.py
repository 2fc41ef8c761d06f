"""Where an engine's modules keep their tensors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import torch

from ._errors import NotShareable


class Slot:
    """Where a module keeps a parameter or buffer, and what it was before the loader ran."""

    def __init__(self, name: str, owner: dict[str, Any], key: str) -> None:
        self.names = [name]
        self.owner, self.key = owner, key
        self.tensor: torch.Tensor = owner[key]
        self.data: torch.Tensor = self.tensor.data
        self.before = (self.data.untyped_storage()._cdata, self.data.storage_offset(),
                       self.data.shape, self.data.stride())

    def now(self) -> Any:
        """As the module has it at present; None if it has it no more."""
        return self.owner.get(self.key)

    @property
    def changed(self) -> bool:
        """True if the loader has put something else in its place."""
        now = self.now()
        if now is not self.tensor:
            return True
        data = now.data
        return self.before != (data.untyped_storage()._cdata, data.storage_offset(), data.shape,
                               data.stride())

    def restore(self) -> None:
        """The engine's own memory again."""
        if self.tensor.data.untyped_storage()._cdata != self.before[0] or \
                self.tensor.data.storage_offset() != self.before[1]:
            self.tensor.data = self.data
        self.owner[self.key] = self.tensor


def owners(module: torch.nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where modules keep tensors: parameters, then buffers, then plain attributes."""
    for part in ("_parameters", "_buffers", "__dict__"):
        for prefix, child in module.named_modules(remove_duplicate=False):
            yield prefix, getattr(child, part)


def find_slots(module: torch.nn.Module) -> list[Slot]:
    """All tensors of the module; tied ones once."""
    found: dict[tuple[Any, ...], Slot] = {}
    for prefix, owner in owners(module):
        for key, tensor in owner.items():
            if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
                continue
            name = f"{prefix}.{key}" if prefix else key
            place = (tensor.data.untyped_storage()._cdata, tensor.data.storage_offset(),
                     tensor.shape, tensor.data.stride())
            if tensor.is_meta:
                raise NotShareable(errno.ENOTSUP, f"parameter {name} has no memory yet (it is "
                                   "on the meta device)")
            if place in found and tensor.numel():
                found[place].names.append(name)
            else:
                found[place if tensor.numel() else (name,)] = Slot(name, owner, key)
    return list(found.values())
