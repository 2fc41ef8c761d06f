"""Publishing in parts: tensors that are made one after another, in an area that holds a part."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import math
import sys
from collections.abc import Iterator
from typing import Any

from ._errors import Error, InvalidArgument, NotCommitted, NotShareable
from ._host import host_empty
from ._lib import MAX_DIMS, lib
from ._tensors import DTYPE_NAMES, SIZES, describe, dtype_number, is_torch, local_box
from ._trainer import Publishing, Report, Trainer, stream_address, strip_prefixes

MAX_PARTS = 64  # a part is a subset, and a model has at most so many
ALIGN = 256  # what lies so behind one another goes over the wire from where it is
DEFAULT_BYTES = 1 << 30
CANCELED = errno.ECANCELED
SETTLE_S = 5.0  # beyond its own deadline, for a call that was left behind


@dataclasses.dataclass
class Slot:
    """A declared tensor: what of it this rank makes, and where."""

    name: str
    dtype: int
    whole: tuple[int, ...]  # the tensor's shape …
    start: tuple[int, ...]  # … and the box of it that is ours; all of it, or nothing (extent 0)
    extent: tuple[int, ...]
    part: int = 0
    last: bool = False  # of ours in its part
    view: Any = None

    @property
    def here(self) -> int:
        """Bytes that are ours."""
        return math.prod(self.extent) * SIZES[self.dtype]


def _slot(name: str, value: Any) -> tuple[Slot, Any]:
    """What is declared by a tensor (its values are not looked at) or a tuple; and its device."""
    device = None
    if isinstance(value, tuple):
        if len(value) not in (2, 4):
            raise InvalidArgument(errno.EINVAL, f"tensor {name}: (dtype, shape) or (dtype, shape, "
                                  f"start, extent) is wanted, not {value}")
        dtype, whole = value[0], tuple(value[1])
        start, extent = map(tuple, value[2:]) if len(value) == 4 else ((0,) * len(whole), whole)
    else:
        local = local_box(name, value)
        mine = local[0] if local else value
        _check_array("", name, mine)
        dtype, extent = mine.dtype, tuple(mine.shape)
        _, start, whole = local or (mine, (0,) * len(extent), extent)
        device = mine.device if is_torch(mine) and not mine.is_meta else None
    if len(whole) > MAX_DIMS or not len(whole) == len(start) == len(extent):
        raise InvalidArgument(errno.EINVAL, f"tensor {name}: a box {extent} at {start} of shape "
                              f"{whole} (at most {MAX_DIMS} dimensions)")
    return Slot(name, _dtype("", name, dtype), whole, start, extent), device


def _dtype(call: str, name: str, dtype: Any) -> int:
    try:
        return dtype_number(dtype)
    except NotShareable as reason:
        raise NotShareable(reason.code, f"{call}tensor {name}: {reason.sentence}") from None


def _check_array(call: str, name: str, value: Any) -> None:
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise InvalidArgument(errno.EINVAL, f"{call}tensor {name}: a {type(value).__name__} is "
                              "neither a torch tensor nor an array")


def _aligned(length: int) -> int:
    return -(-length // ALIGN) * ALIGN


def cut(sizes: list[int], limit: int) -> list[int]:
    """The part of each tensor: in their order, those of a part together at most `limit` or one."""
    part = taken = 0
    parts = []
    for size in sizes:
        if taken and taken + size > limit:
            part, taken = part + 1, 0
        taken += size
        parts.append(part)
    return parts


def least(sizes: list[int], count: int) -> int:
    """The smallest limit with which cut() makes at most `count` parts."""
    low, high = max(max(sizes), -(-sum(sizes) // count)), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if cut(sizes, middle)[-1] < count:
            high = middle
        else:
            low = middle + 1
    return low


def _cut_into(slots: list[Slot], buffer_bytes: int | None) -> None:
    """Chooses each slot's part. All ranks must cut alike, so whole tensors are counted."""
    sizes = [_aligned(math.prod(slot.whole) * SIZES[slot.dtype]) for slot in slots]
    if not any(sizes):
        raise InvalidArgument(errno.EINVAL, "declare_parts: there is no tensor with elements")
    needed = least(sizes, MAX_PARTS)
    if buffer_bytes is not None and buffer_bytes < needed:
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        why = (f"tensor {slots[largest].name} alone needs that"
               if needed == sizes[largest] else f"there are at most {MAX_PARTS} parts")
        raise InvalidArgument(errno.EINVAL, f"declare_parts: buffer_bytes={buffer_bytes} is too "
                              f"little, it takes at least {needed}: {why}")
    limit = max(DEFAULT_BYTES, needed) if buffer_bytes is None else buffer_bytes
    # No more memory than so many parts need.
    limit = least(sizes, cut(sizes, limit)[-1] + 1)
    for slot, part in zip(slots, cut(sizes, limit)):
        slot.part = part


def _make_area(length: int, device: Any) -> Any:
    """Bytes that a broker can map: of that device, else of the host."""
    torch = sys.modules.get("torch")
    if device is not None and str(device) != "cpu":
        if torch is None:
            raise InvalidArgument(errno.EINVAL, f"declare_parts: memory of {device} needs torch")
        return torch.empty(length, dtype=torch.uint8, device=device)
    return host_empty(length, "uint8" if torch is None else torch.uint8)


def _view(area: Any, at: int, slot: Slot) -> Any:
    """The slot's place in the area."""
    flat, name = area[at:at + slot.here], DTYPE_NAMES[slot.dtype]
    if is_torch(area):
        return flat.view(getattr(sys.modules["torch"], name)).view(slot.extent)
    try:
        return flat.view(name).reshape(slot.extent)
    except TypeError as reason:
        raise NotShareable(errno.ENOTSUP, f"tensor {slot.name}: {name} needs torch") from reason


class Parts:
    """What Trainer.declare_parts() has declared, and the publishing of it."""

    def __init__(self, trainer: Trainer, tensors: Any, buffer_bytes: int | None,
                 device: Any) -> None:
        self._trainer = trainer
        self._handle = trainer._handle
        self._slots: list[Slot] = []
        self._index: dict[str, int] = {}
        self._subsets: list[int] = []
        self._running: Publishing  # the update that is open, or was
        self._put = 0  # parts that were put in this update
        self._lent = False
        self._patience = 0.0
        self._unended = ""  # why a version is to be given up that could not be yet
        self._stream: Any = None  # that of the last copy, also of an update that failed
        if hasattr(tensors, "state_dict"):
            tensors = tensors.state_dict()
        for given, value in tensors.items() if hasattr(tensors, "items") else tensors:
            slot, found = _slot(strip_prefixes(given), value)
            del value
            if slot.name in self._index:
                raise InvalidArgument(errno.EEXIST, f"tensor {slot.name} is declared twice")
            self._index[slot.name] = len(self._slots)
            self._slots.append(slot)
            device = found if device is None else device
        if not self._slots:
            raise InvalidArgument(errno.EINVAL, "declare_parts: there is no tensor")
        _cut_into(self._slots, buffer_bytes)
        self.count = self._slots[-1].part + 1
        self.area_bytes = self._declare(device)

    def _declare(self, device: Any) -> int:
        """Each part's tensors lie behind one another, from the beginning of the area on."""
        places, at, part = [], 0, 0
        for slot in self._slots:
            at, part = (at if slot.part == part else 0), slot.part
            places.append(at)
            at += _aligned(slot.here)
        length = max(at + _aligned(slot.here) for at, slot in zip(places, self._slots))
        area = _make_area(length, device) if length else None
        for at, slot in zip(places, self._slots):
            if slot.here:
                slot.view = _view(area, at, slot)
                with self._handle.lock:
                    self._trainer._declare(slot.name, slot.view, describe(slot.name, slot.view),
                                           slot.whole, slot.start)
        for slot in {slot.part: slot for slot in self._slots if slot.here}.values():
            slot.last = True
        return length

    def _prepare(self) -> None:
        """Once; waits for the other ranks. After a timeout, or Ctrl-C, it goes on where it was."""
        self._trainer.seal()
        while len(self._subsets) < self.count:
            names = [slot.name.encode() for slot in self._slots
                     if slot.part == len(self._subsets) and slot.here]
            array = (ctypes.c_char_p * max(1, len(names)))(*names)
            said = ctypes.c_uint32()
            self._subsets.append(self._handle.long(
                lib.strew_trainer_subset, array, len(names), ctypes.byref(said),
                once=("part", len(self._subsets)), out=said))

    def publish(self, source: Iterator[tuple[str, Any]], version: int, flags: int,
                deadline_ms: int) -> Publishing:
        """Makes and puts all parts of a version; the report is to come. A failure ends it."""
        self._prepare()
        mine = True  # also if Ctrl-C comes between opening and knowing it
        try:
            try:
                self._handle.call(lib.strew_trainer_open_parts, version, flags, deadline_ms)
            except Error:
                mine = False
                raise
            self._running = Publishing(self._trainer, version, begun=True)
            self._put, self._lent = 0, False
            self._patience = deadline_ms / 1000 + self._trainer._timeout
            self._put_all(source)
            self._handle.long(lib.strew_trainer_close_parts)
            self._trainer._last = self._running
        except BaseException as failure:
            if not mine:
                raise
            ended = self._end(f"{type(failure).__name__}: {failure}")
            if isinstance(failure, Error) and failure.code == CANCELED and ended is not None:
                self._running._told = True
                raise NotCommitted(ended, ended.text) from None
            raise
        return self._running

    def end_left(self) -> None:
        """Ends a version that was to be given up, if that could not be done in time."""
        if self._unended:
            self._end(self._unended)

    def _put_all(self, source: Iterator[tuple[str, Any]]) -> None:
        due = 0
        for given, value in source:
            due = self._find(strip_prefixes(given), due)
            slot = self._slots[due]
            due += 1
            # Also where nothing is ours: no rank gets behind a part that it has not put, so that
            # none waits for another that waits for it in a collective of the source's.
            self._put_up_to(slot.part)
            if slot.view is not None:
                self._copy(slot, self._checked(slot, value))
            del value  # before the next one is made
            if slot.last:
                self._put_one()  # the broker reads it while the next one is made
        missing = [slot.name for slot in self._slots[due:] if slot.view is not None]
        if missing:
            raise InvalidArgument(errno.EINVAL, f"publish: source has ended without tensor "
                                  f"{missing[0]} ({len(missing)} in all)")
        self._put_up_to(self.count)
        self._wait_released()

    def _find(self, name: str, due: int) -> int:
        """Where it is among the slots: the next one, or behind some of which nothing is ours."""
        at = due
        while at < len(self._slots) and self._slots[at].name != name:
            if self._slots[at].view is not None:
                break
            at += 1
        if at < len(self._slots) and self._slots[at].name == name:
            return at
        known = self._index.get(name)
        if known is None:
            why = "was not declared"
        elif known < due:
            why = "comes twice"
        else:
            why = (f"comes where {self._slots[at].name} is due: they come in the order in which "
                   "they were declared")
        raise InvalidArgument(errno.EINVAL, f"publish: tensor {name} {why}")

    def _checked(self, slot: Slot, value: Any) -> Any:
        """The value, as what can be copied into the slot."""
        local = local_box(slot.name, value)
        if local:
            value, start, whole = local
            if (start, whole) != (slot.start, slot.whole):
                raise InvalidArgument(errno.EINVAL, f"publish: tensor {slot.name}: a DTensor's "
                                      f"shard at {start} of {whole}, declared was {slot.extent} at "
                                      f"{slot.start} of {slot.whole}; full_tensor() makes it whole")
        _check_array("publish: ", slot.name, value)
        view = slot.view
        if value.dtype != view.dtype and \
                _dtype("publish: ", slot.name, value.dtype) != slot.dtype:
            raise InvalidArgument(errno.EINVAL, f"publish: tensor {slot.name}: {value.dtype}, "
                                  f"declared was {DTYPE_NAMES[slot.dtype]}")
        if value.shape != view.shape and tuple(value.shape) != slot.extent:
            raise InvalidArgument(errno.EINVAL, f"publish: tensor {slot.name}: shape "
                                  f"{tuple(value.shape)}, declared was {slot.extent}")
        return value

    def _copy(self, slot: Slot, value: Any) -> None:
        self._wait_released()
        view = slot.view
        if not is_torch(view):
            view[...] = value
            return
        torch = sys.modules["torch"]
        if view.is_cuda:
            # A source may change streams between two of its tensors.
            stream = torch.cuda.current_stream(view.device)
            if self._stream is not None and stream != self._stream:
                stream.wait_stream(self._stream)
            self._stream = stream
        view.copy_(value.detach() if is_torch(value) else torch.as_tensor(value))

    def _put_up_to(self, part: int) -> None:
        while self._put < part:
            self._put_one()

    def _put_one(self) -> None:
        self._wait_released()
        at = None if self._stream is None else stream_address(self._stream, -1)
        self._handle.call(lib.strew_trainer_put, self._subsets[self._put], at)
        self._put += 1
        self._lent = True

    def _wait_released(self) -> None:
        if self._lent:
            self._handle.wait(lib.strew_trainer_wait_released, self._patience)
            self._lent = False

    def _end(self, why: str) -> Report | None:
        """Ends what is open, and waits for that; says how it has ended.

        A call that Ctrl-C has left behind comes first. Where it does not come back in time the
        version is open still, and the next publish() begins with its end.
        """
        self._unended = why
        try:
            self._handle.settle(self._trainer._timeout + SETTLE_S)
            self._unended = ""
            self._handle.long(lib.strew_trainer_cancel_parts,
                              " ".join(why.split()).encode(errors="replace"))
        except Error:
            if self._unended:
                return None
        with contextlib.suppress(Error):
            self._handle.wait(lib.strew_trainer_wait_released, self._trainer._timeout)
        self._trainer._last = self._running
        return self._running._give_up(self._trainer._timeout)
