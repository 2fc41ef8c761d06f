"""Where an engine's modules keep their tensors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import torch

from ._errors import NotShareable


class Slot:
    """Where modules keep a parameter or buffer, and what it was before the loader ran."""

    def __init__(self, name: str, owner: dict[str, Any], key: str) -> None:
        self.names: list[str] = []
        self.tensor: torch.Tensor = owner[key]
        self.data: torch.Tensor = self.tensor.data
        self.before = (self.data.untyped_storage()._cdata, self.data.storage_offset(),
                       self.data.shape, self.data.stride())
        # Each (dictionary of a module, key, what was there).
        self.places: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        self.tie(name, owner, key)

    def tie(self, name: str, owner: dict[str, Any], key: str) -> None:
        """The same memory goes by another name too."""
        self.names.append(name)
        self.places.append((owner, key, owner[key]))

    def _moved(self, now: Any, was: torch.Tensor) -> bool:
        if now is not was:
            return True
        data = now.data
        return self.before != (data.untyped_storage()._cdata, data.storage_offset(), data.shape,
                               data.stride())

    def now(self) -> Any:
        """As the modules have it at present, where it has changed; None if one has it no more."""
        for owner, key, was in self.places:
            if self._moved(owner.get(key), was):
                return owner.get(key)
        return self.tensor

    @property
    def changed(self) -> bool:
        """True if the loader has put something else in its place."""
        return any(self._moved(owner.get(key), was) for owner, key, was in self.places)

    @property
    def plain(self) -> bool:
        """True of what is neither a parameter nor a buffer: a mere attribute of its module."""
        return all("_parameters" in owner for owner, _, _ in self.places)

    def restore(self) -> None:
        """The engine's own memory again, by every name."""
        for owner, key, was in self.places:
            if was.data.untyped_storage()._cdata != self.before[0] or \
                    was.data.storage_offset() != self.before[1]:
                was.data = self.data
            owner[key] = was


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
                found[place].tie(name, owner, key)
            else:
                found[place if tensor.numel() else (name,)] = Slot(name, owner, key)
    return list(found.values())
