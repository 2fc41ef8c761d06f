"""Tensors that must stay where they were between two updates, and a look whether they do."""

from __future__ import annotations

import ctypes
import errno
import operator
import sys
from typing import Any

from ._addresses import Addresses
from ._errors import Error
from ._tensors import address, cuda_driver, is_torch, plain_types, stream_of

MANY = 1 << 30
_LOOKED_AT = 128  # so many tensors are asked for their holders each time, in turn
_local_of = operator.attrgetter("_local_tensor")


class _Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


def _references_of(held: Any) -> int:
    return sys.getrefcount(held)


# What sys.getrefcount() says, as it is asked below, of what is in three lists of ours and nowhere
# else, and of what one other object has as an attribute. It depends on the interpreter.
_asked = [object()]
_REFERENCES = [count for _, count in zip(_asked, map(sys.getrefcount, _asked))][0] + 2
_holder = _Holder(object())
_REFERENCES_OF_HELD = _references_of(_holder.held)


class Watch:
    """Tensors that must stay where they were, and a look whether they do.

    synchronize() waits for the streams that objects of other libraries are made on.

    Of each its address is asked for, of a DTensor that of its shard. A detached tensor (of a
    state_dict()) does not follow when its module is given other memory: it is found by its
    storage, which nobody else holds then. That is asked of those alone whose storage
    somebody else held when they were added, or that a module owned; _LOOKED_AT of them at a time.
    Where several tensors that were added lie in one storage, each is somebody else to the others.
    """

    def __init__(self) -> None:
        self._names: list[str] = []  # of those in _plain
        self._plain = Addresses()
        self._shard_names: list[str] = []
        self._shards: list[Any] = []  # DTensors
        self._shard_addresses: list[int] = []
        self._others: list[tuple[str, Any, int]] = []
        self._shared: list[Any] = []  # of both kinds of torch's; no tuples, which cost collections
        self._shared_names: list[str] = []
        self._shared_places: list[int] = []  # their storages, which the caller keeps
        self._shared_plain: list[bool] = []  # those in _plain
        self._cuda_others: list[tuple[str, Any]] = []
        self._ids: set[int] = set()  # the id() of all of torch's
        self._shared_ids: set[int] = set()  # … and of those in _shared
        self._turn = 0
        self._holders: Any = None  # tells how many hold a storage

    def add(self, name: str, value: Any, data: int, keep: Any, owned: bool = False) -> None:
        """value: a tensor, or the DTensor of which the shard is meant; data, keep: see Described.

        owned: a module that the caller keeps has it, and has it no more only if it was replaced.
        """
        plain = type(value) in plain_types
        if not plain:
            if not is_torch(value):
                self._others.append((name, value, data))
                if hasattr(value, "__cuda_array_interface__"):
                    self._cuda_others.append((name, value))
                return
            plain = not hasattr(value, "_local_tensor")
        place, key = keep._cdata, id(value)
        if key in self._ids:  # the same tensor by another name
            if owned and key not in self._shared_ids:
                self._share(name, value, place, plain)
            return
        self._ids.add(key)
        if plain:
            self._names.append(name)
            self._plain.add(value, data)
        else:
            self._shard_names.append(name)
            self._shards.append(value)
            self._shard_addresses.append(data)
        holders = self._holders
        if holders is None:
            holders = self._holders = getattr(sys.modules["torch"]._C, "_storage_Use_Count",
                                              lambda _: MANY)
        if owned or holders(place) > 2:  # one tensor and the storage's own Python object make two
            self._share(name, value, place, plain)

    def _share(self, name: str, value: Any, place: int, plain: bool) -> None:
        self._shared.append(value)
        self._shared_ids.add(id(value))
        self._shared_names.append(name)
        self._shared_places.append(place)
        self._shared_plain.append(plain)

    def moved(self) -> tuple[str, str, int] | None:
        """(name, why, how many) of what does not lie where it did; None if all does."""
        moved, held, added = self._plain.moved()
        names = [self._names[i] for i in moved]
        if self._shards:
            now = map(sys.modules["torch"].Tensor.data_ptr, map(_local_of, self._shards))
            names += [n for n, a, b in zip(self._shard_names, now, self._shard_addresses) if a != b]
        if names:
            return names[0], "has moved since it was declared", len(names)
        names = self._abandoned(*added)
        del held  # not before: what they add was taken into account
        if names:
            return names[0], ("lies in memory that nobody else holds any more, where others "
                              "did when it was declared"), len(names)
        for name, value, before in self._others:
            if address(value) != before:
                return name, "has moved since it was declared", 1
        return None

    def release(self) -> None:
        """What it holds of torch besides the tensors themselves, until the next look."""
        self._plain.release()

    def synchronize(self) -> None:
        """Waits for what their makers have queued: the stream in their __cuda_array_interface__."""
        streams: dict[int, str] = {}
        for name, value in self._cuda_others:
            stream = stream_of(name, value.__cuda_array_interface__)
            if stream is not None:
                streams.setdefault(stream, name)
        for stream, name in streams.items():
            driver = cuda_driver()
            code = driver.cuStreamSynchronize(ctypes.c_void_p(stream)) if driver else 0
            if code:
                raise Error(errno.EIO, f"tensor {name}: its stream {stream:#x} could not be waited "
                            f"for (CUDA error {code})")

    def _abandoned(self, references: int, uses: int) -> list[str]:
        """Names of the tensors, among those whose turn it is, that are ours alone.

        references, uses: what our own handles add to a tensor in _plain.
        """
        step = -(-len(self._shared) // _LOOKED_AT) or 1
        turn = slice(self._turn % step, None, step)
        self._turn += 1
        holders, asked = self._holders, self._shared[turn]
        alone = [(name, tensor, plain) for tensor, count, name, place, plain
                 in zip(asked, map(sys.getrefcount, asked), self._shared_names[turn],
                        self._shared_places[turn], self._shared_plain[turn])
                 if count <= _REFERENCES + references * plain and holders(place) <= 2]
        return [name for name, tensor, plain in alone if self._is_ours(tensor, uses * plain)]

    def _is_ours(self, tensor: Any, uses: int) -> bool:
        """Of one that no other Python code holds, and whose storage no other tensor has.

        uses: owners that are ours and C++'s; none of a shard.
        """
        if tensor._use_count() > 1 + uses:
            return False
        local = tensor if uses or not hasattr(tensor, "_local_tensor") else tensor._local_tensor
        storage = local.untyped_storage()
        # What torch has not allocated, or shares with another process, others may write to.
        if not storage.resizable() or (not local.is_cuda and storage.is_shared()):
            return False
        if local is tensor:
            return True
        del local
        # A shard may be kept without its DTensor.
        return _references_of(tensor._local_tensor) <= _REFERENCES_OF_HELD and \
            tensor._local_tensor._use_count() <= 1
