"""libstrew, through ctypes.

ctypes and not an extension module: one wheel then serves every CPython, and nothing has to be
compiled against Python's headers. What is called once for each tensor is filled in by one
``struct.pack_into``, so that a declaration stays under 10 microseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import ctypes.util
import errno
import math
import operator
import os
import pathlib
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._errors import Error, make_error

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_DIMS = 6
SLICE_MS = 100  # a call that waits comes up for air (and for Ctrl-C) this often
DELETED_S = 1.0  # what was never closed is waited for so long; then it closes by itself
_AGAIN = (-errno.ETIMEDOUT, -errno.EINTR)  # of a call that waits in slices
_RETRY_S = 0.05  # between looks for a broker that serves the socket again

c_u32, c_u64, c_int = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int
c_char_p, c_void_p = ctypes.c_char_p, ctypes.c_void_p


# Is the memory still what the engine uses? (data, text, bytes of it) -> 0, or why not in text.
CHECK = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, ctypes.c_size_t)


class AgentOptions(ctypes.Structure):
    _fields_ = [("socket", c_char_p), ("model", c_char_p), ("replica", c_u32), ("part", c_u32),
                ("member", c_u32), ("members", c_u32), ("gate", c_int), ("apply", c_int),
                ("partial", c_int), ("serve_thread", c_int), ("timeout_ms", c_int),
                ("check", CHECK), ("check_data", c_void_p)]


class TrainerOptions(ctypes.Structure):
    _fields_ = [("socket", c_char_p), ("model", c_char_p), ("rank", c_u32), ("ranks", c_u32),
                ("timeout_ms", c_int)]


class Parameter(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("data", c_void_p), ("dtype", c_int), ("ndim", c_int),
                ("shape", c_u64 * MAX_DIMS), ("stride", c_u64 * MAX_DIMS)]


class Piece(ctypes.Structure):
    _fields_ = [("tensor", c_char_p), ("dtype", c_int), ("ndim", c_int),
                ("shape", c_u64 * MAX_DIMS), ("view_ndim", c_int), ("view", c_u64 * MAX_DIMS),
                ("start", c_u64 * MAX_DIMS), ("extent", c_u64 * MAX_DIMS), ("parameter", c_u32),
                ("offset", c_u64), ("stride", c_u64 * MAX_DIMS), ("cast", c_int)]


class Tensor(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("dtype", c_int), ("ndim", c_int),
                ("shape", c_u64 * MAX_DIMS), ("start", c_u64 * MAX_DIMS),
                ("extent", c_u64 * MAX_DIMS), ("stride", c_u64 * MAX_DIMS), ("data", c_void_p)]


class Event(ctypes.Structure):
    _fields_ = [("type", c_int), ("version", c_u64), ("outcome", c_int), ("state", c_int),
                ("text", ctypes.c_char * 240), ("catching", c_u32)]


class GroupReport(ctypes.Structure):
    _fields_ = [("node", c_u32), ("replica", c_u32), ("part", c_u32), ("outcome", c_int),
                ("state", c_int), ("text", c_char_p)]


class Report(ctypes.Structure):
    _fields_ = [("version", c_u64), ("outcome", c_int), ("text", c_char_p), ("tensors", c_u64),
                ("unwanted", c_u64), ("bytes", c_u64), ("wire_bytes", c_u64),
                *((name, ctypes.c_double) for name in
                  ("wait_s", "accept_s", "move_s", "commit_s", "total_s", "gather_s", "local_s",
                   "wire_s", "scatter_s")),
                ("ngroups", ctypes.c_size_t), ("groups", ctypes.POINTER(GroupReport))]


# The C name of each mirrored struct: a test compares sizes and offsets with the headers.
STRUCTS: dict[str, type[ctypes.Structure]] = {
    "strew_agent_options": AgentOptions, "strew_trainer_options": TrainerOptions,
    "strew_parameter": Parameter, "strew_piece": Piece, "strew_tensor": Tensor,
    "strew_event": Event, "strew_group_report": GroupReport, "strew_report": Report,
}

# Handles and records go as addresses: the cheapest thing that ctypes passes.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "strew_error": (c_char_p, []),
    "strew_version": (c_char_p, []),
    "strew_host_alloc": (c_int, [ctypes.c_size_t, c_void_p]),
    "strew_host_free": (None, [c_void_p]),
    "strew_agent_open": (c_int, [c_void_p, c_void_p]),
    "strew_agent_declare": (c_int, [c_void_p, c_void_p, c_void_p]),
    "strew_agent_piece": (c_int, [c_void_p, c_void_p]),
    "strew_agent_note_layout": (c_int, [c_void_p, c_u32, c_u32, c_int]),
    "strew_agent_register": (c_int, [c_void_p]),
    "strew_agent_reconnect": (c_int, [c_void_p, c_int]),
    "strew_agent_fd": (c_int, [c_void_p]),
    "strew_agent_dispatch": (c_int, [c_void_p, c_void_p]),
    "strew_agent_wait": (c_int, [c_void_p, c_int, c_void_p]),
    "strew_agent_ready": (c_int, [c_void_p, c_void_p]),
    "strew_agent_resume": (c_int, [c_void_p, c_int]),
    "strew_agent_state": (c_int, [c_void_p, c_void_p, c_void_p]),
    "strew_agent_wait_current": (c_int, [c_void_p, c_int]),
    "strew_agent_withdraw": (c_int, [c_void_p]),
    "strew_agent_close": (c_int, [c_void_p]),
    "strew_trainer_open": (c_int, [c_void_p, c_void_p]),
    "strew_trainer_declare": (c_int, [c_void_p, c_void_p]),
    "strew_trainer_seal": (c_int, [c_void_p]),
    "strew_trainer_reconnect": (c_int, [c_void_p, c_int]),
    "strew_trainer_publish": (c_int, [c_void_p, c_u64, c_void_p, ctypes.c_uint, c_int]),
    "strew_trainer_subset": (c_int, [c_void_p, c_void_p, ctypes.c_size_t, c_void_p]),
    "strew_trainer_publish_subset": (c_int, [c_void_p, c_u32, c_u64, c_u64, c_void_p,
                                             ctypes.c_uint, c_int]),
    "strew_trainer_open_parts": (c_int, [c_void_p, c_u64, ctypes.c_uint, c_int]),
    "strew_trainer_put": (c_int, [c_void_p, c_u32, c_void_p]),
    "strew_trainer_close_parts": (c_int, [c_void_p]),
    "strew_trainer_cancel_parts": (c_int, [c_void_p, c_char_p]),
    "strew_trainer_wait_released": (c_int, [c_void_p, c_int]),
    "strew_trainer_wait_report": (c_int, [c_void_p, c_int, c_void_p]),
    "strew_report_finish": (None, [c_void_p]),
    "strew_trainer_fd": (c_int, [c_void_p]),
    "strew_trainer_close": (None, [c_void_p]),
}


def _load() -> ctypes.CDLL:
    """The library: $STREW_LIBRARY, else the wheel's, else the system's."""
    here = pathlib.Path(__file__).parent / "lib" / "libstrew.so.0"
    path = os.environ.get("STREW_LIBRARY") or (str(here) if here.exists() else "libstrew.so.0")
    try:
        library = ctypes.CDLL(path)
    except OSError as reason:
        raise ImportError(f"libstrew: {reason}; install the wheel, or let STREW_LIBRARY name "
                          "libstrew.so") from reason
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


lib = _load()
# What only reads a page keeps the GIL: to give it back and take it again would cost more. And what
# asks Python's objects needs it.
_kept_gil = ctypes.PyDLL(lib._name, handle=lib._handle)
peek, first_moved = _kept_gil.strew_agent_peek, _kept_gil.strew_first_moved
peek.restype, peek.argtypes = c_int, [c_void_p, c_void_p, c_void_p]
first_moved.restype, first_moved.argtypes = ctypes.c_size_t, [c_void_p, c_void_p, c_void_p,
                                                              ctypes.c_size_t]
VERSION: str = lib.strew_version().decode()


def sentence() -> str:
    """Of the calling thread's last failed call."""
    return (lib.strew_error() or b"").decode(errors="replace")


def check(code: int) -> int:
    """Returns what a call returned, or raises what it said."""
    if code < 0:
        raise make_error(code, sentence())
    return code


MAX_MS = 2**31 - 1


def to_ms(seconds: float | None, what: str, most: int = MAX_MS) -> int:
    """A timeout for the library, in ms: 1 at least, as 0 is its default there; at most `most`.

    None and infinity are `most`. InvalidArgument for what is negative or no number.
    """
    if seconds is None:
        return most
    try:
        if seconds >= 0:
            return max(1, math.ceil(1000 * seconds)) if 1000 * seconds < most else most
    except TypeError:
        pass
    raise make_error(errno.EINVAL, f"{what}: a timeout of {seconds!r} seconds")


def _end_of(timeout: float | None) -> float | None:
    """When a wait that begins now is over, by time.monotonic(); None: never."""
    return None if timeout is None or timeout > MAX_MS / 1000 else time.monotonic() + timeout


def _left_until(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def to_u32(value: int, what: str, least: int = 0) -> int:
    """A number for the library, which ctypes would cut to its lowest 32 bits in silence."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not least <= number < 2**32:
        raise make_error(errno.EINVAL, f"{what} {value!r}: {least} to 2^32 - 1 are allowed")
    return number


def to_name(name: str | os.PathLike[str], what: str) -> bytes:
    """A name or path for the library, for which it would end at a NUL."""
    said = os.fsencode(name) if isinstance(name, os.PathLike) else name
    if not isinstance(said, (str, bytes)):
        raise make_error(errno.EINVAL, f"{what} {name!r}: a string is wanted")
    encoded = said.encode(errors="surrogateescape") if isinstance(said, str) else said
    if b"\0" in encoded:
        raise make_error(errno.EINVAL, f"{what} {name!r}: a NUL is in it")
    return encoded


class _Call:
    """A call of the library that has a thread of its own, and perhaps nobody who waits for it."""

    def __init__(self, once: Any, out: Any, left: Callable[[], None] | None = None) -> None:
        self.once, self.out = once, out
        self._seeks = once in ("open", "reconnect")
        self.code = 0
        self.sentence = ""
        self.done = threading.Event()
        self._left = left  # what is to be done with its success where nobody asks for it
        self._lock = threading.Lock()
        self._abandoned = False

    def start(self, function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        """Begins it."""
        threading.Thread(target=self.run, args=(function, arguments), name="strew-call",
                         daemon=True).start()

    def run(self, function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        """Makes it."""
        code = function(*arguments)
        self.sentence = sentence() if code < 0 else ""
        with self._lock:
            self.code = code
            abandoned = self._abandoned
            self.done.set()
        if abandoned:
            self._clean_up()

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._abandoned = True
            done = self.done.is_set()
        if done:
            self._clean_up()

    def _clean_up(self) -> None:
        if self.code >= 0 and self._left is not None:
            self._left()

    def result(self) -> int:
        """What it has returned, or put into `out`; raises what it said."""
        if self.code < 0:
            raise make_error(self.code, self.sentence, self._seeks)
        return int(self.code if self.out is None else self.out.value)


class Handle:
    """A strew_agent or strew_trainer: its address, its lock, and the calls that wait.

    The library wants one thread at a time on a handle; the lock sees to that, and is given back
    between the slices of a wait. Calls release the GIL. After fork() the child has a lock of its
    own, and every call but close() raises.
    """

    def __init__(self, close: Callable[[int], int | None],
                 take_back: Callable[[int], int] | None = None) -> None:
        """close: the library's. take_back: what is called again and again before it, while that
        says -ETIMEDOUT, as memory is not free before."""
        self.address: int | None = None
        self.lock = threading.RLock()
        self._close, self._take_back = close, take_back
        self._running: _Call | None = None  # a long call, also one that nobody waits for
        self._outcomes: dict[Any, _Call] = {}  # of those that nobody has waited for, by `once`
        self._closing: threading.Event | None = None
        self._not_freed: Error | None = None  # why, when closing is over
        self._leave = False  # closing would not be safe: a fork, in the middle of a call
        _handles.add(self)

    def open(self, function: Callable[..., int], options: ctypes.Structure) -> None:
        """function(options, address). After Ctrl-C what it opens is closed again."""
        address = c_void_p()

        def left() -> None:
            if address.value is not None:
                self._close(address.value)

        with self.lock:
            call = _Call("open", address, left)
            try:
                call.start(function, (ctypes.byref(options), ctypes.byref(address)))
                call.done.wait()
            except BaseException:
                call.abandon()
                raise
            self.address = call.result()

    def get(self) -> int:
        """The address, for a call that does not wait; the lock is held by the caller."""
        if self._running is not None:
            self._settle(0.0)
        self.check_open()
        assert self.address is not None
        return self.address

    def check_open(self) -> None:
        """Raises if it is closed."""
        if self.address is None:
            raise make_error(errno.EINVAL, "it is closed already")

    def call(self, function: Callable[..., int], *arguments: Any) -> int:
        """One call that does not wait."""
        with self.lock:
            code: int = function(self.get(), *arguments)
            return code if code >= 0 else check(code)

    def wait(self, function: Callable[[int, int], int], timeout: float | None) -> int:
        """A call function(address, timeout_ms), in slices. timeout: seconds, None: for ever."""
        to_ms(timeout, "wait")
        end = _end_of(timeout)
        while True:
            left = SLICE_MS if end is None else \
                int(min(SLICE_MS, max(0.0, 1000 * (end - time.monotonic()))))
            with self.lock:
                code = function(self.get(), left)
                if code >= 0:
                    return code
                if code not in _AGAIN or \
                        (left <= 0 and code == -errno.ETIMEDOUT):
                    raise make_error(code, sentence())

    def _settle(self, seconds: float | None) -> None:
        """Waits for a call that was left behind, and keeps how it ended for the next such call."""
        call = self._running
        if call is not None:
            if not call.done.wait(seconds):
                raise make_error(errno.EBUSY, "an interrupted call has not come back yet")
            self._running = None
            # Other ranks were late: they may be there by the next call.
            if call.once is not None and call.code != -errno.ETIMEDOUT:
                self._outcomes[call.once] = call

    def settle(self, seconds: float) -> None:
        """The same from outside; Busy if it does not come back in time."""
        with self.lock:
            self._settle(seconds)

    def long(self, function: Callable[..., int], *arguments: Any, once: Any = None,
             out: Any = None, timeout: float | None = None) -> int:
        """function(address, *arguments), which has a deadline of its own and cannot be cut into
        slices.

        It runs beside in the main thread, so that Ctrl-C is obeyed at once; the handle is busy
        until it has come back.

        Args:
            once: names a call that succeeds once. If one of that name was left behind by Ctrl-C or
                a timeout, this one waits for it, or is told how it has ended.
            out: a ctypes number that the call fills in: the result then.
            timeout: seconds, instead of the call's own deadline; it may be called again after it.
        """
        to_ms(timeout, "timeout")
        end, own = _end_of(timeout), timeout is None
        with self.lock:
            call = self._running
            if call is None or once is None or call.once != once:
                address, call = self.get(), None
                known = self._outcomes.pop(once, None)
                if known is not None:
                    return known.result()
            while True:
                if call is None:
                    call = _Call(once, out)
                    if own and threading.current_thread() is not threading.main_thread():
                        call.run(function, (address, *arguments))
                        return call.result()
                    self._running = call
                    call.start(function, (address, *arguments))
                if not call.done.wait(_left_until(end)):
                    raise make_error(errno.ETIMEDOUT, f"it has not come back in {timeout:g} s; "
                                     "call it again to wait for it")
                self._running = None
                if call.code != -errno.ETIMEDOUT or own or _left_until(end) == 0:
                    return call.result()
                address, call = self.get(), None

    def reconnect(self, function: Callable[[int, int], int], timeout: float | None) -> None:
        """function(address, timeout_ms) until a broker serves the socket.

        timeout: seconds, None: for ever.
        """
        to_ms(timeout, "reconnect")
        end = _end_of(timeout)
        with self.lock:
            if self._running is not None and self._running.once == "reconnect":
                self._settle(_left_until(end))
            before = self._outcomes.pop("reconnect", None)  # that Ctrl-C has left behind
        while True:
            left = _left_until(end)
            try:
                self.long(function, to_ms(left, "reconnect"), once="reconnect")
                return
            except Error as failure:
                if failure.code == errno.EISCONN and before is not None and before.code >= 0:
                    return
                # A socket may outlive its killed broker for some time: ECONNRESET.
                if failure.code not in (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET,
                                        errno.EEXIST) or left == 0:
                    raise
            time.sleep(_RETRY_S)

    def close(self, timeout: float | None = None, keep: Any = None) -> None:
        """Closes it; waits for what the library waits for. A second time is fine.

        Ctrl-C is obeyed, and a timeout raises: the closing goes on then, and `keep` is kept until
        it is over. What runs still is waited for there, for what it uses cannot be freed.
        """
        to_ms(timeout, "close")
        end = _end_of(timeout)
        left = _left_until(end)
        if not self.lock.acquire(timeout=-1 if left is None else left):
            raise make_error(errno.ETIMEDOUT, f"close: a call of another thread has not come back "
                             f"in {timeout:g} s")
        try:
            address, self.address = self.address, None
            if address is not None and not self._leave:
                self._closing = threading.Event()
                self._begin_closing(address, self._running, self._closing, keep)
            closing = self._closing
        finally:
            self.lock.release()
        if closing is not None and not closing.wait(_left_until(end)):
            why = "" if self._take_back is None else \
                ": the broker has not given the memory back, and may still write to it"
            raise make_error(errno.ETIMEDOUT, f"close: not over in {timeout:g} s{why}; it goes on")
        if self._not_freed is not None:
            raise self._not_freed
        if closing is not None:
            _kept.pop(closing, None)

    def _begin_closing(self, address: int, running: _Call | None, over: threading.Event,
                       keep: Any) -> None:
        def run() -> None:
            try:
                if running is not None:
                    running.done.wait()
                while self._take_back is not None and self._take_back(address) in _AGAIN:
                    pass  # it has waited
                code = self._close(address)
                if code is not None and code < 0:
                    self._not_freed = make_error(code, sentence())
                    _never_freed.append(keep)
            finally:
                over.set()

        # Not by the thread: what it lets go of may be tensors, and to be ended in the middle of
        # their destructors, with the interpreter, would end the process.
        for closed in [one for one in _kept if one.is_set()]:
            _kept.pop(closed, None)
        _kept[over] = keep
        threading.Thread(target=run, name="strew-close", daemon=True).start()

    def close_at_exit(self) -> None:
        """The same while the interpreter ends: there are no threads, and modules may be gone."""
        address, self.address = self.address, None
        if address is not None and self._running is None and not self._leave:
            self._close(address)

    def forked(self) -> None:
        """In the child: whoever had the lock, or was to come back, is not there."""
        idle = self._running is None and self._closing is None and self.lock.acquire(blocking=False)
        self._leave = self._leave or not idle
        self.lock = threading.RLock()
        self._running = self._closing = None


_handles: weakref.WeakSet[Handle] = weakref.WeakSet()
_kept: dict[threading.Event, Any] = {}  # by what is closing, until that is over
_never_freed: list[Any] = []  # what a broker did not give back, and may write to


_asking: weakref.WeakSet[Handle] = weakref.WeakSet()  # whose library's thread asks Python's code


def close_before_exit(handle: Handle) -> None:
    """A thread that wants the GIL of an interpreter that ends is ended, with the lock it has."""
    _asking.add(handle)


def _at_exit() -> None:
    for handle in list(_asking):
        handle.close_at_exit()


atexit.register(_at_exit)


def _after_fork() -> None:
    for handle in list(_handles):
        handle.forked()


os.register_at_fork(after_in_child=_after_fork)


class Closing:
    """What has a handle and is closed: by close(), at the end of `with`, or with the object."""

    _handle: Handle

    def close(self, timeout: float | None = None) -> None:
        """A second time is fine; so is an object whose making has failed."""
        handle = getattr(self, "_handle", None)
        if handle is not None:
            handle.close(timeout, vars(self))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if sys is None or sys.is_finalizing():
            if "_handle" in vars(self):
                self._handle.close_at_exit()
            return
        with contextlib.suppress(Error):
            Closing.close(self, DELETED_S)
