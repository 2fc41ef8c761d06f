"""Whether torch tensors lie where they did, asked of thousands before each update.

torch.Tensor.data_ptr() is 45 ns a tensor and more, nearly all of it the call from Python. torch has
the same question in its stable C calls (torch/csrc/inductor/aoti_torch/c/shim.h), which take
handles: a tenth of that, by one call of libstrew for all of them. Where a torch lacks the calls,
data_ptr() is asked.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from typing import Any

from ._lib import first_moved

_Array = Any  # of ctypes.c_void_p


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
        self._pointer = ctypes.pythonapi.PyCapsule_GetPointer
        self._pointer.restype = ctypes.c_void_p
        self._pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        # By how much a handle raises sys.getrefcount() and _use_count(): it depends on the torch.
        one = torch.empty(0, device="cpu")
        before = sys.getrefcount(one), one._use_count()
        handles = self.hold([one])
        self.references = sys.getrefcount(one) - before[0]
        self.uses = one._use_count() - before[1]
        self.let_go([handles])

    def hold(self, tensors: list[Any]) -> _Array:
        """Handles of them: until they are let go they own the tensors, as C++ does."""
        return (ctypes.c_void_p * len(tensors))(
            *[self._pointer(capsule, None) for capsule in self._make(tensors)])

    def let_go(self, batches: list[_Array]) -> None:
        """Deletes what hold() has made, and empties the list."""
        while batches:
            for handle in batches.pop():
                self._delete(handle)


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

    From the first look on a tensor has an owner more: torch.utils.swap_tensors(), which wants
    to be the only one, refuses it until release().
    """

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self._were: list[int] = []
        self._lock = threading.Lock()
        self._shim: _Shim | None = None
        self._held = 0  # of the tensors, so many have handles
        self._handles: list[_Array] = []
        self._before: list[_Array] = []  # where those lay

    def add(self, tensor: Any, address: int) -> None:
        """Notes where it lies."""
        self.tensors.append(tensor)
        self._were.append(address)

    def extra(self) -> tuple[int, int]:
        """What handles add to a tensor's sys.getrefcount() and _use_count(), after moved()."""
        return (self._shim.references, self._shim.uses) if self._shim is not None else (0, 0)

    def moved(self) -> list[int]:
        """The indexes of those that lie elsewhere now."""
        if not self.tensors or self._all_as_before():
            return []
        now = map(sys.modules["torch"].Tensor.data_ptr, self.tensors)
        return [i for i, (a, b) in enumerate(zip(now, self._were)) if a != b]

    def release(self) -> None:
        """Lets go of the handles, unless another thread is looking; a later look makes them anew.

        It does not wait: after fork() nobody may be there to give the lock back.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._held = 0
                self._before.clear()
                if self._shim is not None:
                    self._shim.let_go(self._handles)
            finally:
                self._lock.release()

    def _all_as_before(self) -> bool:
        """False also where torch cannot be asked so."""
        with self._lock:
            shim = self._shim
            if shim is None:
                shim = self._shim = _find_shim()
                if shim is None:
                    return False
                weakref.finalize(self, shim.let_go, self._handles).atexit = False
            new = self.tensors[self._held:]
            if new:
                self._handles.append(shim.hold(new))
                self._before.append((ctypes.c_void_p * len(new))(*self._were[self._held:]))
                self._held += len(new)
            return all(first_moved(shim.address_of, handles, before, len(before)) == len(before)
                       for handles, before in zip(self._handles, self._before))
