"""Where an engine's modules keep their tensors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
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


def _inside(value: Any) -> Any:
    """The list or dictionary in which a list, a dictionary or a plain object has its parts."""
    if isinstance(value, (torch.nn.Module, torch.Tensor)):
        return None
    inside = value if isinstance(value, (list, dict)) else getattr(value, "__dict__", None)
    return inside if isinstance(inside, (list, dict)) else None


def _items(inside: Any) -> list[tuple[Any, Any]]:
    return list(inside.items() if isinstance(inside, dict) else enumerate(inside or ()))


class Holders:
    """Lists, dictionaries and plain objects that modules have as attributes, and what was in them.

    Engines keep tensors there too. These are no slots: a loader that puts others there is seen, and
    the engine's own are put back.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        # Each (name, the module's dictionary, key in it, its value, what that has, a copy of that).
        self._kept: list[tuple[str, dict[str, Any], str, Any, Any, Any]] = []
        torchs, seen = vars(torch.nn.Module()).keys(), set()
        for prefix, child in module.named_modules():
            for key, value in vars(child).items():
                inside = _inside(value)
                if inside is not None and key not in torchs and id(inside) not in seen:
                    seen.add(id(inside))
                    name = f"{prefix}.{key}" if prefix else key
                    self._kept.append((name, vars(child), key, value, inside, inside.copy()))

    def restore(self, of_loader: Callable[[Any], bool]) -> dict[str, torch.Tensor]:
        """Takes out the tensors that the loader has put there, and returns them by name."""
        found: dict[str, torch.Tensor] = {}
        for name, owner, key, value, inside, before in self._kept:
            now = owner.get(key)
            there = [(parts, part, one) for parts in ([inside] if now is value
                                                      else [inside, _inside(now)])
                     for part, one in _items(parts) if of_loader(one)]
            found.update((f"{name}.{part}", one) for _, part, one in there)
            if any(parts is not inside for parts, _, _ in there):
                owner[key] = value
            for parts, part, _ in there:
                if isinstance(inside, list):
                    inside[:] = before
                elif parts is inside and part in before:
                    inside[part] = before[part]
                elif parts is inside:
                    del inside[part]
        return found


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
