"""Where an engine's modules keep their tensors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import torch

from ._errors import NotShareable


def _place(data: torch.Tensor) -> tuple[Any, ...]:
    """Which elements a tensor has."""
    return (data.untyped_storage()._cdata, data.storage_offset(), data.shape, data.stride())


class Slot:
    """Where modules keep a parameter or buffer, and what it was before the loader ran."""

    def __init__(self, name: str, owner: dict[str, Any], key: str) -> None:
        self.names: list[str] = []
        self.tensor: torch.Tensor = owner[key]
        self.data: torch.Tensor = self.tensor.data
        # Each (dictionary of a module, key, what was there).
        self.places: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        self._datas: list[torch.Tensor] = []  # of each its data then
        self.tie(name, owner, key)

    def tie(self, name: str, owner: dict[str, Any], key: str) -> None:
        """The same memory goes by another name too."""
        self.names.append(name)
        self.places.append((owner, key, owner[key]))
        self._datas.append(owner[key].data)

    @staticmethod
    def _moved(now: Any, was: torch.Tensor, data: torch.Tensor) -> bool:
        return now is not was or now.dtype != data.dtype or _place(now.data) != _place(data)

    def now(self) -> Any:
        """As the modules have it at present, where it has changed; None if one has it no more."""
        for (owner, key, was), data in zip(self.places, self._datas):
            if self._moved(owner.get(key), was, data):
                return owner.get(key)
        return self.tensor

    @property
    def changed(self) -> bool:
        """True if the loader has put something else in its place, or sees it otherwise."""
        return any(self._moved(owner.get(key), was, data)
                   for (owner, key, was), data in zip(self.places, self._datas))

    @property
    def plain(self) -> bool:
        """True of what is neither a parameter nor a buffer: a mere attribute of its module."""
        return all("_parameters" in owner for owner, _, _ in self.places)

    def restore(self) -> None:
        """The engine's own memory again, by every name, in the shape and dtype that it had."""
        for (owner, key, was), data in zip(self.places, self._datas):
            if self._moved(was, was, data):
                was.data = data
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
            place = _place(tensor.data)
            if tensor.is_meta:
                raise NotShareable(errno.ENOTSUP, f"parameter {name} has no memory yet (it is "
                                   "on the meta device)")
            if place in found and tensor.numel():
                found[place].tie(name, owner, key)
            else:
                found[place if tensor.numel() else (name,)] = Slot(name, owner, key)
    return list(found.values())
