"""Host memory that the broker maps, without a copy in between: strew_host_alloc()."""

from __future__ import annotations

import ctypes
import errno
import math
import sys
import weakref
from typing import Any

from ._errors import InvalidArgument
from ._lib import check, lib
from ._tensors import DTYPE_NAMES, SIZES, dtype_number


def host_empty(shape: int | tuple[int, ...], dtype: Any = "float32") -> Any:
    """A zeroed array in memory that a broker can map.

    Args:
        shape: of the array, row-major.
        dtype: a ``torch.dtype`` gives a torch tensor; a NumPy dtype or a name gives a NumPy array
            ("bfloat16" and the 8-bit floats exist in torch only).

    The memory lives as long as any view of it. Close the agent or trainer that declared it before
    the last view goes (they keep what they were given).
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    number = dtype_number(dtype)
    count = math.prod(shape)
    if any(n < 0 for n in shape) or count * SIZES[number] >= 2**63:
        raise InvalidArgument(errno.EINVAL, f"host_empty: shape {shape}: lengths are 0 or more, "
                              "and bytes fewer than 2^63")
    length = max(1, count * SIZES[number])
    pointer = ctypes.c_void_p()
    check(lib.strew_host_alloc(length, ctypes.byref(pointer)))
    buffer = (ctypes.c_char * length).from_address(pointer.value or 0)
    weakref.finalize(buffer, lib.strew_host_free, pointer.value).atexit = False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, torch.dtype):
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(buffer, dtype=dtype, count=count).view(shape)
    import numpy  # pylint: disable=import-outside-toplevel
    flat: Any = numpy.frombuffer(buffer, dtype=DTYPE_NAMES[number],  # type: ignore[call-overload]
                                 count=count)
    return flat.reshape(shape)
