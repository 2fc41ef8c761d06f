"""The worker's face: parameters that updates write to, and the gate that says when."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from . import _lib
from ._errors import BrokerLost, InvalidArgument, Moved, Refused, Timeout
from ._layout import Layout, Piece
from ._lib import (
    CHECK,
    MAX_DIMS,
    Closing,
    Handle,
    close_before_exit,
    lib,
    peek,
    to_ms,
    to_name,
    to_u32,
)
from ._tensors import OneGpu, describe, dtype_number
from ._trainer import OUTCOMES, STATES, stream_address
from ._watch import Watch

_GATES = {"live": 1, "held": 2}
_APPLIES = {"direct": 1, "staged": 2}
_UNPROVED, _PROVED = 1, 2  # enum strew_proof
_EVENTS = {1: "hold", 2: "done", 3: "lost"}

_PAD = [(0,) * (MAX_DIMS - n) for n in range(MAX_DIMS + 1)]
_PARAMETER = struct.Struct("@PPii12Q")
_PIECE = struct.Struct("@Pii6Qi18QIQ6Qi4x")
assert _PARAMETER.size == ctypes.sizeof(_lib.Parameter)
assert _PIECE.size == ctypes.sizeof(_lib.Piece)


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that the broker says.

    kind: "hold" (reach a step's end, call ready(), later resume()), "done" (an update ended:
        outcome and version say how), "lost" (the broker is gone), "none" (what wait() returns
        where the library has said nothing).
    """

    kind: str
    version: int
    outcome: str
    state: str
    text: str
    catching: bool = False  # done: of catching up with a sibling; an update may still come


def _encode(name: str) -> tuple[bytes, int | None]:
    encoded = to_name(name, "name")
    return encoded, ctypes.cast(ctypes.c_char_p(encoded), ctypes.c_void_p).value


class Agent(Closing):
    """One inference process (a tensor-parallel rank), whose parameters updates write to.

    Args:
        model: the trainer's name for it.
        replica, part: which copy of the model its group serves, and which part of that copy.
        rank, size: of this worker among the group's members on this node.
        gate: "held" (default: memory is written only between ready() and resume()), or "live"
            (at any time; a step may then read old and new values).
        apply: "staged" (default: into shadow memory first, then one short copy), or "direct".
        partial: accept updates that leave parameters uncovered.
        socket: of this node's broker; by default $STREW_SOCKET, else the default path.
        timeout: seconds for each call that waits for the broker.

    Raises BrokerMissing where nobody serves the socket.
    """

    def __init__(self, model: str, *, replica: int = 0, part: int = 0, rank: int = 0, size: int = 1,
                 gate: str = "held", apply: str = "staged", partial: bool = False,
                 socket: str | os.PathLike[str] | None = None, timeout: float = 30.0) -> None:
        self._handle = Handle(lib.strew_agent_close, lib.strew_agent_withdraw)
        if gate not in _GATES or apply not in _APPLIES:
            raise InvalidArgument(errno.EINVAL, "gate is held or live, apply is staged or direct")
        self.gate = gate
        self._partial = partial
        self._found: BaseException | None = None  # by the look before an update, if it refused it
        me = weakref.ref(self)

        def check(_: int, text: int, length: int) -> int:
            agent = me()
            return 0 if agent is None else agent._look(text, length)
        self._check = CHECK(check)
        options = _lib.AgentOptions(
            socket=None if socket is None else to_name(socket, "Agent: socket"),
            model=to_name(model, "Agent: model"), replica=to_u32(replica, "Agent: replica"),
            part=to_u32(part, "Agent: part"), member=to_u32(rank, "Agent: rank"),
            members=to_u32(size, "Agent: size", 1), gate=_GATES[gate],
            apply=_APPLIES[apply], partial=int(partial),
            serve_thread=int(gate == "live"),
            timeout_ms=to_ms(timeout, "Agent"), check=self._check)
        self._timeout = options.timeout_ms / 1000
        self._described: Layout | None = None  # what register() has declared
        self._keep: list[Any] = []
        self._lookups: list[Callable[[], dict[str, str]]] = []
        self._watch = Watch()  # of what was declared by hand
        self._gpu = OneGpu("an agent")
        self._ready = False
        self._reloaders: list[Any] = []  # of layouts whose engine's loader runs after updates
        self._reloaded = 0  # the version that they have loaded
        self._handle.open(lib.strew_agent_open, options)
        if gate == "live":
            close_before_exit(self._handle)

    # Describing

    def declare(self, name: str, tensor: Any) -> int:
        """Declares memory of this process under a name; returns its number for piece().

        The memory is borrowed from register() to withdraw() or close(), and must keep its address.
        A `.data` that was replaced is found before the next update: its report names the parameter,
        this worker's group has no part in it, and wait(), and poll() when it has an event, raise
        Moved. So does ready(), with whatever has moved since.
        A parameter that was replaced by another object cannot be seen here, unless nobody but this
        agent holds its memory then; a layout of record_layout() looks into the module.
        """
        return self._declare(name, tensor, self._watch)

    def _declare(self, name: str, tensor: Any, watch: Watch | None) -> int:
        said = describe(name, tensor, writable=True)
        ndim, pad = len(said.shape), _PAD[len(said.shape)]
        self._gpu.add(name, said.cuda)
        encoded, pointer = _encode(name)
        number = ctypes.c_uint32()
        self._handle.call(lib.strew_agent_declare,
                          _PARAMETER.pack(pointer, said.data, said.dtype, ndim, *said.shape, *pad,
                                          *said.stride, *pad), ctypes.byref(number))
        self._keep.append((said.keep, encoded))
        if watch is not None:
            watch.add(name, tensor, said.data, said.keep)
        return number.value

    def piece(self, parameter: int, piece: Piece) -> None:
        """Adds an arrow from a box of a trainer's tensor to a place in a declared parameter."""
        ndim, nview = len(piece.shape), len(piece.view)
        if max(ndim, nview) > MAX_DIMS:
            raise InvalidArgument(errno.EINVAL, f"tensor {piece.tensor}: more than {MAX_DIMS} "
                                  "dimensions")
        pad, view_pad = _PAD[ndim], _PAD[nview]
        _, pointer = encoded = _encode(piece.tensor)
        record = _PIECE.pack(pointer, dtype_number(piece.dtype), ndim, *piece.shape, *pad, nview,
                             *piece.view, *view_pad, *piece.start, *view_pad, *piece.extent,
                             *view_pad, parameter, piece.offset, *piece.stride, *view_pad,
                             int(piece.cast))
        self._handle.call(lib.strew_agent_piece, record)
        del encoded

    def register(self, layout: Layout | None = None, *, skip_refused: bool = False,
                 timeout: float | None = None) -> None:
        """Hands the memory to the broker; from its return on, updates may come.

        Args:
            layout: from record_layout(), or made by hand; None if declare() and piece() said all.
            skip_refused: leave out the parameters that the layout refuses (they keep their values)
                instead of raising Refused.
            timeout: seconds to wait for the broker; None: the agent's.

        After Ctrl-C or Timeout the same call may be made again: it waits for the same answer.
        Refused names also the parameters that the layout leaves unfilled: they would keep their
        values for ever. An agent that is `partial` takes them as they are.
        """
        if layout is not None and layout is not self._described:
            refused = {} if skip_refused else dict(layout.refused)
            if not self._partial:
                refused.update((name, "the loader never wrote it, from the tensors that it was "
                                "given: is one missing, or called otherwise? (partial=True leaves "
                                "it as it is)") for name in layout.unfilled)
            if refused:
                raise Refused(refused)
            for name, parameter in layout.parameters.items():
                if not parameter.pieces:
                    continue
                number = self._declare(name, parameter.tensor, None)  # the layout watches it
                for piece in parameter.pieces:
                    self.piece(number, piece)
            if layout.reloader:
                self._declare_feed(layout.reloader)
            self._handle.call(lib.strew_agent_note_layout, len(layout.loader), len(layout.refused),
                              _PROVED if layout.proved else _UNPROVED)
            self._lookups.append(layout.moved)
            self._described = layout
        self._handle.long(lib.strew_agent_register, once="register", timeout=timeout)

    def _declare_feed(self, reloader: Any) -> None:
        """Whole tensors, in memory of their own, for the engine's loader."""
        if self.gate == "live":
            raise InvalidArgument(errno.EINVAL, "the loader route needs a held gate: with a live "
                                  "one tensors change while the engine's loader reads them")
        for name, tensor in reloader.feed.items():
            shape = tuple(tensor.shape)
            if 0 not in shape:
                self.piece(self._declare(f"loader:{name}", tensor, None), Piece(
                    name, tensor.dtype, shape, shape, (0,) * len(shape), shape, 0,
                    tuple(tensor.stride())))
        self._reloaders.append(reloader)

    # The gate

    def _event(self, code: int, said: _lib.Event) -> Event | None:
        if code == 0 or said.type == 0:
            return None
        if self.gate == "live":
            self._check_addresses()
        found, self._found = self._found, None
        if found is not None:
            raise found
        return Event(_EVENTS[said.type], said.version, OUTCOMES[said.outcome], STATES[said.state],
                     said.text.decode(errors="replace"), bool(said.catching))

    def poll(self) -> Event | None:
        """Answers the broker without waiting; returns an event if there is one.

        Moved in its place if an update was refused because a parameter lies elsewhere, or, with a
        live gate, if one does by then; see declare().
        """
        said = _lib.Event()
        return self._event(self._handle.call(lib.strew_agent_dispatch, ctypes.byref(said)), said)

    def wait(self, timeout: float | None = None) -> Event:
        """Waits for an event (seconds; None: for ever). Raises Timeout.

        Moved as of poll(); with a live gate at once, too, if a parameter lies elsewhere already.
        """
        if self.gate == "live":
            self._check_addresses()
        said = _lib.Event()
        code = self._handle.wait(
            lambda at, ms: lib.strew_agent_wait(at, ms, ctypes.byref(said)), timeout)
        event = self._event(code, said)
        return event if event else Event("none", 0, "none", "", "")

    def ready(self, stream: Any = None) -> None:
        """Says that nothing uses the parameters once the current stream's work is done.

        All members of a group must say it at the same step. Raises Moved, and says nothing, if a
        parameter lies at another address than when it was declared or its layout was made.
        """
        self._check_addresses()
        self._watch.synchronize()
        self._handle.call(lib.strew_agent_ready, stream_address(stream, self._gpu.index))
        self._ready = True

    def resume(self, timeout: float | None = None) -> None:
        """Waits until the parameters may be used again: at once if no update is being written.

        Runs the engine's loader if the layout has parameters by that route and an update has come:
        the update was reported as committed by then, but no step may run before this returns.

        Dirty: they are written in part; call again after the next update. BrokerLost: see state.
        LoaderFailed: the engine's loader has failed; call again, or after the next update.
        """
        if self._ready or not self._reloaders or self._reloaded == self.version:
            self._handle.wait(lib.strew_agent_resume, timeout)
            self._ready = False
        if self._reloaders:
            version = self.version
            if version != self._reloaded:
                for reloader in self._reloaders:
                    reloader.run()
                self._reloaded = version

    @contextlib.contextmanager
    def paused(self, stream: Any = None, timeout: float | None = None) -> Iterator[Agent]:
        """The engine is between two steps: ready() at the start, resume() at the end."""
        self.ready(stream)
        try:
            yield self
        finally:
            self.resume(timeout)

    def wait_version(self, version: int, timeout: float | None = 60.0) -> Event:
        """Inside paused(): waits until an update has brought `version` or a later one.

        timeout: seconds, None: for ever. At once if it is there already and no update is under way:
        the event is a "done" that says so, if none of an update is left. Timeout says what the
        agent has, BrokerLost why.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            event = self.poll()
            if event is None:
                state, have = self._state()
                # PENDING: how the update ends is still to be told, and would be taken for news of
                # a later one if it came behind this call.
                if have >= version and STATES[state] in ("CURRENT", "STALE", "IN_DOUBT"):
                    event = self.poll()  # told between the two looks
                    if event is None:
                        return Event("done", have, "committed", STATES[state], "")
            if event is None:
                try:
                    event = self.wait(None if end is None else max(0.0, end - time.monotonic()))
                except Timeout:
                    state, have = self._state()
                    if have >= version and STATES[state] == "PENDING":
                        return Event("done", have, "committed", "PENDING", "")
                    raise Timeout(errno.ETIMEDOUT, f"version {version} did not come in {timeout:g} "
                                  f"s: the group is {STATES[state]} at version {have}") from None
            if event.kind == "lost":
                raise BrokerLost(errno.ECONNRESET, event.text)
            if event.kind == "done" and event.version >= version and event.outcome == "committed":
                return event
            if end is not None and time.monotonic() > end:
                raise Timeout(errno.ETIMEDOUT, f"version {version} did not come in {timeout:g} s")

    def between_steps(self, stream: Any = None, timeout: float | None = 60.0) -> Event | None:
        """For an engine's loop: lets an update in if one waits, and returns how it ended.

        Costs one non-blocking read where there is none. All members of a group must call it at
        the same step once the broker asks; see ready().
        """
        event = self.poll()
        if event is None or event.kind != "hold":
            return event
        with self.paused(stream, timeout):
            while event.kind == "hold":
                event = self.wait(timeout)
        return event

    def _moved(self) -> Moved | None:
        moved = next(filter(None, (lookup() for lookup in self._lookups)), None)
        found = (*next(iter(moved.items())), len(moved)) if moved else self._watch.moved()
        if found is None:
            return None
        name, why, count = found
        return Moved(errno.ESTALE, f"parameter {name} {why} ({count} in all); close this agent and "
                     "register with a new one")

    def _check_addresses(self) -> None:
        self._handle.check_open()
        moved = self._moved()
        if moved is not None:
            raise moved

    def _look(self, text: int, length: int) -> int:
        """Before each update, in the thread that hears the broker: 0, or why it cannot be."""
        try:
            self._found = moved = self._moved()
            if moved is None:
                return 0
            why = moved.sentence
        except BaseException as reason:  # pylint: disable=broad-except
            # Ctrl-C too: nothing gets through the library from here.
            self._found, why = reason, f"its engine could not look for its parameters: {reason!r}"
        said = why.encode()[:length - 1] + b"\0"
        ctypes.memmove(text, said, len(said))
        return -errno.ESTALE

    @property
    def state(self) -> str:
        """The group's state as last heard: "CURRENT", "STALE", ..."""
        return STATES[self._state()[0]]

    @property
    def version(self) -> int:
        """The version that the parameters hold; 0: none yet."""
        return self._state()[1]

    def _state(self) -> tuple[int, int]:
        state, version = ctypes.c_int(), ctypes.c_uint64()
        self._handle.call(lib.strew_agent_state, ctypes.byref(state), ctypes.byref(version))
        return state.value, version.value

    def peek(self) -> tuple[str, int] | None:
        """(state, version) from the broker's page, without a lock or a system call.

        Read before and after a step, two equal answers of "CURRENT" say which version it ran on.
        None: the page says nothing yet. From any thread, while no other is in close() or
        reconnect().
        """
        address = self._handle.address
        if address is None:
            raise InvalidArgument(errno.EINVAL, "it is closed already")
        state, version = ctypes.c_int(), ctypes.c_uint64()
        if peek(address, ctypes.byref(state), ctypes.byref(version)) < 0:
            return None
        return STATES[state.value], version.value

    def wait_current(self, timeout: float | None = 60.0) -> int:
        """For an engine that was just started: waits until its group is CURRENT; the version.

        That takes all members of the group, and, if versions were committed without it, another
        replica on its node to take the last one from, or the next whole update. With a held gate
        call it inside paused(), or nothing gets in. Events are kept.
        timeout: seconds, None: for ever. Raises Timeout (it says the state), BrokerLost.
        """
        self._handle.wait(lib.strew_agent_wait_current, timeout)
        return self.version

    def fileno(self) -> int:
        """Polls readable when poll() has work."""
        return self._handle.call(lib.strew_agent_fd)

    # Leaving, and coming back

    def reconnect(self, timeout: float | None = 60.0) -> None:
        """After BrokerLost or a "lost" event: registers the same with the broker that serves the
        socket now, waiting for one and for the old one's end (seconds, in all; None: for ever).

        The broker is told what the memory holds: see state and version after it. An engine that
        is paused calls ready() again. On failure the memory is as it was: call it again. Timeout,
        BrokerMissing; InvalidArgument: the broker is not gone; Moved: see ready().
        """
        self._check_addresses()
        self._handle.reconnect(lib.strew_agent_reconnect, timeout)
        self._ready = False

    def withdraw(self, timeout: float | None = None) -> None:
        """Takes the memory back: after it nothing writes to it.

        timeout: seconds, None: the agent's. After Ctrl-C or Timeout call it again: the memory is
        borrowed until it has returned.
        """
        self._handle.long(lib.strew_agent_withdraw, once="withdraw", timeout=timeout)
        self._watch, self._lookups = Watch(), []

    def close(self, timeout: float | None = None) -> None:
        """Withdraws if need be and disconnects: after it nothing writes to the memory. A second
        time is fine.

        timeout: seconds, None: the agent's. After Timeout and Ctrl-C it goes on in a thread of its
        own, until the broker has answered or its process has ended; the memory is borrowed, and
        kept, until then. A second close() waits for it.
        """
        try:
            super().close(self._timeout if timeout is None else timeout)
        finally:
            self._watch.release()
