"""Whether torch tensors lie where they did, asked of thousands before each update.

torch.Tensor.data_ptr() is 45 ns a tensor and more, nearly all of it the call from Python. torch has
the same question in its stable C calls (torch/csrc/inductor/aoti_torch/c/shim.h), which take
handles: a tenth of that, by one call of libstrew for all of them. Where a torch lacks the calls,
and for a few tensors, data_ptr() is asked.

A handle owns its tensor as C++ does, which the garbage collector cannot look through. So they are
let go when a full collection begins and nobody has looked since the one before: what is in a cycle
with its own trainer goes with the second collection at the latest.
"""

from __future__ import annotations

import collections
import ctypes
import gc
import itertools
import sys
import threading
import weakref
from typing import Any

from ._lib import first_moved


class _Shim:
    """Handles of tensors, and what is asked of them; raises something if this torch has none."""

    def __init__(self, torch: Any) -> None:
        # A symbol is looked up in what the extension module depends on, too. The GIL is kept: no
        # other thread may give a tensor other memory while it is asked where it lies.
        calls = ctypes.PyDLL(torch._C.__file__)
        self.address_of = ctypes.cast(calls.aoti_torch_get_data_ptr, ctypes.c_void_p)
        self._delete = calls.aoti_torch_delete_tensor_object
        self._delete.argtypes = [ctypes.c_void_p]
        self._make = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors
        self._pointer = ctypes.PyDLL(None).PyCapsule_GetPointer
        self._pointer.restype = ctypes.c_void_p
        self._pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        # By how much a handle raises sys.getrefcount() and _use_count(): it depends on the torch.
        one = torch.empty(0, device="cpu")
        capsules: list[Any] = []
        before = sys.getrefcount(one), one._use_count()
        self.hold([one], capsules)
        self.references = sys.getrefcount(one) - before[0]
        self.uses = one._use_count() - before[1]
        self.let_go(capsules)
        if (one._use_count(), self.uses) != (before[1], 1):
            raise RuntimeError("a handle is not what it was")

    # What follows is done by C alone, without a step of Python's between making (or taking from the
    # list) and noting (or deleting): Ctrl-C can lose no handle, and delete none twice.

    def hold(self, tensors: list[Any], capsules: list[Any]) -> None:
        """Appends their handles. Until they are let go they own the tensors."""
        capsules.extend(itertools.chain.from_iterable(map(self._make, (tensors,))))

    def let_go(self, capsules: list[Any]) -> None:
        """Deletes what hold() has made, and empties the list."""
        while capsules:
            taken = iter(capsules.pop, None)
            pointers = map(self._pointer, taken, itertools.repeat(None))
            try:
                collections.deque(map(self._delete, pointers), maxlen=0)
            except IndexError:  # the list is empty
                pass

    def pointers(self, capsules: list[Any]) -> Any:
        """An array of them, for C."""
        return (ctypes.c_void_p * len(capsules))(
            *map(self._pointer, capsules, itertools.repeat(None)))


FEW = 512  # less than so many tensors are asked by data_ptr(): handles are not worth it

_shim: _Shim | None = None
_looked = False


def _find_shim() -> _Shim | None:
    global _shim, _looked  # pylint: disable=global-statement
    torch = sys.modules.get("torch")
    if torch is not None and not _looked:
        try:
            _shim = _Shim(torch)
        except Exception:  # pylint: disable=broad-except
            _shim = None  # the calls to make handles are not public: whatever they have become
        _looked = True
    return _shim


class Addresses:
    """Torch tensors, and where each lay when it was added.

    Where they are not few, each has an owner more from the first look on: swap_tensors(), of
    torch.utils, wants to be the only one, and refuses it until release().
    """

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self._were: list[int] = []
        self._lock = threading.Lock()
        self._shim: _Shim | None = None
        self._capsules: list[Any] = []  # of the first so many tensors
        self._arrays: tuple[Any, Any] | None = None  # their handles and where they lay, for C
        self._used = False  # since the last full collection
        self.releases = 0  # so many times handles were let go

    def add(self, tensor: Any, address: int) -> None:
        """Notes where it lies."""
        self.tensors.append(tensor)
        self._were.append(address)

    def moved(self) -> tuple[list[int], tuple[int, int] | None]:
        """The indexes of those that lie elsewhere now, and what handles add to each tensor.

        That is to its sys.getrefcount() and its _use_count(); None if it cannot be told, as another
        thread (or, after fork() or in a signal's handler, nobody) is about to change it.
        """
        if len(self.tensors) < FEW:
            return self._ask_each(), (0, 0)
        if not self._lock.acquire(blocking=False):
            return self._ask_each(), None
        try:
            shim = self._shim = self._shim or _find_shim()
            if shim is None:
                return self._ask_each(), (0, 0)
            added = shim.references, shim.uses
            return ([] if self._all_as_before(shim) else self._ask_each()), added
        finally:
            self._lock.release()

    def release(self) -> None:
        """Lets go of the handles, unless another thread looks; a later look makes them anew."""
        if self._lock.acquire(blocking=False):
            try:
                self._arrays = None
                self.releases += 1
                if self._shim is not None:
                    self._shim.let_go(self._capsules)
            finally:
                self._lock.release()

    def release_if_unused(self) -> None:
        """release(), if there was no look since the last time that this was asked."""
        if not self._used:
            self.release()
        self._used = False

    def _ask_each(self) -> list[int]:
        if not self.tensors:
            return []
        now = map(sys.modules["torch"].Tensor.data_ptr, self.tensors)
        return [i for i, (a, b) in enumerate(zip(now, self._were)) if a != b]

    def _all_as_before(self, shim: _Shim) -> bool:
        self._used = True
        if not self._capsules:
            _keep_in_view(self, shim)
        n = len(self._were)
        if len(self._capsules) < n:
            shim.hold(self.tensors[len(self._capsules):n], self._capsules)
        if self._arrays is None or len(self._arrays[1]) < n:
            self._arrays = shim.pointers(self._capsules), (ctypes.c_void_p * n)(*self._were[:n])
        handles, before = self._arrays
        return first_moved(shim.address_of, handles, before, n) == n


_with_handles: weakref.WeakSet[Addresses] = weakref.WeakSet()


def _before_collection(phase: str, info: dict[str, int]) -> None:
    if phase == "start" and info["generation"] == 2:
        for one in list(_with_handles):
            one.release_if_unused()


def _keep_in_view(addresses: Addresses, shim: _Shim) -> None:
    """Its handles are let go with it, and when they are not used."""
    if addresses not in _with_handles:
        _with_handles.add(addresses)
        weakref.finalize(addresses, shim.let_go, addresses._capsules).atexit = False
    if _before_collection not in gc.callbacks:
        gc.callbacks.append(_before_collection)
