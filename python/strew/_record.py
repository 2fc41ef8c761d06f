"""record_layout(): a layout from an engine's own weight loader."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import _affine
from ._affine import Inexpressible, Region
from ._checkpoint import open_checkpoint
from ._errors import Error, InvalidArgument, NotShareable
from ._follow import Block, Follower, Source, Write
from ._layout import Layout, LayoutParameter, Piece
from ._lib import MAX_DIMS
from ._modes import IndicesStay, threads_inline
from ._prove import bits
from ._reload import add_loader_route
from ._slots import Holders, Slot, find_slots, owners
from ._tensors import CASTABLE, DTYPES, dtype_number


def _sources(names: Any) -> list[Source]:
    """What the trainer will send: from headers, a state_dict, or (dtype, shape) by name."""
    if isinstance(names, (str, os.PathLike)):
        names = open_checkpoint(names)
    if hasattr(names, "described"):
        names = names.described()
    sources: list[Source] = []
    seen: set[str] = set()
    for name, said in names.items() if hasattr(names, "items") else names:
        dtype, shape = (said.dtype, said.shape) if hasattr(said, "shape") else said
        if not isinstance(dtype, torch.dtype):
            known = [n for n, number in DTYPES.items() if number == dtype_number(dtype)]
            dtype = getattr(torch, known[0])
        if name in seen:
            raise InvalidArgument(errno.EEXIST, f"record_layout: tensor {name} is named twice")
        seen.add(name)
        sources.append(Source(name, dtype, tuple(shape)))
    if not sources:
        raise InvalidArgument(errno.EINVAL, "record_layout: no tensors are named")
    return sources


def _given(follower: Follower, sources: list[Source]) -> Iterator[tuple[str, torch.Tensor]]:
    for source in sources:
        follower.at = source.name
        yield source.name, follower.stand_in(source)


def _run(follower: Follower, load_weights: Callable[[Any], Any], sources: list[Source]) -> Any:
    given = _given(follower, sources)
    try:
        with torch.no_grad(), threads_inline(), IndicesStay(follower.look), follower:
            return load_weights(given)
    except Error:
        raise
    except Exception as reason:
        raise NotShareable(errno.ENOTSUP, f"the loader failed on a tensor without data, at tensor "
                           f"{follower.at}: {type(reason).__name__}: {reason}") from reason


def _follow(follower: Follower, load_weights: Callable[[Any], Any], sources: list[Source],
            reloads: bool) -> tuple[Any] | None:
    """What the loader has returned; None if it cannot be followed, but may be run again."""
    try:
        return (_run(follower, load_weights, sources),)
    except NotShareable:
        if not reloads:
            raise
        return None


def _leave_to_loader(layout: Layout, slots: list[Slot]) -> None:
    """Nothing is known of any tensor: the rehearsal of the loader route finds what it fills.

    So it is with engines that put something else in their parameters' place after loading, into
    which their own loader then does not load any more.
    """
    for slot in slots:
        if not slot.data.numel():
            continue
        names = layout.unfilled if isinstance(slot.tensor, torch.nn.Parameter) else layout.kept
        names.append(slot.names[0])


def _cast(write: Write) -> bool:
    """False: the tensor's bits as they are. Raises where a cast is none that a piece can say."""
    if len(write.path) == 1:
        return False
    said = " to ".join(str(dtype).removeprefix("torch.") for dtype in write.path)
    if len(write.path) > 2 or not all(dtype_number(dtype) in CASTABLE for dtype in write.path):
        raise Inexpressible(f"tensor {write.source.name} is cast from {said}")
    return True


def _of_slot(own: Region, written: Region) -> list[Region]:
    """What was written of a slot's elements; the rest is other slots', which may lie in between.

    own: the slot's, with places in it beside. Returned regions look at the source, beside places.
    """
    if own.start <= written.start and written.end <= own.end and own.count == own.end - own.start:
        return [dataclasses.replace(written.swapped(), other=written.start - own.start)]
    return _affine.meet(own, written)


def _region(data: torch.Tensor) -> Region:
    """A slot's elements, with places in it beside."""
    return _affine.region(int(data.storage_offset()), 0, tuple(data.shape), data.stride(),
                          data.stride())


def _set_views_apart(layout: Layout) -> None:
    """Memory is registered once: views of a parameter are filled with it."""
    by_storage: dict[int, list[tuple[str, Region]]] = {}
    for name, one in layout.parameters.items():
        key = one.tensor.untyped_storage()._cdata
        by_storage.setdefault(key, []).append((name, _region(one.tensor.data)))
    for sharing in by_storage.values():
        sharing.sort(key=lambda pair: -pair[1].count)
        wholes: list[tuple[str, Region]] = []
        for name, own in sharing:
            for whole, its in wholes:
                try:
                    shared = sum(part.count for part in _affine.meet(its, own))
                except Inexpressible:
                    shared = -1
                if shared == own.count:
                    layout.views[name] = layout.parameters.pop(name)
                elif shared:
                    del layout.parameters[name]
                    layout.refused[name] = f"it shares a part of its memory with {whole}"
                if shared:
                    break
            else:
                wholes.append((name, own))


def _pieces(slot: Slot, block: Block) -> list[Piece]:
    """What the loader wrote into the parameter."""
    data = slot.data
    if block.taint:
        raise Inexpressible(block.taint)
    if data.dtype != block.dtype:
        raise Inexpressible("its memory is also used as another dtype")
    own = _region(data)
    if block.writes and any(dim.step == 0 for dim in own.dims):
        raise Inexpressible("it has elements more than once")
    pieces = []
    for write in block.writes:
        met = _of_slot(own, write.region)
        source, cast = write.source, _cast(write) if met else False
        for part in met:
            for box in _affine.view_boxes(part, source.shape, MAX_DIMS):
                pieces.append(Piece(source.name, source.dtype, source.shape, box.view, box.start,
                                    box.extent, box.offset, box.stride, cast))
    return pieces


def _remove_new(module: torch.nn.Module, before: list[set[str]], follower: Follower,
                layout: Layout) -> None:
    """Takes out the stand-ins that the loader has left where nothing was; they are refused."""
    for (prefix, owner), keys in zip(owners(module), before):
        for key in [k for k in owner if k not in keys]:
            if isinstance(owner[key], torch.Tensor) and follower.tracked(owner[key].data):
                name = f"{prefix}.{key}" if prefix else key
                layout.refused[name] = "the loader makes it anew; the engine had none"
                del owner[key]


def _adopt(follower: Follower, slots: list[Slot], result: Any, module: torch.nn.Module,
           layout: Layout) -> None:
    """Loaders that put tensors in place instead of copying, or that make a module of their own."""
    others: dict[str, torch.Tensor] = {}
    if isinstance(result, torch.nn.Module) and result is not module:
        others = {**dict(result.named_buffers(remove_duplicate=False)),
                  **dict(result.named_parameters(remove_duplicate=False))}
    taken: list[tuple[Slot, torch.Tensor]] = []
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
                with follower:
                    taken.append((slot, put.clone()))  # it may lie in another slot's memory
            else:
                layout.refused[slot.names[0]] = "the loader put another tensor in its place"
    for slot, put in taken:
        follower.copy(slot.data, put)
    for slot in slots:
        slot.restore()


def _restore_holders(holders: Holders, follower: Follower, outside: dict[str, Block]) -> None:
    """Notes in `outside` what the loader has put or filled there."""
    put = holders.restore(lambda one: isinstance(one, torch.Tensor) and
                          follower.tracked(one.data))
    for name, tensor in put.items():
        outside[name] = follower.block(tensor)


def _note_kept(follower: Follower, outside: dict[str, Block]) -> None:
    """What the loader has put or filled where nobody looks."""
    named = {id(block) for block in outside.values()}
    for block in follower.kept():
        if id(block) not in named:
            few = sorted(block.sources)
            outside[f"what is made of {', '.join(few[:3])}{', ...' if few[3:] else ''}"] = block


def _fill_in(layout: Layout, follower: Follower, slots: list[Slot]) -> None:
    """What the follower has seen, for each slot."""
    for slot in slots:
        name, block = slot.names[0], follower.block(slot.data)
        if name in layout.refused or not slot.data.numel():
            continue
        try:
            pieces = _pieces(slot, block)
        except Inexpressible as reason:
            layout.refused[name] = str(reason)
            continue
        if pieces:
            layout.parameters[name] = LayoutParameter(slot.tensor, pieces, tuple(slot.names),
                                                      slot.now, slot.data.data_ptr(), slot.places)
        elif isinstance(slot.tensor, torch.nn.Parameter):
            layout.unfilled.append(name)
        else:
            layout.kept.append(name)
    _set_views_apart(layout)


def _origins(layout: Layout, follower: Follower, slots: list[Slot],
             sources: list[Source]) -> set[str]:
    """Names of the tensors that the refused parameters are made of: perhaps of some more."""
    found: set[str] = set()
    for slot in slots:
        if slot.names[0] not in layout.refused:
            continue
        block = follower.block(slot.data)
        if block.unseen or not block.sources:
            return {source.name for source in sources}
        found |= block.sources
    return found


def _refuse_unfilled(layout: Layout, slots: list[Slot], reloads: bool,
                     follower: Follower | None) -> None:
    """What has values of its own that the loader never wrote: whence has it them?

    Of all parameters, and of modules' plain tensors, which engines derive from weights (MLA's
    projections). Not of buffers: tables of positions and the like. What a reload was seen to leave
    as it is when the weights change is derived from none; nor are indices that the loader looks at
    and leaves alone, such as an expert map. follower: None if it did not come to the end.
    """
    for slot in slots:
        name = slot.names[0]
        if name in layout.unfilled:
            names = layout.unfilled
        elif name in layout.kept and slot.plain and not reloads:
            if follower is not None and follower.only_looked_at(slot.data):
                continue
            names = layout.kept
        else:
            continue
        values = bits(slot.data.contiguous()).flatten()
        if bool((values != values[:1]).any()):
            names.remove(name)
            layout.refused[name] = ("the loader never writes it, but it has values: the engine "
                                    "derives it after loading (see reload=), or keeps it")


def record_layout(module: torch.nn.Module, load_weights: Callable[[Any], Any], names: Any, *,
                  prove: Any = None, reload: Callable[[Any], Any] | None = None) -> Layout:
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
            values differ from it by a bit are refused, for the engine has changed them after; so
            are parameters, and plain tensors of modules, with values that the loader never wrote,
            except indices that it looks at and leaves alone, such as an expert map.
        reload: what the engine does to load, its post-load hook included: called with an iterator
            of (name, tensor) of some tensors. What would be refused goes by the loader route then:
            Agent.resume() calls it after each update, and keeps every tensor of the module at its
            address. Needs `prove`. It is tried here, on the module's live memory: an update of
            changed values, then one of the checkpoint's. What changes with the first and is as it
            was after the second is in `loader`; all else stays refused. If load_weights cannot be
            followed, because the engine has replaced what it loads into, everything goes so.

    Returns a Layout. Its `refused` names the parameters that cannot be filled by copies and casts
    of boxes, and why, and without `reload` what load_weights puts or fills outside of modules' own
    tensors, in lists, dictionaries and other objects: the engine's are put back. Agent.register()
    raises Refused for them. NotShareable if the loader looks at values, or fails on tensors without
    data.
    """
    if reload is not None and prove is None:
        raise InvalidArgument(errno.EINVAL, "record_layout: reload needs prove, the checkpoint "
                              "that the engine has loaded")
    sources = _sources(names)
    slots = find_slots(module)
    follower = Follower()
    for slot in slots:
        follower.parameter(slot.data)
    layout = Layout()
    keys = [set(owner) for _, owner in owners(module)]
    outside: dict[str, Block] = {}
    holders = Holders(module)
    with contextlib.ExitStack() as stack:
        stack.callback(follower.done.undo)
        stack.callback(_restore_holders, holders, follower, outside)
        stack.callback(_remove_new, module, keys, follower, layout)
        for slot in slots:
            stack.callback(slot.restore)
        followed = _follow(follower, load_weights, sources, reload is not None)
        if followed is not None:
            _adopt(follower, slots, followed[0], module, layout)
    if followed is not None:
        followed = (None,)  # its stand-ins are kept by nobody else
        _note_kept(follower, outside)
        _fill_in(layout, follower, slots)
    else:
        _leave_to_loader(layout, slots)
    used = {piece.tensor for p in layout.parameters.values() for piece in p.pieces}
    layout.unused = [source.name for source in sources if source.name not in used]
    if prove is not None:
        tensors = open_checkpoint(prove) if isinstance(prove, (str, os.PathLike)) else prove
        layout.prove(tensors)
        if reload is not None:
            every = {source.name for source in sources}
            origins = _origins(layout, follower, slots, sources) if followed is not None else every
            origins = origins.union(*(block.sources for block in outside.values()))
            add_loader_route(layout, slots, reload, tensors, origins,
                             [source.name for source in sources])
        _refuse_unfilled(layout, slots, layout.reloader is not None,
                         follower if followed is not None else None)
    if layout.reloader is None:  # which makes these too
        layout.refused.update((name, "the loader keeps it outside of the modules' own tensors, "
                               "where no update fills it") for name in outside)
    return layout
