"""The trainer's face: declare tensors once, publish versions of them."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import errno
import itertools
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import _lib
from ._errors import (
    BrokerLost,
    Busy,
    Error,
    InvalidArgument,
    Moved,
    NotCommitted,
    NotShareable,
    Timeout,
)
from ._lib import MAX_DIMS, Closing, Handle, check, lib, to_ms, to_name, to_u32
from ._tensors import Described, OneGpu, describe, kinds, local_box, plain_types
from ._watch import Watch

if TYPE_CHECKING:
    from ._parts import Parts

UPDATE_MAX_MS = 3_600_000  # LIMIT_UPDATE_MAX_MS: an update's deadline at most
PUBLISH_PARTIAL = 1
PUBLISH_SCOPE_ALL = 2
PUBLISH_HASH = 4
OUTCOMES = ("none", "committed", "sat out", "aborted", "dirty", "lost")
STATES = ("", "FORMING", "CURRENT", "PENDING", "IN_DOUBT", "DIRTY", "STALE", "LOST")
PREFIXES = ("module.", "_orig_mod.", "_checkpoint_wrapped_module.")

_PAD = [(0,) * (MAX_DIMS - n) for n in range(MAX_DIMS + 1)]
_BOX = struct.Struct("@ii24QP")  # struct strew_tensor behind its name …
_WHOLE = struct.Struct("@ii6Q96x6QP")  # … that of a whole one: no start, no extent …
_DENSE = [struct.Struct(f"@ii{n}Q{8 * (4 * MAX_DIMS - n)}xP").pack_into
          for n in range(MAX_DIMS + 1)]  # … and of n dimensions without gaps: no strides either
assert _BOX.size == _WHOLE.size == ctypes.sizeof(_lib.Tensor) - ctypes.sizeof(ctypes.c_char_p)

_RANK_LOST = re.compile(r"trainer rank \d+(?:(?! gave it up).)* was lost")  # as the lead says it

Rename = Callable[[str], "str | None"] | Mapping[str, "str | None"]


def strip_prefixes(name: str) -> str:
    """The name without what wrappers (DDP, torch.compile, activation checkpoints) put into it."""
    if "module" not in name and "_orig_mod" not in name:
        return name
    for prefix in PREFIXES[1:]:
        name = name.replace(prefix, "")
    while name.startswith(PREFIXES[0]):
        name = name[len(PREFIXES[0]):]
    return name


def launcher_rank() -> tuple[int, int]:
    """(rank, size) as torchrun, srun or MPI say; (0, 1) where nobody does.

    A batch script of Slurm is rank 0 of the job's SLURM_NTASKS, though it runs alone: only a step,
    which srun starts, has SLURM_STEP_NUM_TASKS.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
                       ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def stream_address(stream: Any, cuda: int) -> int | None:
    """Of a stream (torch, CuPy, integer); None: torch's current one of that GPU (-1: none)."""
    if stream is None:
        torch = sys.modules.get("torch")
        if cuda < 0 or torch is None:
            return None
        stream = torch.cuda.current_stream(cuda)
    return int(getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))) or None


@dataclasses.dataclass(frozen=True)
class GroupReport:
    """How one group fared in an update."""

    node: int
    replica: int
    part: int
    outcome: str  # "committed", "sat out", "aborted", "dirty", "lost"
    state: str  # "CURRENT", "STALE", ...
    text: str  # why, when not committed


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of an update. Bytes are counted once; times are seconds.

    outcome: "committed" (all groups), "sat out" (some), "aborted" (none), "lost" (none, but it was
        decided: its version is spent).
    """

    version: int
    outcome: str
    text: str
    tensors: int
    unwanted: int
    bytes: int
    wire_bytes: int
    wait_s: float
    accept_s: float
    move_s: float
    commit_s: float
    total_s: float
    gather_s: float
    local_s: float
    wire_s: float
    scatter_s: float
    groups: tuple[GroupReport, ...]

    @property
    def committed(self) -> bool:
        """True if every group has every byte of the version."""
        return self.outcome == "committed"

    @property
    def pause_s(self) -> float:
        """The longest that an engine with a held gate can have stood still for it, in seconds.

        From the broker's asking, once every rank's stream was done, to the last worker's last
        byte. It waits for the slowest engine to reach a step's end; the way of the last message
        to an engine is not in it, nor what an engine's own loader takes behind that, where a
        layout has parameters by the loader route.
        """
        return self.accept_s + self.move_s + self.commit_s


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _make_report(said: _lib.Report) -> Report:
    groups = tuple(GroupReport(g.node, g.replica, g.part, OUTCOMES[g.outcome], STATES[g.state],
                               _text(g.text))
                   for g in (said.groups[i] for i in range(said.ngroups)))
    values = {field.name: getattr(said, field.name) for field in dataclasses.fields(Report)
              if field.name not in ("outcome", "text", "groups")}
    return Report(outcome=OUTCOMES[said.outcome], text=_text(said.text), groups=groups, **values)


def _flags(version: int, partial: bool, scope_all: bool, hash_wire: bool) -> int:
    if not 0 < version < 2**64 - 1:
        raise InvalidArgument(errno.EINVAL, f"publish: version {version}: 1 to 2^64 - 2 are "
                              "allowed")
    return (PUBLISH_PARTIAL if partial else 0) | (PUBLISH_SCOPE_ALL if scope_all else 0) | \
        (PUBLISH_HASH if hash_wire else 0)


_NOT_YET = (errno.ETIMEDOUT, errno.EBUSY, errno.ENOMEM)  # the library still has it


class Publishing:
    """An update on its way, from Trainer.publish_async()."""

    def __init__(self, trainer: Trainer, version: int, names: frozenset[str] | None = None,
                 begun: bool = False) -> None:
        self._trainer = trainer
        self._names = names  # of a subset
        self.version = version
        self._begun = begun  # False: Ctrl-C may have come before or behind the library's call
        self._said = _lib.Report()  # not finished yet where it has a version
        self._report: Report | None = None
        self._failure: Error | None = None  # why there will be no report
        self._alone = False  # publish() waits for it, or has: nobody has the handle
        self._told = False  # somebody has heard how it ended, or gave it up
        self._given_up = False

    def wait_released(self, timeout: float | None = 60.0) -> None:
        """Waits (seconds; None: for ever) until the tensors may change again.

        Timeout: the memory is still lent.
        """
        # Behind a later update nothing of this one is lent.
        if self._report is None and self._trainer._last is self:
            try:
                self._trainer._handle.wait(lib.strew_trainer_wait_released, timeout)
            except Timeout as late:
                raise Timeout(late.code, f"{self._late('not released')} in {timeout:g} s: the "
                              "memory is still lent") from None

    def _late(self, what: str) -> str:
        trainer = self._trainer
        return (f"version {self.version} at trainer rank {trainer._rank} of {trainer._size}: "
                f"{what}")

    def report(self, timeout: float | None = 60.0) -> Report:
        """Waits for the end of the update. Raises NotCommitted if no group has the version.

        InvalidArgument if only= had names that no rank has declared; then it has come all the same.
        """
        try:
            self._take(timeout)
        except Timeout as late:
            raise Timeout(late.code, f"{self._late('no report')} in {timeout:g} s") from None
        self._told = True
        if self._report is None:
            assert self._failure is not None
            raise self._failure
        if self._report.outcome in ("aborted", "lost"):
            raise NotCommitted(self._report, self._report.text)
        if self._names is not None:
            self._trainer._check_names(self._names, self._report)
        return self._report

    def _take(self, timeout: float | None) -> None:
        """Takes the report, or why there is none, from the library. Timeout and Busy: not yet."""
        if self._over():
            return
        try:
            self._trainer._handle.wait(self._ask, timeout)
        except Error as failure:
            if failure.code in _NOT_YET:
                raise
            self._failure = failure

    def _over(self) -> bool:
        return self._report is not None or self._failure is not None

    def _ask(self, address: int, timeout_ms: int) -> int:
        """By one thread at a time: what another has taken is there already."""
        if self._over():
            return 0
        said = self._said
        # Ctrl-C behind the library's success leaves it in `said`, for the next time.
        if not said.version:
            code: int = lib.strew_trainer_wait_report(address, timeout_ms, ctypes.byref(said))
            if code < 0:
                return code
        report = _make_report(said)
        if report.outcome != "aborted":
            self._trainer._committed = report.version
        self._report = report
        lib.strew_report_finish(ctypes.byref(said))
        return 0

    def _give_up(self, timeout: float) -> Report | None:
        """Behind the library's word that it ends: what came of it, which nobody asks for, unless it
        was too late for that."""
        self._given_up = self._alone = True
        with contextlib.suppress(Error):
            self._take(timeout)
            self._told = self._report is None or self._report.outcome == "aborted"
        return self._report

    def _is(self, version: int, names: frozenset[str] | None) -> bool:
        return (self.version, self._names) == (version, names)


def _only(names: Iterable[str] | None) -> frozenset[str] | None:
    if isinstance(names, (str, bytes)):
        raise InvalidArgument(errno.EINVAL, f"publish: only={names!r} is one string, whose letters "
                              "would be taken for names; a list of names is wanted")
    return None if names is None else frozenset(names)


class Trainer(Closing):
    """A process that has new weights.

    Args:
        model: the name under which engines ask for it.
        rank, size: of this process among the model's trainer ranks; by default what torchrun,
            srun or MPI have put into the environment, else 0 of 1.
        socket: of this node's broker; by default $STREW_SOCKET, else the default path.
        timeout: seconds for each call that waits for the broker.

    Raises BrokerMissing where nobody serves the socket.
    """

    def __init__(self, model: str, *, rank: int | None = None, size: int | None = None,
                 socket: str | os.PathLike[str] | None = None, timeout: float = 30.0) -> None:
        self._handle = Handle(lib.strew_trainer_close)
        said_rank, said_size = launcher_rank()
        options = _lib.TrainerOptions(
            socket=None if socket is None else to_name(socket, "Trainer: socket"),
            model=to_name(model, "Trainer: model"),
            rank=to_u32(said_rank if rank is None else rank, "Trainer: rank"),
            ranks=to_u32(said_size if size is None else size, "Trainer: size", 1),
            timeout_ms=to_ms(timeout, "Trainer"))
        self._timeout = options.timeout_ms / 1000
        self._rank, self._size = options.rank, options.ranks
        self._committed = 0  # the version that was, as far as this trainer has heard
        self._last: Publishing | None = None  # the update that was begun last
        self._subsets: dict[frozenset[str], int] = {}
        self._misspelt: dict[frozenset[str], str] = {}  # those with names that no rank knows
        self._keep: list[Any] = []
        self._watch = Watch()  # looked at before each update
        self._declared: set[str] = set()
        self._empty: set[str] = set()  # of these: whole tensors without elements
        self._unsent: set[str] = set()  # of which libstrew does not know: no elements here
        self._parts: Parts | None = None
        self._record = _lib.Tensor()
        self._record_address = ctypes.addressof(self._record)
        self._gpu = OneGpu("a trainer")
        self._sealed = False
        self._handle.open(lib.strew_trainer_open, options)

    def declare(self, tensors: Any, rename: Rename | None = None) -> None:
        """Declares what will be published; the memory must keep its address from now on.

        Args:
            tensors: a module, or names and tensors (a mapping, or pairs): torch tensors, NumPy
                arrays, whatever speaks DLPack or an array interface; any strides that do not
                overlap or run backwards. Of a DTensor (FSDP2, tensor parallel) its local shard is
                declared as the box that it is. Nothing is gathered or copied.
                Give the module itself where there is one: publish() then finds parameters that
                were given other memory (`.to()` away and back, `.data =`), and raises Moved.
                state_dict() is of detached tensors, which go on lying over the old memory: of
                these, and of parameters that were replaced by others, Moved is raised only once
                nobody but this trainer holds that memory, and not if somebody keeps the
                state_dict, or memory that torch did not allocate; 128 of them are looked at
                before each update, in turn. torch refuses
                torch.utils.swap_tensors() of many that are declared until close().
            rename: a function or mapping from name to name (None: leave the tensor out); what a
                mapping lacks keeps its name. Wrapper prefixes are stripped before.

        May be called several times before the first publish. InvalidArgument for a name twice,
        NotShareable for memory that cannot be shared, or lies on a second GPU; the exception names
        the tensor.
        """
        self._check_apart()
        module = tensors if hasattr(tensors, "state_dict") else None
        own: set[int] = set()
        if module is not None:
            # The parameters themselves: a `.data` that is replaced later is seen then. The module
            # is kept, so that one that nobody else holds is one that was replaced.
            self._keep.append(module)
            tensors = module.state_dict(keep_vars=True)
            own = set(map(id, itertools.chain(module.parameters(), module.buffers())))
        owned = module is not None
        pairs: Iterable[tuple[str, Any]] = tensors.items() if hasattr(tensors, "items") else tensors
        mapping = rename if isinstance(rename, Mapping) else None
        with self._handle.lock:  # once, not for each of many
            for given, value in pairs:
                name: str | None = strip_prefixes(given)
                if mapping is not None:
                    name = mapping.get(name, name)  # type: ignore[arg-type]
                elif callable(rename):
                    name = rename(name)  # type: ignore[arg-type]
                if name is None:
                    continue
                if owned and id(value) not in own:
                    raise NotShareable(errno.ENOTSUP, f"tensor {name}: the module has no such "
                                       "parameter or buffer; what its state_dict() makes anew each "
                                       "time would never change: leave it out by rename=")
                if type(value) in plain_types and self._declare_dense(name, value, owned):
                    continue
                local = local_box(name, value)
                if local is None:
                    self._declare(name, value, describe(name, value), None, None, owned)
                else:
                    mine, start, shape = local
                    self._declare(name, value, describe(name, mine), shape, start, owned)

    def declare_box(self, name: str, tensor: Any, *, shape: tuple[int, ...],
                    start: tuple[int, ...]) -> None:
        """Declares `tensor` as the box of tensor `name` that starts at `start`.

        Args:
            shape: of the whole tensor. It may have more dimensions than the view `tensor`: the
                first ones are 1 long in the box (an expert of a stack of experts).
            start: the box's first index, in elements, for each dimension of `shape`.

        Boxes of one name may be declared several times, by one rank or by many.
        """
        self._check_apart()
        with self._handle.lock:
            self._declare(name, tensor, describe(name, tensor), tuple(shape), tuple(start))

    def declare_parts(self, tensors: Any, *, buffer_bytes: int | None = None,
                      device: Any = None) -> int:
        """Declares tensors that there is no memory for at once, for publish(source=).

        They are cut into parts, in this order, and memory is taken for the largest part: host
        memory that the broker maps, or a GPU's. Returns how many bytes that is.

        Args:
            tensors: what will be published: a module, or names (wrapper prefixes are stripped) and
                tensors, of which dtype and shape alone are looked at: on any device, meta as well;
                or tuples (dtype, shape), or (dtype, shape, start, extent) for a box of a tensor,
                which is nothing where an extent is 0. Of a DTensor it is the local shard's box.
                Pairs may come from a generator, which is run through once, and keeps nothing.
            buffer_bytes: of a part at most. By default 1 GiB, or what it takes to have no more
                than 64 parts. Whole tensors count, also where a rank has boxes of them, so that
                all ranks of the model cut alike: they declare the same names in the same order.
            device: of the memory; by default that of the first tensor that has one, else the host.

        Once, and not beside declare(). InvalidArgument if buffer_bytes is too little: it says the
        least that will do.
        """
        from ._parts import Parts  # pylint: disable=import-outside-toplevel
        self._check_apart()
        if self._declared:
            raise InvalidArgument(errno.EINVAL, "declare_parts: other tensors are declared already")
        self._parts = Parts(self, tensors, buffer_bytes, device)
        return self._parts.area_bytes

    def _check_apart(self) -> None:
        if self._parts is not None:
            raise InvalidArgument(errno.EINVAL, "declare_parts() has declared what this trainer "
                                  "publishes")

    def _declare_dense(self, name: str, tensor: Any, owned: bool) -> bool:
        """What _declare() does for a whole tensor that lies without gaps, in three quarters of the
        time; the caller has the handle's lock. False if this one is not such a tensor."""
        try:
            kind = kinds.get((tensor.dtype, tensor.device, tensor.layout))
            shape, ndim = tensor.shape, tensor.dim()
            if kind is None or name in self._declared or not tensor.is_contiguous() or \
                    tensor.is_neg() or ndim > MAX_DIMS or 0 in shape:
                return False
            data = tensor.data_ptr()
        except (RuntimeError, ValueError):  # torch's, which describe() will say
            return False
        _DENSE[ndim](self._record, 8, kind[0], ndim, *shape, data)
        self._add(name, tensor, kind[1], data, tensor.untyped_storage(), owned)
        return True

    def _declare(self, name: str, value: Any, said: Described, shape: tuple[int, ...] | None,
                 start: tuple[int, ...] | None, owned: bool = False) -> None:
        """Of a whole tensor, or a box of one; the caller has the handle's lock.

        value: what `said` describes, or the DTensor that it is the shard of. owned: by a module
        that is kept.
        """
        ndim, extent, stride, record = len(said.shape), said.shape, said.stride, self._record
        if shape is None or start is None:
            if name in self._declared:
                raise InvalidArgument(errno.EEXIST, f"tensor {name} is declared twice")
            pad = _PAD[ndim]
            _WHOLE.pack_into(record, 8, said.dtype, ndim, *extent, *pad, *stride, *pad, said.data)
        else:
            extra = len(shape) - ndim
            if extra < 0 or len(start) != len(shape) or len(shape) > MAX_DIMS:
                raise InvalidArgument(errno.EINVAL, f"tensor {name}: a box of {ndim} dimensions at "
                                      f"{start} of shape {shape}")
            ndim, extent = len(shape), (1,) * extra + extent
            stride = (0,) * extra + stride
            if not any(stride):
                stride = (1,) * ndim  # one element: all 0 would mean dense, which it is as well
            pad = _PAD[ndim]
            _BOX.pack_into(record, 8, said.dtype, ndim, *shape, *pad, *start, *pad, *extent, *pad,
                           *stride, *pad, said.data)
        if 0 in extent:
            if name not in self._declared:
                self._declared.add(name)
                self._unsent.add(name)
            if 0 in (extent if shape is None else shape):
                self._empty.add(name)
            return
        self._add(name, value, said.cuda, said.data, said.keep, owned)

    def _add(self, name: str, value: Any, cuda: int, data: int, keep: Any, owned: bool) -> None:
        """The record, which is filled in but for the name; keep holds the memory at `data`."""
        record = self._record
        if cuda != self._gpu.index:
            self._gpu.add(name, cuda)
        record.name = encoded = name.encode()
        if 0 in encoded:
            to_name(name, "tensor")
        code = lib.strew_trainer_declare(self._handle.get(), self._record_address)
        if code < 0:
            check(code)
        self._declared.add(name)
        if self._unsent:
            self._unsent.discard(name)
        self._keep.append(keep)
        self._watch.add(name, value, data, keep, owned)

    def seal(self, timeout: float | None = None) -> None:
        """Ends declaring and waits until all ranks have; the first publish() does it by itself.

        timeout: seconds, None: the trainer's. After Ctrl-C or Timeout it may be called again: it
        waits for the same answer.
        """
        if not self._sealed:
            self._check_addresses()
            self._handle.long(lib.strew_trainer_seal, once="seal", timeout=timeout)
            self._sealed = True

    def _check_addresses(self) -> None:
        self._handle.check_open()
        found = self._watch.moved()
        if found:
            name, why, count = found
            raise Moved(errno.ESTALE, f"tensor {name} {why} ({count} in all); declare with a new "
                        "Trainer, the module itself if there is one")

    def _subset(self, names: frozenset[str]) -> int:
        """The number of that subset, which all ranks name when it is published first."""
        number = self._subsets.get(names)
        if number is None:
            unknown = sorted(names - self._declared)
            if unknown and self._size == 1:
                raise InvalidArgument(errno.ENOENT,
                                      f"publish: tensor {unknown[0]} was not declared")
            if names <= self._empty:
                raise InvalidArgument(errno.EINVAL, "publish: only= names no tensor with elements")
            mine = [name.encode() for name in sorted((names & self._declared) - self._unsent)]
            array = (ctypes.c_char_p * max(1, len(mine)))(*mine)
            said = ctypes.c_uint32()
            number = self._subsets[names] = self._handle.long(
                lib.strew_trainer_subset, array, len(mine), ctypes.byref(said), once=names,
                out=said)
        return number

    def _check_names(self, names: frozenset[str], report: Report) -> None:
        """A rank knows its own tensors alone: how many there are of all ranks the report says."""
        missing = len(names - self._empty) - report.tensors
        if missing > 0:
            unknown = sorted(names - self._declared)
            self._misspelt[names] = (
                f"publish: {missing} of the names in only= were declared by no trainer rank; not "
                f"by this one: {', '.join(unknown[:8])}" + (", …" if len(unknown) > 8 else ""))
            raise InvalidArgument(errno.ENOENT, f"{self._misspelt[names]}; version "
                                  f"{report.version} has come without them: {report.outcome}")

    def publish_async(self, version: int, *, only: Iterable[str] | None = None,
                      base: int | None = None, stream: Any = None, partial: bool = False,
                      scope_all: bool = False, hash: bool = False,  # pylint: disable=redefined-builtin
                      timeout: float | None = 60.0) -> Publishing:
        """Publishes what is declared as it is after the current stream's work; returns at once.

        Args:
            version: a number above the last committed one, at most 2^64 - 2.
            only: names of tensors, as declared: the others are as in version `base`, their memory
                is not read, and parameters that they fill keep their bytes. Groups that are not
                CURRENT at `base` sit out. All ranks name the same; at most 64 different sets.
                A name that was not declared is InvalidArgument. Of several ranks none knows the
                others' names, so it is raised in all of them when the report of the first such
                update is there, which has brought the other tensors, and from then on at once.
            base: of `only`; it must be the version committed last. None: the last one of this
                trainer, 0 before the first (what the engines have loaded).
            stream: a torch stream or the address of a CUstream; None: torch's current one.
                What is declared lies on one GPU. Streams that `__cuda_array_interface__` names are
                waited for before.
            partial: parameters that no tensor covers are not an error. A group that is DIRTY, or
                has missed a version, in tensors that are not brought sits out.
            scope_all: commit every group or none.
            hash: compare a hash of what goes over the wire at both ends; a difference aborts the
                update. It is done anyway where a group with staged apply is served by wire; where
                all apply directly, what was written by then is dirty.
            timeout: seconds, the update's deadline; an hour at most, which None means too.

        An earlier update whose report nobody has taken (publish() was left by Ctrl-C or Timeout, a
        handle was dropped) is looked at first: where it is of this version, and of the same
        `only`, its handle is returned and nothing is published anew; else its report is taken, and
        this one goes on behind it.

        Busy: that report has not come yet. Moved: a tensor lies elsewhere now. What the
        broker refuses (a version that goes back) comes in the handle's waits.
        """
        if self._parts is not None:
            raise InvalidArgument(errno.EINVAL, "publish: what declare_parts() has declared is "
                                  "published with source=")
        names = _only(only)
        left = self._left_behind(version, names, 0.0)
        if left is not None:
            return left
        if names in self._misspelt:
            raise InvalidArgument(errno.ENOENT, self._misspelt[names])
        if self._sealed:
            self._check_addresses()
        else:
            self.seal()
        flags = _flags(version, partial, scope_all, hash)
        deadline_ms = to_ms(timeout, "publish", UPDATE_MAX_MS)
        self._watch.synchronize()
        at = stream_address(stream, self._gpu.index)
        number = 0 if names is None else self._subset(names)
        before, self._last = self._last, Publishing(self, version, names)
        try:
            if names is None:
                self._handle.call(lib.strew_trainer_publish, version, at, flags, deadline_ms)
            else:
                self._handle.call(lib.strew_trainer_publish_subset, number,
                                  self._committed if base is None else base, version, at, flags,
                                  deadline_ms)
        except Exception:
            self._last = before
            raise
        self._last._begun = True
        return self._last

    def take_left(self) -> None:
        """Takes the report of an update that was left behind, whatever it says; Busy: not yet."""
        self._left_behind(0, None, 0.0)

    def _left_behind(self, version: int, names: frozenset[str] | None,
                     timeout: float) -> Publishing | None:
        """The last update, if nobody has heard how it ended and it is this one. The report of
        another is taken, and waited for (seconds) if nobody else can; Busy where it has not come.
        """
        if self._parts is not None:
            self._parts.end_left()
        left = self._last
        if left is None or left._told:
            return None
        if not left._begun:
            try:
                left._take(0.0)
            except Timeout:
                left._begun = True
            if left._failure is not None:  # there is none that a report would come of
                left._told = True
                return None
        if left._is(version, names) and not left._given_up:
            return left
        try:
            left._take(timeout if left._alone else 0.0)
        except Timeout:
            raise Busy(errno.EBUSY, f"publish: version {left.version} has not been reported yet"
                       ) from None
        if left._given_up and left._is(version, names) and left._report is not None and \
                left._report.outcome != "aborted":
            return left  # it was too late for that
        left._told = True
        return None

    def publish(self, version: int, *, source: Iterable[tuple[str, Any]] | None = None,
                only: Iterable[str] | None = None, base: int | None = None,
                stream: Any = None, partial: bool = False, scope_all: bool = False,
                hash: bool = False,  # pylint: disable=redefined-builtin
                timeout: float | None = 60.0) -> Report:
        """The same, waiting for the report.

        Args:
            source: names and tensors as declare_parts() has declared them, in that order, made
                one after another (gathered, merged, cast). Each is copied, on the current stream,
                before the next one is asked for, and the broker reads a part while the next
                one's first tensor is being made. All ranks of the model advance together, part by
                part.

        Raises NotCommitted if no group has the version; groups that sat out are in the report.
        Ctrl-C and Timeout leave the update running, and its memory lent. The same call again waits
        for that one's report, and publishes nothing anew; one of another version waits for it too,
        at most its own timeout (Busy then), and goes on behind it. For the report of
        publish_async() it does not wait.

        With source: what source raises, and Ctrl-C, ends the update for all ranks, which hear why
        in NotCommitted, and is raised here; the version may be published again. A tensor that is
        missing, comes twice or out of order, or has another dtype or shape is named
        by InvalidArgument. After an Error source is run through to its end all the same, so that
        ranks that make its tensors together (full_tensor() of a DTensor) stay together; what it
        raises then is dropped. Only where another rank was lost it is left where it is: there is
        nobody to make tensors with.
        """
        deadline_ms = to_ms(timeout, "publish", UPDATE_MAX_MS)
        patience = deadline_ms / 1000 + self._timeout
        names = _only(only)
        left = self._left_behind(version, names, patience)
        if left is not None:
            return left.report(patience)
        if source is not None:
            items = iter(source)
            try:
                handle = self._publish_source(
                    items, version, _flags(version, partial, scope_all, hash), deadline_ms,
                    only is None and base is None and stream is None)
                handle._alone = True
                return handle.report(patience)
            except Error as failure:
                # Not where a rank is dead: what makes tensors together would wait for it.
                if self._size == 1 or not _RANK_LOST.search(failure.sentence):
                    with contextlib.suppress(Exception):  # the first failure is the one to tell
                        collections.deque(items, maxlen=0)
                raise
        handle = self.publish_async(version, only=names, base=base, stream=stream, partial=partial,
                                    scope_all=scope_all, hash=hash, timeout=timeout)
        handle._alone = True
        return handle.report(patience)

    def _publish_source(self, source: Iterator[tuple[str, Any]], version: int, flags: int,
                        deadline_ms: int, alone: bool) -> Publishing:
        if self._parts is None:
            raise InvalidArgument(errno.EINVAL, "publish: source= is for what declare_parts() has "
                                  "declared, and nothing has been")
        if not alone:
            raise InvalidArgument(errno.EINVAL, "publish: source= brings everything, and is copied "
                                  "on the current stream: no only=, base= or stream= beside it")
        return self._parts.publish(source, version, flags, deadline_ms)

    def reconnect(self, timeout: float | None = 60.0) -> None:
        """After BrokerLost: declares the same to the broker that serves the socket now.

        Waits (seconds, in all; None: for ever) for such a broker, for the old one's end, and until
        all ranks have done so. An update that was under way is forgotten: its report will not
        come, and its memory is not lent any more. On failure call it again. Timeout,
        BrokerMissing; InvalidArgument: the broker is not gone; Moved: see publish_async().
        """
        self._check_addresses()
        self._handle.reconnect(lib.strew_trainer_reconnect, timeout)
        if self._last is not None and not self._last._over():
            self._last._failure = BrokerLost(errno.ECONNRESET, f"version {self._last.version}: its "
                                             "broker was lost, and its report will not come")
        self._last = None

    def fileno(self) -> int:
        """Polls readable when the broker has said something."""
        return self._handle.call(lib.strew_trainer_fd)

    def close(self, timeout: float | None = None) -> None:
        """Waits for lent memory, then disconnects. A second time is fine.

        timeout: seconds, None: the trainer's. After Timeout and Ctrl-C it goes on in a thread of
        its own, and memory is lent until that is over; a second close() waits for it.
        """
        try:
            super().close(timeout)
        finally:
            self._watch.release()

