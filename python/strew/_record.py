"""record_layout(): a layout from an engine's own weight loader."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import _affine
from ._affine import Inexpressible
from ._checkpoint import open_checkpoint
from ._errors import Error, InvalidArgument, NotShareable
from ._follow import Block, Follower, IndicesStay, Source, Write, threads_inline
from ._layout import Layout, LayoutParameter, Piece
from ._lib import MAX_DIMS
from ._tensors import CASTABLE, DTYPES, dtype_number


def _sources(names: Any) -> list[Source]:
    """What the trainer will send: from headers, a state_dict, or (dtype, shape) by name."""
    if isinstance(names, (str, os.PathLike)):
        names = open_checkpoint(names)
    if hasattr(names, "described"):
        names = names.described()
    sources = []
    for name, said in names.items() if hasattr(names, "items") else names:
        dtype, shape = (said.dtype, said.shape) if hasattr(said, "shape") else said
        if not isinstance(dtype, torch.dtype):
            known = [n for n, number in DTYPES.items() if number == dtype_number(dtype)]
            dtype = getattr(torch, known[0])
        sources.append(Source(name, dtype, tuple(shape)))
    if not sources:
        raise InvalidArgument(errno.EINVAL, "record_layout: no tensors are named")
    return sources


class _Slot:
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


def _owners(module: torch.nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where modules keep tensors: parameters, then buffers, then plain attributes."""
    for part in ("_parameters", "_buffers", "__dict__"):
        for prefix, child in module.named_modules(remove_duplicate=False):
            yield prefix, getattr(child, part)


def _slots(module: torch.nn.Module) -> list[_Slot]:
    """All tensors of the module; tied ones once."""
    found: dict[tuple[Any, ...], _Slot] = {}
    for prefix, owner in _owners(module):
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
                found[place if tensor.numel() else (name,)] = _Slot(name, owner, key)
    return list(found.values())


def _given(follower: Follower, sources: list[Source]) -> Iterator[tuple[str, torch.Tensor]]:
    for source in sources:
        follower.at = source.name
        yield source.name, follower.stand_in(source)


def _run(follower: Follower, load_weights: Callable[[Any], Any], sources: list[Source]) -> Any:
    given = _given(follower, sources)
    try:
        with torch.no_grad(), threads_inline(), IndicesStay(), follower:
            return load_weights(given)
    except Error:
        raise
    except Exception as reason:
        raise NotShareable(errno.ENOTSUP, f"the loader failed on a tensor without data, at tensor "
                           f"{follower.at}: {type(reason).__name__}: {reason}") from reason


def _cast(write: Write) -> bool:
    """False: the tensor's bits as they are. Raises where a cast is none that a piece can say."""
    if len(write.path) == 1:
        return False
    said = " to ".join(str(dtype).removeprefix("torch.") for dtype in write.path)
    if len(write.path) > 2 or not all(dtype_number(dtype) in CASTABLE for dtype in write.path):
        raise Inexpressible(f"tensor {write.source.name} is cast from {said}")
    return True


def _pieces(slot: _Slot, block: Block) -> list[Piece]:
    """What the loader wrote into the parameter."""
    data = slot.data
    if block.taint:
        raise Inexpressible(block.taint)
    if data.dtype != block.dtype:
        raise Inexpressible("its memory is also used as another dtype")
    first = int(data.storage_offset())
    end = first + sum((n - 1) * s for n, s in zip(data.shape, data.stride())) + 1
    pieces = []
    for write in block.writes:
        if write.region.end <= first or write.region.start >= end:
            continue  # another parameter's
        if write.region.start < first or write.region.end > end:
            raise Inexpressible(f"tensor {write.source.name} is written across its bounds")
        source, cast = write.source, _cast(write)
        for box in _affine.view_boxes(write.region.swapped(), source.shape, MAX_DIMS):
            pieces.append(Piece(source.name, source.dtype, source.shape, box.view, box.start,
                                box.extent, box.offset - first, box.stride, cast))
    return pieces


def _remove_new(module: torch.nn.Module, before: list[set[str]], follower: Follower,
                layout: Layout) -> None:
    """Takes out the stand-ins that the loader has left where nothing was; they are refused."""
    for (prefix, owner), keys in zip(_owners(module), before):
        for key in [k for k in owner if k not in keys]:
            if isinstance(owner[key], torch.Tensor) and follower.tracked(owner[key].data):
                name = f"{prefix}.{key}" if prefix else key
                layout.refused[name] = "the loader makes it anew; the engine had none"
                del owner[key]


def _adopt(follower: Follower, slots: list[_Slot], result: Any, module: torch.nn.Module,
           layout: Layout) -> None:
    """Loaders that put tensors in place instead of copying, or that make a module of their own."""
    others: dict[str, torch.Tensor] = {}
    if isinstance(result, torch.nn.Module) and result is not module:
        others = {**dict(result.named_buffers(remove_duplicate=False)),
                  **dict(result.named_parameters(remove_duplicate=False))}
    for slot in slots:
        if slot.changed:
            put = slot.now()
        else:
            put = next((others[name] for name in slot.names if name in others
                        and follower.tracked(others[name].data)), None)
        if put is not None:
            put = put.data
            if put.shape != slot.data.shape:
                layout.refused[slot.names[0]] = (f"the loader made it of shape {tuple(put.shape)}, "
                                                 f"the engine has {tuple(slot.data.shape)}")
            elif follower.tracked(put):
                follower.copy(slot.data, put)
            else:
                layout.refused[slot.names[0]] = "the loader put another tensor in its place"
        slot.restore()


def record_layout(module: torch.nn.Module, load_weights: Callable[[Any], Any], names: Any, *,
                  prove: Any = None) -> Layout:
    """Runs an engine's weight loader without data and tells which piece goes where.

    Args:
        module: the engine's, with its parameters in their final memory.
        load_weights: called once with an iterator of (name, tensor), as the engine's own is with a
            checkpoint's. The tensors are stand-ins on the meta device. It copies into the module's
            parameters (nothing is written), puts tensors in their place (they are put back), or
            returns a module of its own, whose parameters are compared by name.
        names: the tensors that a trainer sends: a safetensors file or folder, a state_dict, or
            names with (dtype, shape).
        prove: a checkpoint (path or mapping) that the engine has loaded: parameters whose live
            values differ from it by a bit are refused, for the engine has changed them after.

    Returns a Layout. Its `refused` names the parameters that cannot be filled by copies and casts
    of boxes, and why; Agent.register() raises Refused for them. NotShareable if the loader looks
    at values, or fails on tensors without data.
    """
    sources = _sources(names)
    slots = _slots(module)
    follower = Follower()
    for slot in slots:
        follower.parameter(slot.data)
    layout = Layout()
    keys = [set(owner) for _, owner in _owners(module)]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_new, module, keys, follower, layout)
        for slot in slots:
            stack.callback(slot.restore)
        result = _run(follower, load_weights, sources)
        _adopt(follower, slots, result, module, layout)
    for slot in slots:
        name = slot.names[0]
        if name in layout.refused:
            continue
        try:
            pieces = _pieces(slot, follower.block(slot.data))
        except Inexpressible as reason:
            layout.refused[name] = str(reason)
            continue
        if pieces:
            layout.parameters[name] = LayoutParameter(slot.tensor, pieces, tuple(slot.names),
                                                      slot.now, slot.data.data_ptr())
        elif isinstance(slot.tensor, torch.nn.Parameter):
            layout.unfilled.append(name)
        else:
            layout.kept.append(name)
    used = {piece.tensor for p in layout.parameters.values() for piece in p.pieces}
    layout.unused = [source.name for source in sources if source.name not in used]
    if prove is not None:
        layout.prove(open_checkpoint(prove) if isinstance(prove, (str, os.PathLike)) else prove)
    return layout
