"""The loader route: what may not be written raw is loaded again by the engine itself.

An update's tensors arrive in memory of their own, whole. Once they are there, and before the
engine goes on, its own loader and post-load hook run on them. Captured graphs know addresses, so
what these make anew is copied to where the old tensor lies, and the old one put back.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ._errors import LoaderFailed
from ._host import host_empty
from ._layout import Layout, LayoutParameter
from ._prove import bits, differs, source_box, target_box
from ._slots import Slot


class Reloader:
    """Runs the engine's loader on the tensors that arrive in `feed`, by name."""

    def __init__(self, slots: list[Slot], reload: Callable[[Any], Any],
                 feed: Mapping[str, torch.Tensor]) -> None:
        self._slots, self._reload = slots, reload
        self._loaded: list[Slot] = []
        self.feed = feed

    def run(self, weights: Iterable[tuple[str, torch.Tensor]] | None = None) -> None:
        """Loads what is in `feed`, or these. Raises LoaderFailed; every tensor is at its address
        again, also after Ctrl-C (which is raised as it is, and leaves what the loader fills filled
        in part)."""
        if weights is None:
            # Copies: a loader may keep what it is given, or change it.
            weights = ((name, tensor.clone()) for name, tensor in self.feed.items())
        try:
            with torch.no_grad():
                self._reload(weights)
            self._put_back()
        except BaseException as reason:
            for slot in self._slots:
                slot.restore()
            if isinstance(reason, LoaderFailed) or not isinstance(reason, Exception):
                raise
            raise LoaderFailed(errno.EIO, "the engine's loader failed on the tensors of an update: "
                               f"{type(reason).__name__}: {reason}") from reason
        for device in {slot.data.device for slot in self._slots if slot.data.is_cuda}:
            torch.cuda.synchronize(device)

    def _put_back(self) -> None:
        new, wrong = [], []
        for slot in self._slots:
            if not slot.changed:
                continue
            now = slot.now()
            if isinstance(now, torch.Tensor) and (now.shape, now.dtype, now.device) == (
                    slot.data.shape, slot.data.dtype, slot.data.device):
                new.append((slot, now.data.clone()))  # it may lie in another slot's memory
            else:
                said = "is gone" if now is None else (
                    f"is {now.dtype} of shape {tuple(now.shape)} on {now.device} now"
                    if isinstance(now, torch.Tensor) else f"is a {type(now).__name__} now")
                wrong.append(f"{slot.names[0]} {said}")
            slot.restore()
        with torch.no_grad():
            for slot, value in new:
                slot.data.copy_(value)
        if wrong:
            raise LoaderFailed(errno.EIO, f"after the engine's loader {wrong[0]} "
                               f"({len(wrong)} in all): strew cannot keep its address")

    def keep_to(self, layout: Layout) -> None:
        """From now on only what is filled must stay: an engine may change what else it has."""
        self._slots = [slot for slot in self._slots
                       if slot.names[0] in layout.parameters or slot.names[0] in layout.loader]
        self._loaded = [slot for slot in self._slots if slot.names[0] in layout.loader]

    def moved(self) -> dict[str, str]:
        """What the loader fills and lies elsewhere than when the layout was made."""
        moved = {}
        for slot in self._loaded:
            now = slot.now()
            if not isinstance(now, torch.Tensor) or now.data_ptr() != slot.data.data_ptr():
                moved[slot.names[0]] = "has moved since it was registered"
        return moved


def _scratch(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Memory for a whole tensor, which a broker can map, with its values."""
    if device.type == "cpu":
        made = host_empty(tuple(tensor.shape), tensor.dtype)
    else:
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    made.copy_(tensor)
    return made  # type: ignore[no-any-return]


def _altered(tensor: torch.Tensor) -> torch.Tensor:
    """Other values of the same kind: in another order, and floats other ones altogether."""
    rolled = bits(tensor.contiguous()).flatten().roll(1).view(tensor.dtype).view(tensor.shape)
    if tensor.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        rolled = rolled * 0.5 + 0.25
    return rolled


def _write_raw(parameters: Iterable[LayoutParameter], tensors: Mapping[str, Any]) -> None:
    """What an update of these tensors does to them."""
    with torch.no_grad():
        for parameter in parameters:
            live = parameter.tensor.data
            for piece in parameter.pieces:
                target_box(piece, live).copy_(source_box(piece, tensors[piece.tensor]))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(bits(a.contiguous()), bits(b.contiguous()))


class _Altered(Mapping[str, torch.Tensor]):
    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return _altered(self._tensors[name])

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _update(layout: Layout, reloader: Reloader, tensors: Mapping[str, Any]) -> None:
    """An update as it will be: raw parameters, then the loader. Raises LoaderFailed."""
    _write_raw(layout.parameters.values(), tensors)
    for name, tensor in reloader.feed.items():
        tensor.copy_(tensors[name])
    reloader.run()
    for name, parameter in layout.parameters.items():
        why = differs(parameter, tensors)
        if why:
            raise LoaderFailed(errno.EIO, f"it changes {name}, which updates write raw")


def _rehearse(layout: Layout, slots: list[Slot], reloader: Reloader,
              tensors: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """(slots that an update of other values changes, those that the checkpoint's does not give
    back). Raises LoaderFailed. Memory is as it was in every case."""
    watched = [slot for slot in slots if slot.names[0] not in layout.parameters
               or layout.parameters[slot.names[0]].uncovered]
    before = [slot.data.clone() for slot in watched]
    try:
        _update(layout, reloader, _Altered(tensors))
        driven = {slot.names[0] for slot, was in zip(watched, before)
                  if not _same(slot.data, was)}
        _update(layout, reloader, tensors)
        wrong = {slot.names[0] for slot, was in zip(watched, before) if not _same(slot.data, was)}
    finally:
        for slot in slots:
            slot.restore()
        _write_raw(layout.parameters.values(), tensors)
        with torch.no_grad():
            for slot, was in zip(watched, before):
                slot.data.copy_(was)
    return driven - set(layout.parameters) - set(layout.views), wrong


def _judge(layout: Layout, driven: set[str], wrong: set[str]) -> None:
    """Sorts the tensors of the module by what the rehearsal has shown."""
    for name in wrong:
        layout.refused[name] = ("the engine's loader, run again on the checkpoint, does not give "
                                "the values that it has")
        layout.parameters.pop(name, None)
    for name in set(layout.refused) - driven - wrong:
        layout.refused[name] += "; the engine's loader, run again, leaves it as it is"
    layout.loader = sorted(driven - wrong)
    for name in layout.loader:
        layout.refused.pop(name, None)
    for names in (layout.unfilled, layout.kept):
        names[:] = [name for name in names if name not in driven | wrong]


def add_loader_route(layout: Layout, slots: list[Slot], reload: Callable[[Any], Any],
                     tensors: Mapping[str, Any], origins: set[str], every: list[str]) -> None:
    """Moves to layout.loader what an update of `tensors` by `reload` gives back, bit for bit.

    origins: names of the tensors that the refused parameters are made of. Some loaders do with
    these alone; others want `every` tensor.
    """
    device = slots[0].data.device if slots else torch.device("cpu")
    problem = ""
    for fed in ([n for n in every if n in origins], every):
        missing = [name for name in fed if name not in tensors]
        if missing:
            problem = f"the checkpoint has no tensor {missing[0]}"
            continue
        reloader = Reloader(slots, reload, {n: _scratch(tensors[n], device) for n in fed})
        try:
            driven, wrong = _rehearse(layout, slots, reloader, tensors)
        except LoaderFailed as reason:
            problem = reason.sentence
            continue
        _judge(layout, driven, wrong)
        # Also where it fills nothing that was seen: an engine may derive more, outside its modules.
        reloader.keep_to(layout)
        layout.reloader = reloader
        layout.unused = [name for name in layout.unused if name not in reloader.feed]
        return
    for name in layout.refused:
        layout.refused[name] += f"; not by the loader route either: {problem}"
    if not layout.refused:
        layout.refused["reload"] = f"the loader route: {problem}"
