"""Follows tensors without data through an engine's weight loader.

Stand-ins are meta tensors, one storage each. Views need no help: a view of a meta tensor says by
its storage, offset and strides which elements it has. What copies is followed here: for each
storage that got elements of a tensor, a list of writes (see _affine.py). Parameters are the
engine's own tensors; what the loader would write into them is noted and not done. Whatever is not
understood taints what it touches, by name, and so refuses the parameters that it reaches.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from . import _affine
from ._affine import Inexpressible, Region
from ._done import Done, changed_by, key_of
from ._errors import NotShareable

aten = torch.ops.aten

# Casts that lose nothing: through them a value is what it was.
_WIDER = {torch.bfloat16: (torch.float32, torch.float64), torch.float16: (torch.float32,
                                                                         torch.float64),
          torch.float32: (torch.float64,)}


@dataclasses.dataclass(frozen=True)
class Source:
    """A tensor of the trainer."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Write:
    """region looks at the storage; its other line is the source. path: dtypes it went through."""

    region: Region
    source: Source
    path: tuple[torch.dtype, ...]


@dataclasses.dataclass
class Block:
    """A storage that the loader deals with."""

    storage: Any  # kept, so that no other storage gets its address
    dtype: torch.dtype
    parameter: bool = False
    writes: list[Write] = dataclasses.field(default_factory=list)
    taint: str = ""
    sources: set[str] = dataclasses.field(default_factory=set)  # that it had anything to do with
    unseen: bool = False  # it may have had to do with others too
    read: bool = False  # the loader has looked at its numbers, ...
    changed: bool = False  # ... has written to it

    def inherit(self, origins: Iterable[Block]) -> None:
        """Its values come from what those hold."""
        for origin in origins:
            self.sources |= origin.sources
            self.unseen = self.unseen or origin.unseen

    @property
    def tracked(self) -> bool:
        """True if it holds something of a source."""
        return bool(self.writes or self.taint)


def _through(path: tuple[torch.dtype, ...], dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The path, with a step to dtype, without the steps that changed no value."""
    path = (*path, dtype)
    while len(path) > 1 and path[-1] == path[-2]:
        path = path[:-1]
    while len(path) > 2 and path[-2] in _WIDER.get(path[-3], ()):
        path = (*path[:-2], path[-1])
        if path[-1] == path[-2]:
            path = path[:-1]
    return path


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    """The same geometry without data."""
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _runs(numbers: list[int]) -> list[tuple[int, int, int]]:
    """(first, step, how many) of rising stretches with one step."""
    runs: list[tuple[int, int, int]] = []
    for number in numbers:
        if runs:
            first, step, n = runs[-1]
            if n == 1 and number > first:
                runs[-1] = (first, number - first, 2)
                continue
            if number == first + step * n and n > 1:
                runs[-1] = (first, step, n + 1)
                continue
        runs.append((number, 1, 1))
    return runs


class Follower(TorchDispatchMode):
    """While it is on, tensor operations on stand-ins and parameters are followed."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[int, Block] = {}
        self.at = ""  # the tensor that the loader was given last
        self._longest = 0  # dimension of a source: what an index may be
        # Storages (kept, as above) that were computed of the engine's own numbers alone.
        self._computed: dict[int, tuple[Any, list[Block]]] = {}
        self.done = Done()
        self._ops: dict[Any, Callable[..., Any]] = {
            aten.copy_.default: self._copy_, aten.fill_.Scalar: self._fill,
            aten.fill_.Tensor: self._fill, aten.zero_.default: self._fill,
            aten.clone.default: self._same, aten._to_copy.default: self._same,
            aten.lift_fresh_copy.default: self._same, aten._pin_memory.default: self._pinned,
            aten.cat.default: self._cat, aten.stack.default: self._stack,
            aten.index_select.default: self._index_select, aten.index.Tensor: self._index,
            aten.index_put_.default: self._index_put, aten.index_copy_.default: self._index_copy,
            aten.constant_pad_nd.default: self._pad, aten.repeat.default: self._repeat,
            **{op: self._made for op in (
                aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default,
                aten.zeros_like.default, aten.new_zeros.default, aten.ones_like.default,
                aten.new_ones.default, aten.full_like.default, aten.new_full.default)},
        }

    # Storages

    def stand_in(self, source: Source) -> torch.Tensor:
        """A tensor without data that is known as that source."""
        tensor = torch.empty(source.shape, dtype=source.dtype, device="meta")
        block = Block(tensor.untyped_storage(), source.dtype)
        if tensor.numel():
            whole = _affine.region(0, 0, (tensor.numel(),), (1,), (1,))
            block.writes.append(Write(whole, source, (source.dtype,)))
        block.sources.add(source.name)
        self._longest = max(self._longest, *source.shape, 0)
        self.blocks[key_of(tensor)] = block
        return tensor

    def parameter(self, tensor: torch.Tensor) -> Block:
        """Notes that the tensor is a parameter: it is never written to."""
        block = self.block(tensor)
        block.parameter = True
        return block

    def block(self, tensor: torch.Tensor) -> Block:
        """The tensor's storage, which is known from now on."""
        block = self.blocks.get(key_of(tensor))
        if block is None:
            block = Block(tensor.untyped_storage(), tensor.dtype)
            self.blocks[key_of(tensor)] = block
        return block

    def tracked(self, tensor: torch.Tensor) -> bool:
        """True if it may hold something of a source."""
        block = self.blocks.get(key_of(tensor))
        return block is not None and block.tracked

    def kept(self) -> list[Block]:
        """What holds something of a source, is no parameter, and is kept by somebody all the same.

        To be called when the loader is done and its result is gone.
        """
        uses = getattr(torch._C, "_storage_Use_Count", lambda _: 0)

        def look() -> list[Block]:
            return [block for block in self.blocks.values() if block.tracked and
                    not block.parameter and uses(block.storage._cdata) > 1]
        if look():
            gc.collect()  # what the loader has dropped in circles
        return look()

    # What the loader looks at

    def _engines(self, tensor: torch.Tensor) -> list[Block]:
        """The engine's storages that its numbers come from."""
        block = self.blocks.get(key_of(tensor))
        if block is not None:
            return [block] if block.parameter else []
        return self._computed.get(key_of(tensor), (None, []))[1]

    def look(self, tensor: torch.Tensor) -> None:
        """The loader looks at its numbers."""
        for block in self._engines(tensor):
            block.read = True

    def only_looked_at(self, tensor: torch.Tensor) -> bool:
        """True of what tells the loader where things go, such as an expert map: indices that it has
        looked at and not written to. It leaves them as they are with other weights too."""
        block = self.blocks.get(key_of(tensor))
        if block is None or not block.read or block.changed or block.tracked:
            return False
        # Packed weights are integers too: of other dtypes, or with larger numbers.
        return tensor.dtype in (torch.int32, torch.int64) and \
            bool(((tensor >= -1) & (tensor <= max(self._longest, tensor.numel()))).all())

    def _untracked(self, func: Any, tensors: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        """An operation that is done, as nothing of a source is in it."""
        out = self.done.do(func, args, kwargs)
        blocks = {id(block): block for t in tensors if not t.is_floating_point()
                  for block in self._engines(t)}
        if not blocks or func._schema.is_mutable or self._ops.get(func) == self._made:
            return out
        for one in tree_leaves(out):
            if not isinstance(one, torch.Tensor):
                for block in blocks.values():
                    block.read = True
            elif key_of(one) not in self.blocks:
                self._computed[key_of(one)] = (one.untyped_storage(), list(blocks.values()))
        return out

    # Copies

    def _taint(self, tensor: torch.Tensor, why: str, origins: Iterable[Block] = ()) -> None:
        block = self.block(tensor)
        block.inherit(origins)
        block.taint = block.taint or why
        block.writes.clear()

    def _punch(self, block: Block, hole: Region) -> None:
        """The elements of the hole are about to be something else."""
        kept = []
        for write in block.writes:
            met = sum(one.count for one in _affine.meet(hole, write.region))
            if met and met != write.region.count:
                raise Inexpressible(f"tensor {write.source.name} is overwritten in part")
            if not met:
                kept.append(write)
        block.writes = kept

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Each element of target becomes that of source; shapes are broadcast."""
        signed = any(t.is_neg() or t.is_conj() for t in (target, source))
        source = source.expand(target.shape)
        block = self.block(target)
        origin = self.blocks.get(key_of(source))
        if origin is not None:
            block.inherit([origin])
        elif source.is_meta:
            block.unseen = True
        if target.numel() == 0 or block.taint:
            return
        if origin is None and source.is_meta:
            self._taint(target, f"where its values come from was not seen, near tensor {self.at}")
            return
        if origin is not None and origin.taint:
            self._taint(target, origin.taint)
            return
        if signed and origin is not None and origin.tracked:
            self._taint(target, "it is copied through a view that negates or conjugates, near "
                        f"tensor {self.at}")
            return
        try:
            self._copy(block, target, origin, source)
        except Inexpressible as reason:
            self._taint(target, f"{reason}, near tensor {self.at}")

    def _copy(self, block: Block, target: torch.Tensor, origin: Block | None,
              source: torch.Tensor) -> None:
        if target.dtype != block.dtype or (origin is not None and origin.tracked
                                           and source.dtype != origin.dtype):
            raise Inexpressible("its bits are looked at as another dtype")
        shape = tuple(target.shape)
        begin, at = int(source.storage_offset()), int(target.storage_offset())
        hole = _affine.region(at, 0, shape, target.stride(), (0,) * len(shape))
        fresh: list[Write] = []
        if origin is not None:
            for part in _affine.without_repeats(_affine.region(
                    begin, at, shape, source.stride(), target.stride())):
                for write in origin.writes:
                    fresh += [Write(one.swapped(), write.source, _through(write.path, block.dtype))
                              for one in _affine.meet(part, write.region)]
        self._punch(block, hole)
        block.writes += fresh

    # Operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        known = [t for t in tensors if key_of(t) in self.blocks]
        mutable = func._schema.is_mutable
        if not known or not (mutable or any(map(self.tracked, known))):
            # Of the loader's own, or of parameters that nothing was loaded into yet.
            return self._untracked(func, tensors, args, kwargs)
        for one in changed_by(func, args, kwargs):
            self.block(one).changed = True
        handler = self._ops.get(func)
        if handler is not None:
            return handler(func, *args, **kwargs)
        return self._other(func, *args, **kwargs)

    def _other(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """What is not followed: views are as they are, all else taints."""
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        name = func._schema.name.removeprefix("aten::")
        tracked = [self.blocks[key_of(t)] for t in tensors if self.tracked(t)]
        why = next((b.taint for b in tracked if b.taint), "") or \
            f"the loader computes it ({name}, near tensor {self.at})"
        if func._schema.is_mutable:
            return self._mutation(func, args, kwargs, why, tracked)
        if func in (aten._local_scalar_dense.default, aten.equal.default,
                    aten.is_nonzero.default) or torch.Tag.data_dependent_output in func.tags:
            raise NotShareable(errno.ENOTSUP, f"tensor {self.at}: the loader looks at its values "
                               f"({name}); a layout cannot depend on values")
        if any(a.alias_info is not None for a in func._schema.returns):
            return func(*args, **kwargs)
        out = func(*tree_map_only(torch.Tensor, _meta, args),
                   **self._on_meta(tree_map_only(torch.Tensor, _meta, kwargs)))
        keys = {key_of(t) for t in tensors}
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and key_of(one) not in keys:
                self._taint(one, why, tracked)
        return out

    def _mutation(self, func: Any, args: Any, kwargs: Any, why: str,
                  tracked: list[Block]) -> Any:
        """Nothing is done to parameters or stand-ins; what would be changed is tainted."""
        changed = changed_by(func, args, kwargs)
        for one in changed:
            if tracked:
                self._taint(one, why, tracked)
        if not tracked and not any(self.block(t).parameter for t in changed):
            return self.done.do(func, args, kwargs)
        if len(func._schema.returns) != 1:
            raise NotShareable(errno.ENOTSUP, f"tensor {self.at}: {func} is not followed")
        return changed[0]

    @staticmethod
    def _on_meta(kwargs: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in kwargs.items() if k not in ("pin_memory", "non_blocking")}
        if kept.get("device") is not None:
            kept["device"] = torch.device("meta")
        return kept

    def _copy_(self, func: Any, target: torch.Tensor, source: torch.Tensor,
               non_blocking: bool = False) -> torch.Tensor:
        if not self.tracked(source) and not self.block(target).parameter \
                and not self.tracked(target):
            del self.blocks[key_of(target)]
            return self.done.do(func, (target, source, non_blocking), {})
        self.copy(target, source)
        return target

    def _fill(self, func: Any, target: torch.Tensor, *value: Any) -> torch.Tensor:
        if value and isinstance(value[0], torch.Tensor):
            return self._copy_(aten.copy_.default, target, value[0])
        block = self.block(target)
        if not block.parameter and not block.tracked:
            return self.done.do(func, (target, *value), {})
        shape = tuple(target.shape)
        try:
            if target.numel():
                self._punch(block, _affine.region(int(target.storage_offset()), 0, shape,
                                                  target.stride(), (0,) * len(shape)))
        except Inexpressible as reason:
            self._taint(target, f"{reason}, near tensor {self.at}")
        return target

    def _same(self, func: Any, tensor: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out = func(_meta(tensor), **self._on_meta(kwargs))
        self.copy(out, tensor)
        return out

    def _made(self, func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Memory that holds nothing of a tensor."""
        out: torch.Tensor = func(_meta(tensor), *args, **self._on_meta(kwargs))
        self.block(out)
        return out

    def _pinned(self, func: Any, tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self._same(aten.clone.default, tensor)

    def _cat(self, func: Any, tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        out = func([_meta(t) for t in tensors], dim)
        at = 0
        for tensor in tensors:
            if tensor.dim() == out.dim():
                self.copy(out.narrow(dim, at, tensor.shape[dim]), tensor)
                at += tensor.shape[dim]
        return out

    def _stack(self, func: Any, tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        out = func([_meta(t) for t in tensors], dim)
        for i, tensor in enumerate(tensors):
            self.copy(out.select(dim, i), tensor)
        return out

    def _pad(self, func: Any, tensor: torch.Tensor, pad: list[int], value: Any = 0) -> torch.Tensor:
        out = func(_meta(tensor), pad, value)
        if any(n < 0 for n in pad):
            self._taint(out, "a negative padding", [self.block(tensor)])
            return out
        inner = out
        for k in range(len(pad) // 2):
            dim = tensor.dim() - 1 - k
            inner = inner.narrow(dim, pad[2 * k], tensor.shape[dim])
        self.block(out)
        self.copy(inner, tensor)
        return out

    def _repeat(self, func: Any, tensor: torch.Tensor, repeats: list[int]) -> torch.Tensor:
        out = func(_meta(tensor), repeats)
        shape = (1,) * (len(repeats) - tensor.dim()) + tuple(tensor.shape)
        split = [n for pair in zip(repeats, shape) for n in pair]
        self.copy(out.view(split), tensor.reshape([n for s in shape for n in (1, s)]))
        return out

    # Indices are data of the loader's own: read them. What torch would refuse is refused here too,
    # as the stand-ins' own operations do not look at them.

    def _numbers(self, index: torch.Tensor, length: int, masks: bool = True) -> list[int] | None:
        """Places in a dimension of that length. masks: as t[index] has it, not index_select()."""
        if index.is_meta or self.tracked(index) or index.dim() != 1:
            return None
        self.look(index)
        numbers = list(index.tolist())
        if masks and index.dtype in (torch.bool, torch.uint8):
            if len(numbers) != length:
                raise IndexError(f"a mask of {len(numbers)} for a dimension of {length}")
            return [i for i, on in enumerate(numbers) if on]
        if index.dtype not in (torch.int64, torch.int32):
            raise IndexError(f"an index of dtype {index.dtype}")
        least = -length if masks else 0
        wrong = next((i for i in numbers if not least <= i < length), None)
        if wrong is not None:
            raise IndexError(f"index {wrong} in a dimension of {length}")
        return [i % length for i in numbers]

    def _gather(self, out: torch.Tensor, tensor: torch.Tensor, dim: int,
                numbers: list[int], put: bool = False) -> None:
        at = 0
        for first, step, n in _runs(numbers):
            picked = tensor.narrow(dim, first, step * (n - 1) + 1)
            picked = picked[(slice(None),) * (dim % tensor.dim()) + (slice(None, None, step),)]
            line = out.narrow(dim, at, n)
            if put:
                self.copy(picked, line)
            else:
                self.copy(line, picked)
            at += n

    def _index_select(self, func: Any, tensor: torch.Tensor, dim: int,
                      index: torch.Tensor) -> Any:
        length = tensor.shape[dim] if tensor.dim() else 1
        numbers = self._numbers(index.reshape(-1), length, masks=False)
        if numbers is None:
            return self._other(func, tensor, dim, index)
        out = func(_meta(tensor), dim, torch.empty_like(index, device="meta"))
        self._gather(out, tensor, dim, numbers)
        return out

    @staticmethod
    def _one_index(indices: list[Any]) -> int | None:
        places = [i for i, index in enumerate(indices) if index is not None]
        return places[0] if len(places) == 1 else None

    def _index(self, func: Any, tensor: torch.Tensor, indices: list[Any]) -> Any:
        dim = self._one_index(indices)
        numbers = None if dim is None else self._numbers(indices[dim], tensor.shape[dim])
        if dim is None or numbers is None:
            return self._other(func, tensor, indices)
        shape = list(tensor.shape)
        shape[dim] = len(numbers)
        out = torch.empty(shape, dtype=tensor.dtype, device="meta")
        self._gather(out, tensor, dim, numbers)
        return out

    def _index_put(self, func: Any, tensor: torch.Tensor, indices: list[Any],
                   values: torch.Tensor, accumulate: bool = False) -> Any:
        dim = self._one_index(indices)
        numbers = None
        if dim is not None and not accumulate:
            numbers = self._numbers(indices[dim], tensor.shape[dim])
        if dim is None or numbers is None:
            return self._other(func, tensor, indices, values, accumulate)
        shape = list(tensor.shape)
        shape[dim] = len(numbers)
        self._gather(values.expand(shape), tensor, dim, numbers, put=True)
        return tensor

    def _index_copy(self, func: Any, tensor: torch.Tensor, dim: int, index: torch.Tensor,
                    source: torch.Tensor) -> Any:
        length = tensor.shape[dim] if tensor.dim() else 1
        numbers = self._numbers(index.reshape(-1), length, masks=False)
        if numbers is None:
            return self._other(func, tensor, dim, index, source)
        self._gather(source, tensor, dim, numbers, put=True)
        return tensor
