"""libstrew, through ctypes.

ctypes and not an extension module: one wheel then serves every CPython, and nothing has to be
compiled against Python's headers. What is called once for each tensor is filled in by one
``struct.pack_into``, so that a declaration stays under 10 microseconds.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._errors import Error, make_error

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_DIMS = 6
SLICE_MS = 100  # a call that waits comes up for air (and for Ctrl-C) this often
_RETRY_S = 0.05  # between looks for a broker that serves the socket again

c_u32, c_u64, c_int = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int
c_char_p, c_void_p = ctypes.c_char_p, ctypes.c_void_p


class AgentOptions(ctypes.Structure):
    _fields_ = [("socket", c_char_p), ("model", c_char_p), ("replica", c_u32), ("part", c_u32),
                ("member", c_u32), ("members", c_u32), ("gate", c_int), ("apply", c_int),
                ("partial", c_int), ("serve_thread", c_int), ("timeout_ms", c_int)]


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
    "strew_agent_close": (None, [c_void_p]),
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
# What only reads a page keeps the GIL: to give it back and take it again would cost more.
peek = ctypes.PyDLL(lib._name, handle=lib._handle).strew_agent_peek
peek.restype, peek.argtypes = c_int, [c_void_p, c_void_p, c_void_p]
VERSION: str = lib.strew_version().decode()


def sentence() -> str:
    """Of the calling thread's last failed call."""
    return (lib.strew_error() or b"").decode(errors="replace")


def check(code: int) -> int:
    """Returns what a call returned, or raises what it said."""
    if code < 0:
        raise make_error(code, sentence())
    return code


class Handle:
    """A strew_agent or strew_trainer: its address, its lock, and the calls that wait.

    The library wants one thread at a time on a handle; the lock sees to that, and is given back
    between the slices of a wait. Calls release the GIL.
    """

    def __init__(self, close: Callable[[int], None]) -> None:
        self.address: int | None = None
        self.lock = threading.RLock()
        self._close = close
        self._running: threading.Event | None = None  # set when a long call has come back

    def get(self) -> int:
        """The address, for a call that does not wait; the lock is held by the caller."""
        if self._running is not None:
            self._settle(0.0)
        if self.address is None:
            raise make_error(errno.EINVAL, "it is closed already")
        return self.address

    def call(self, function: Callable[..., int], *arguments: Any) -> int:
        """One call that does not wait."""
        with self.lock:
            code: int = function(self.get(), *arguments)
            return code if code >= 0 else check(code)

    def wait(self, function: Callable[[int, int], int], timeout: float | None) -> int:
        """A call function(address, timeout_ms), in slices. timeout: seconds, None: for ever."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = SLICE_MS if end is None else int(1000 * (end - time.monotonic()))
            with self.lock:
                code = function(self.get(), max(0, min(SLICE_MS, left)))
                if code >= 0:
                    return code
                if code not in (-errno.ETIMEDOUT, -errno.EINTR) or \
                        (left <= 0 and code == -errno.ETIMEDOUT):
                    raise make_error(code, sentence())

    def _settle(self, seconds: float) -> None:
        """Waits for a call that Ctrl-C has left behind."""
        if self._running is not None:
            if not self._running.wait(seconds):
                raise make_error(errno.EBUSY, "an interrupted call has not come back yet")
            self._running = None

    def settle(self, seconds: float) -> None:
        """The same from outside; Busy if it does not come back in time."""
        with self.lock:
            self._settle(seconds)

    def long(self, function: Callable[..., int], *arguments: Any) -> int:
        """A call with a deadline of its own, which cannot be cut into slices.

        In the main thread it runs beside, so that Ctrl-C is obeyed at once; the handle is busy
        until it has come back.
        """
        with self.lock:
            if self.address is not None or self._running is not None:
                self.get()
            if threading.current_thread() is not threading.main_thread():
                return check(function(*arguments))
            result: list[Any] = []
            self._running = done = threading.Event()

            def run() -> None:
                code = function(*arguments)
                result.extend((code, sentence() if code < 0 else ""))
                done.set()

            threading.Thread(target=run, name="strew-call", daemon=True).start()
            done.wait()
            self._running = None
        if result[0] < 0:
            raise make_error(result[0], result[1])
        return int(result[0])

    def reconnect(self, function: Callable[[int, int], int], timeout: float) -> None:
        """function(address, timeout_ms) until a broker serves the socket; timeout: seconds."""
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            with self.lock:
                address = self.get()
            try:
                self.long(function, address, max(1, int(1000 * left)))
                return
            except Error as failure:
                # A socket may outlive its killed broker for some time: ECONNRESET.
                if failure.code not in (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET,
                                        errno.EEXIST) or left <= 0:
                    raise
            time.sleep(_RETRY_S)

    def close(self) -> None:
        """Closes it; waits for what the library waits for. A second time is fine."""
        with self.lock:
            try:
                self._settle(60.0)
            except Error:
                return  # it still runs: what it uses cannot be freed
            address, self.address = self.address, None
            if address is not None:
                self._close(address)


class Closing:
    """What has a handle and is closed: by close(), at the end of `with`, or with the object."""

    _handle: Handle

    def close(self) -> None:
        """A second time is fine; so is an object whose making has failed."""
        handle = getattr(self, "_handle", None)
        if handle is not None:
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
