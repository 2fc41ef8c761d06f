"""Whether torch tensors lie where they did, asked of thousands before each update.

torch.Tensor.data_ptr() is 45 ns a tensor and more, nearly all of it the call from Python. torch has
the same question in its stable C calls (torch/csrc/inductor/aoti_torch/c/shim.h), which take
handles: a tenth of that, by one call of libstrew for all of them. Where a torch lacks the calls,
and for a few tensors, data_ptr() is asked.

A handle owns its tensor as C++ does. The garbage collector cannot look through it: a trainer that a
declared tensor leads to, by an attribute or a hook, is not collected before it is closed.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import operator
import sys
import weakref
from typing import Any

from ._lib import first_moved

FEW = 512  # less than so many tensors are asked by data_ptr(): handles are not worth it


class _Shim:
    """torch's calls for handles; raises something if this torch has none."""

    def __init__(self, torch: Any) -> None:
        # A symbol is looked up in what the extension module depends on, too. The GIL is kept: no
        # other thread may give a tensor other memory while it is asked where it lies.
        calls = ctypes.PyDLL(torch._C.__file__)
        self.address_of = ctypes.cast(calls.aoti_torch_get_data_ptr, ctypes.c_void_p)
        self.delete = calls.aoti_torch_delete_tensor_object
        self.delete.argtypes = [ctypes.c_void_p]
        self.make = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors  # in capsules
        self.pointer = ctypes.PyDLL(None).PyCapsule_GetPointer
        self.pointer.restype = ctypes.c_void_p
        self.pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        # By how much a handle raises sys.getrefcount() and _use_count(): it depends on the torch.
        one = torch.empty(0, device="cpu")
        before = sys.getrefcount(one), one._use_count()
        held = Handles(self, [one], [one.data_ptr()])
        self.adds = sys.getrefcount(one) - before[0], one._use_count() - before[1]
        del held
        if (sys.getrefcount(one), one._use_count()) != before or self.adds[1] != 1:
            raise RuntimeError("a handle does not own one reference")


_callbacks: list[Any] = []  # of all Handles that there were; some hundred bytes each


class Handles:
    """Handles of some tensors, which are deleted when nobody refers to this any more.

    They are made, noted and deleted by C alone: where no step of Python's is in between, no
    signal's handler is, and no Ctrl-C can lose one or delete one twice.
    """

    def __init__(self, shim: _Shim, tensors: list[Any], were: list[int]) -> None:
        capsules: list[Any] = [None]
        # When it is called: pops until None is popped, takes the pointer out of each, deletes it.
        pointers = map(shim.pointer, iter(capsules.pop, None), itertools.repeat(None))
        delete_all = functools.partial(functools.reduce, operator.is_, map(shim.delete, pointers))
        _callbacks.append(weakref.ref(self, delete_all))
        capsules.extend(itertools.chain.from_iterable(map(shim.make, (tensors,))))
        self.count = len(tensors)
        self._address_of = shim.address_of
        self._handles = (ctypes.c_void_p * self.count)(
            *map(shim.pointer, itertools.islice(capsules, 1, None), itertools.repeat(None)))
        self._were = (ctypes.c_void_p * self.count)(*were)

    def all_as_before(self) -> bool:
        """Do all lie where they did? False also if torch does not say it."""
        return first_moved(self._address_of, self._handles, self._were, self.count) == self.count


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
        self._held: tuple[Handles, ...] = ()  # one behind another, of the first so many

    def add(self, tensor: Any, address: int) -> None:
        """Notes where it lies."""
        self.tensors.append(tensor)
        self._were.append(address)

    def moved(self) -> tuple[list[int], tuple[Handles, ...], tuple[int, int]]:
        """The indexes of those that lie elsewhere now, and what was used to see it.

        While the caller keeps the handles, they add as much as the third says to each tensor's
        sys.getrefcount() and _use_count(), whatever other threads do.
        """
        shim = _find_shim() if len(self._were) >= FEW else None
        if shim is None:
            return self.ask_each(), (), (0, 0)
        held, n = self._held, len(self._were)
        known = sum(handles.count for handles in held)
        if known < n:
            held += (Handles(shim, self.tensors[known:n], self._were[known:n]),)
            self._held = held
        same = all(handles.all_as_before() for handles in held)
        return [] if same else self.ask_each(), held, shim.adds

    def release(self) -> None:
        """Lets go of the handles; a later look makes them anew."""
        self._held = ()

    def ask_each(self) -> list[int]:
        """The same by data_ptr(), which holds nothing of torch."""
        if not self._were:
            return []
        now = list(map(sys.modules["torch"].Tensor.data_ptr, self.tensors))
        return [] if now == self._were else [
            i for i, (a, b) in enumerate(zip(now, self._were)) if a != b]
