"""What an array is to strew: address, dtype, shape and strides, whoever made it.

Nothing here copies, and nothing here needs torch or NumPy: an object is asked by the protocols it
speaks. Whatever cannot be described exactly is refused.
"""

from __future__ import annotations

import ctypes
import errno
import sys
from typing import Any, NamedTuple

from ._errors import InvalidArgument, NotShareable
from ._lib import MAX_DIMS

# enum strew_dtype
DTYPES: dict[str, int] = {
    "float32": 1, "float16": 2, "bfloat16": 3, "float8_e4m3fn": 4, "float8_e5m2": 5, "int8": 6,
    "uint8": 7, "int16": 8, "uint16": 9, "int32": 10, "uint32": 11, "int64": 12, "uint64": 13,
    "float64": 14, "bool": 15,
}
DTYPE_NAMES: dict[int, str] = {number: name for name, number in DTYPES.items()}
SIZES: dict[int, int] = {1: 4, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1, 8: 2, 9: 2, 10: 4, 11: 4, 12: 8,
                         13: 8, 14: 8, 15: 1}
CASTABLE = frozenset((1, 2, 3))

_TYPESTR = {"f4": 1, "f2": 2, "f8": 14, "i1": 6, "u1": 7, "i2": 8, "u2": 9, "i4": 10, "u4": 11,
            "i8": 12, "u8": 13, "b1": 15}
_DLPACK = {(2, 32): 1, (2, 16): 2, (4, 16): 3, (0, 8): 6, (1, 8): 7, (0, 16): 8, (1, 16): 9,
           (0, 32): 10, (1, 32): 11, (0, 64): 12, (1, 64): 13, (2, 64): 14, (6, 8): 15,
           (10, 8): 4, (12, 8): 5}
_DLPACK_CUDA = (2, 13)
_DLPACK_HOST = (1, 3)

_torch_dtypes: dict[Any, int] = {}
kinds: dict[Any, tuple[int, int]] = {}  # (dtype, GPU or -1) by (dtype, device, layout), once seen
plain_types: set[type] = set()  # tensor types whose memory is what it seems


class Described(NamedTuple):
    """A strided array. shape and stride count elements; cuda is the GPU's index, -1 on the host.

    keep holds the memory, also when the object that it came from is given other memory.
    """

    data: int
    dtype: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    cuda: int
    keep: Any


_new_tuple = tuple.__new__


def dtype_number(dtype: Any) -> int:
    """enum strew_dtype of a torch or NumPy dtype, or of a name such as "bfloat16"."""
    known = _torch_dtypes.get(dtype)
    if known:
        return known
    name = getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
    name = {"half": "float16", "float": "float32", "double": "float64"}.get(name, name)
    number = DTYPES.get(name, 0)
    if not number and isinstance(dtype, type):
        number = DTYPES.get(dtype.__name__.rstrip("_"), 0)
    if not number:
        raise NotShareable(errno.ENOTSUP, f"dtype {dtype} is not supported")
    return number


def _torch() -> Any:
    """torch, if somebody has imported it."""
    torch = sys.modules.get("torch")
    if torch is not None and not _torch_dtypes and hasattr(torch, "uint8"):
        for name, number in DTYPES.items():
            if hasattr(torch, name):
                _torch_dtypes[getattr(torch, name)] = number
        plain_types.update((torch.Tensor, torch.nn.Parameter))
    return torch


def is_torch(value: Any) -> bool:
    """True for a torch tensor of any kind."""
    if type(value) in plain_types:
        return True
    torch = _torch()
    return torch is not None and isinstance(value, torch.Tensor)


def _check_torch(name: str, tensor: Any, torch: Any) -> None:
    """What a tensor type seen for the first time must be: memory, not a promise of it."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass
    kind = type(tensor)
    if is_traceable_wrapper_subclass(tensor) or "FakeTensor" in kind.__name__:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: a {kind.__name__} has no memory that "
                           "strew can describe")
    if kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        plain_types.add(kind)


def _kind(name: str, tensor: Any, torch: Any) -> tuple[int, int]:
    """(dtype, GPU or -1) of all tensors of one dtype, device and layout."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: only plain strided tensors are "
                           f"supported, not {tensor.layout}")
    device = tensor.device
    if device.type not in ("cpu", "cuda"):
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: it is on {device}, where strew cannot "
                           "reach it; CPU and CUDA memory are supported")
    dtype = _torch_dtypes.get(tensor.dtype)
    if dtype is None:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: dtype {tensor.dtype} is not supported")
    kind = (dtype, (device.index or 0) if device.type == "cuda" else -1)
    kinds[(tensor.dtype, device, tensor.layout)] = kind
    return kind


def _of_torch(name: str, tensor: Any) -> Described:
    kind = kinds.get((tensor.dtype, tensor.device, tensor.layout))
    if kind is None or type(tensor) not in plain_types:
        torch = _torch()
        _check_torch(name, tensor, torch)
        kind = _kind(name, tensor, torch)
    if tensor.is_neg():
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: a view that negates its memory")
    # Not by Described(), whose __new__ is Python's.
    return _new_tuple(Described, (tensor.data_ptr(), kind[0], tensor.shape, tensor.stride(),
                                  kind[1], tensor.untyped_storage()))


def _elements(name: str, strides: Any, size: int) -> tuple[int, ...]:
    if any(stride % size for stride in strides):
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: strides of {tuple(strides)} bytes are "
                           f"no multiples of an element's {size}")
    return tuple(stride // size for stride in strides)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, n = [], 1
    for length in reversed(shape):
        strides.append(n)
        n *= length
    return tuple(reversed(strides))


def _read_only(name: str) -> NotShareable:
    return NotShareable(errno.EROFS, f"tensor {name}: the array is read-only")


def _of_interface(name: str, value: Any, said: dict[str, Any], cuda: int,
                  writable: bool) -> Described:
    """__array_interface__ and __cuda_array_interface__, which differ in their name only."""
    typestr = said["typestr"]
    dtype = _TYPESTR.get(typestr[1:], 0)
    if not dtype and hasattr(value, "dtype"):
        dtype = DTYPES.get(getattr(value.dtype, "name", ""), 0)  # bfloat16 of ml_dtypes is "V2"
    big = sys.byteorder == "big"
    if not dtype or (typestr[0] == ("<" if big else ">") and SIZES[dtype] > 1):
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: dtype {typestr} is not supported")
    if said.get("mask") is not None or said.get("data") is None:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: a masked or dataless array")
    if writable and said["data"][1]:
        raise _read_only(name)
    shape = tuple(said["shape"])
    strides = said.get("strides")
    stride = _dense(shape) if strides is None else _elements(name, strides, SIZES[dtype])
    return Described(said["data"][0] or 0, dtype, shape, stride, cuda, value)


_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_driver: Any = None  # libcuda; False where there is none


def cuda_driver() -> Any:
    global _driver  # pylint: disable=global-statement
    if _driver is None:
        try:
            _driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            _driver = False
    return _driver


def _gpu_of(name: str, data: int) -> int:
    """The GPU that memory lies on: __cuda_array_interface__ does not say it, the driver does."""
    driver, ordinal = cuda_driver(), ctypes.c_int()
    if not data or not driver:
        return 0
    code = driver.cuPointerGetAttribute(ctypes.byref(ordinal), _DEVICE_ORDINAL,
                                        ctypes.c_uint64(data))
    if code:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: address {data:#x} is on no GPU of this "
                           f"process (CUDA error {code})")
    return ordinal.value


def stream_of(name: str, said: dict[str, Any]) -> int | None:
    """Of a __cuda_array_interface__: what its memory is to be used behind; None: nothing."""
    stream = said.get("stream")
    if stream is not None and (not isinstance(stream, int) or stream < 1):
        raise InvalidArgument(errno.EINVAL, f"tensor {name}: stream {stream!r} in its "
                              "__cuda_array_interface__; 1, 2 or a CUstream are allowed")
    return stream


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32),
                ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8),
                ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


class _DLVersioned(ctypes.Structure):
    """What DLPack 1 hands out."""

    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32),
                ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
                ("flags", ctypes.c_uint64), ("tensor", _DLTensor)]


_DLPACK_READ_ONLY, _DLPACK_COPIED = 1, 2  # flags


def _ask_dlpack(value: Any) -> Any:
    """A capsule: of DLPack 1, which says what is read-only, where the object knows it."""
    try:
        return value.__dlpack__(max_version=(1, 0))
    except TypeError:
        return value.__dlpack__()


def _from_capsule(name: str, capsule: Any, writable: bool) -> _DLTensor:
    pointer, is_valid = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_IsValid
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    is_valid.restype, is_valid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
    if not is_valid(capsule, b"dltensor_versioned"):
        return _DLTensor.from_address(pointer(capsule, b"dltensor"))
    versioned = _DLVersioned.from_address(pointer(capsule, b"dltensor_versioned"))
    if versioned.major != 1:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: DLPack {versioned.major} is not "
                           "supported")
    if versioned.flags & _DLPACK_COPIED:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: DLPack gives a copy of it")
    if writable and versioned.flags & _DLPACK_READ_ONLY:
        raise _read_only(name)
    return versioned.tensor


def _of_dlpack(name: str, value: Any, writable: bool) -> Described:
    try:
        capsule = _ask_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as reason:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: DLPack: {reason}") from reason
    tensor = _from_capsule(name, capsule, writable)
    dtype = _DLPACK.get((tensor.code, tensor.bits), 0) if tensor.lanes == 1 else 0
    if not dtype:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: DLPack type code {tensor.code}, "
                           f"{tensor.bits} bits, {tensor.lanes} lanes is not supported")
    if tensor.device_type not in _DLPACK_CUDA + _DLPACK_HOST:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: DLPack device type "
                           f"{tensor.device_type} is not supported")
    shape = tuple(tensor.shape[: tensor.ndim])
    stride = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _dense(shape)
    # The capsule, never consumed, keeps the memory.
    return Described((tensor.data or 0) + tensor.byte_offset, dtype, shape, stride,
                     tensor.device_id if tensor.device_type in _DLPACK_CUDA else -1,
                     (value, capsule))


_MEETINGS_MAX = 100_000  # differences of indices that are looked at


def _meets_itself(dims: list[tuple[int, int]]) -> bool | None:
    """True if two indices of (stride, length) dimensions are one element; None: it takes too long.

    They are if the strides, each times less than its length, either way, can add up to 0.
    """
    if any(step == 0 for step, _ in dims):
        return True
    dims = sorted(dims, reverse=True)
    reaches = [sum(step * (length - 1) for step, length in dims[k + 1:])
               for k in range(len(dims))]
    todo, seen = [(0, 0, False)], 0  # dimension, sum so far, whether the indices differ by now
    while todo:
        at, total, differ = todo.pop()
        if at == len(dims):
            if total == 0 and differ:
                return True
            continue
        step, length = dims[at]
        # Only as far as what is left can bring it back to 0.
        low = max(1 - length, -((total + reaches[at]) // step))
        high = min(length - 1, (reaches[at] - total) // step)
        seen += max(0, high - low + 1)
        if seen > _MEETINGS_MAX:
            return None
        todo += [(at + 1, total + i * step, differ or i != 0) for i in range(low, high + 1)]
    return False


def _check_strides(name: str, shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """No element twice, and each dimension steps over all of the smaller ones, which libstrew
    wants. Returns strides of which those of single-element dimensions are dense."""
    reach = 1
    dims = sorted((s, n) for s, n in zip(stride, shape) if n != 1)
    for step, length in dims:
        if step < reach:
            meets = step >= 0 and _meets_itself(dims)
            what = ("runs backwards" if step < 0 else "overlaps itself" if meets else
                    "is interleaved: its dimensions do not lie within each other, which strew does "
                    "not support" if meets is False else "overlaps itself or is interleaved")
            raise NotShareable(errno.ENOTSUP, f"tensor {name}: shape {shape} with strides {stride} "
                               f"{what}")
        reach += step * (length - 1)
    return tuple(d if n == 1 else s for s, n, d in zip(stride, shape, _dense(shape)))


def describe(name: str, value: Any, *, writable: bool = False) -> Described:
    """Describes a torch tensor, or what speaks an array interface or DLPack.

    Raises NotShareable where strew could not read (or, if writable, write) exactly its elements:
    an overlapping view, a negative stride, an unknown dtype, a device out of reach.
    """
    if type(value) in plain_types or is_torch(value):
        try:
            described = _of_torch(name, value)
        except (RuntimeError, ValueError) as reason:  # torch's own
            first = str(reason).split("\n", maxsplit=1)[0]
            raise NotShareable(errno.ENOTSUP, f"tensor {name}: torch does not say where and what "
                               f"it is: {first}") from reason
        if value.is_contiguous() and len(described.shape) <= MAX_DIMS:
            return described
    elif hasattr(value, "__cuda_array_interface__"):
        said = value.__cuda_array_interface__
        described = _of_interface(name, value, said, 0, writable)
        stream_of(name, said)
        gpu = _gpu_of(name, described.data)
        if gpu:
            described = described._replace(cuda=gpu)
    elif hasattr(value, "__array_interface__"):
        said = value.__array_interface__
        described = _of_interface(name, value, said, -1, writable)
    elif hasattr(value, "__dlpack__"):
        described = _of_dlpack(name, value, writable)
    else:
        raise InvalidArgument(errno.EINVAL, f"tensor {name}: a {type(value).__name__} is neither a "
                              "torch tensor nor an array (DLPack, __cuda_array_interface__, "
                              "__array_interface__)")
    if 0 in described.shape:
        return _check_dims(name, described)
    stride = _check_strides(name, described.shape, described.stride)
    return _check_dims(name, described._replace(stride=stride))


def _check_dims(name: str, described: Described) -> Described:
    if len(described.shape) > MAX_DIMS:
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: {len(described.shape)} dimensions, at "
                           f"most {MAX_DIMS} are supported")
    return described


class OneGpu:
    """All GPU memory of a trainer or agent is on one GPU, behind whose stream alone it works."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._name = ""
        self.index = -1  # -1: none so far

    def add(self, name: str, index: int) -> None:
        """Raises NotShareable for a second GPU. index: -1 on the host."""
        if index < 0 or index == self.index:
            return
        if self.index >= 0:
            raise NotShareable(errno.ENOTSUP, f"tensor {name} is on cuda:{index} and tensor "
                               f"{self._name} on cuda:{self.index}: {self._what} has tensors on "
                               "one GPU; use one for each GPU, in a process of its own")
        self._name, self.index = name, index


def address(value: Any) -> int:
    """Where its memory is now."""
    if is_torch(value):
        return int(value.data_ptr())
    return describe("?", value).data


def _check_order(name: str, value: Any) -> None:
    """torch sends shards to the ranks of a mesh's groups, which are sorted, and computes their
    offsets from coordinates in the mesh: two things where a mesh's ranks do not rise."""
    mesh = value.device_mesh
    coordinate = mesh.get_coordinate()
    for dim, placement in enumerate(value.placements):
        if placement.is_replicate():
            continue
        rank = sys.modules["torch"].distributed.get_rank(mesh.get_group(dim))
        if rank != coordinate[dim]:
            raise NotShareable(errno.ENOTSUP, f"tensor {name}: the ranks of its DeviceMesh do not "
                               f"rise along dimension {dim} (this one has place {coordinate[dim]} "
                               f"there, and is rank {rank} of its group), so that torch does not "
                               "say which shard is whose: make the mesh with its ranks in rising "
                               "order along each dimension, or declare_box() each shard")


_dtensor: Any = None


def local_box(name: str, value: Any) -> tuple[Any, tuple[int, ...], tuple[int, ...]] | None:
    """(local tensor, its start, global shape) of a DTensor; None for all else.

    A shard of a DTensor is a box of the tensor; nothing is gathered. What holds a sum in parts
    (Partial) is refused. On a rank that the mesh is without it is a box of nothing.
    """
    global _dtensor  # pylint: disable=global-statement
    if type(value) in plain_types:
        return None
    if _dtensor is None:
        _dtensor = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    if _dtensor is None or not isinstance(value, _dtensor):
        return None  # nn.Parameter around a DTensor is a DTensor itself
    from torch.distributed.tensor import Partial
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    if any(isinstance(placement, Partial) for placement in value.placements):
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: a DTensor with a Partial placement")
    if value.device_mesh.get_coordinate() is None:
        # Nothing of a scalar cannot be said in no dimensions: as of one element in one.
        whole = tuple(value.shape) or (1,)
        return value._local_tensor.new_empty((0,) * len(whole)), (0,) * len(whole), whole
    _check_order(name, value)
    shape, start = compute_local_shape_and_global_offset(value.shape, value.device_mesh,
                                                         value.placements)
    local = value._local_tensor  # itself: an alias would seem to be somebody else who holds it
    if tuple(local.shape) != tuple(shape):
        raise NotShareable(errno.ENOTSUP, f"tensor {name}: its shard is {tuple(local.shape)}, but "
                           f"{tuple(shape)} was computed for {value.placements}")
    return local, tuple(start), tuple(value.shape)
