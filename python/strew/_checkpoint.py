"""Checkpoints in safetensors files: names, shapes and dtypes from their headers; values by mmap.

What `strew push` refuses is refused here too, by name (cli/safetensors.c, cli/checkpoint.c), as
layouts are proved against these bytes: what can be read in two ways proves nothing. But a folder
of several files needs no index, since engines load such.
"""

from __future__ import annotations

import errno
import json
import math
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ._errors import Error, InvalidArgument
from ._lib import MAX_DIMS

_HEADER_MAX = 100_000_000  # SAFETENSORS_HEADER_MAX; of an index too
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
           "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8,
           "U8": torch.uint8, "I16": torch.int16, "U16": torch.uint16, "I32": torch.int32,
           "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F64": torch.float64,
           "BOOL": torch.bool}

At = tuple[pathlib.Path, int, torch.dtype, tuple[int, ...]]  # file, offset in it, dtype, shape


def _bad(where: object, why: str, code: int = errno.EINVAL) -> InvalidArgument:
    return InvalidArgument(code, f"{where}: {why}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON takes the last of two alike, and others the first."""
    said = dict(pairs)
    if len(said) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidArgument(errno.EEXIST, f"{next(n for n in names if names.count(n) > 1)!r} is "
                              "there twice")
    return said


def _parse(path: pathlib.Path, what: str, text: bytes) -> dict[str, Any]:
    try:
        said = json.loads(text, object_pairs_hook=_once)
    except InvalidArgument as reason:
        raise _bad(path, f"{what}{reason.sentence}", reason.code) from None
    except (ValueError, RecursionError) as reason:
        raise _bad(path, f"{what}is not valid JSON: {reason}") from reason
    if not isinstance(said, dict):
        raise _bad(path, f"{what}is not a JSON object")
    return said


def _whole(value: Any) -> bool:
    """A JSON number that is a whole one, from 0 on."""
    return type(value) is int and 0 <= value < 1 << 63


def _read_tensor(name: str, said: Any, data_bytes: int) -> tuple[int, int, At]:
    """(begin, end, …) in the data; a ValueError says what is wrong."""
    if not name:
        raise ValueError("a tensor without a name")
    if not isinstance(said, dict):
        raise ValueError("its entry is not a JSON object")
    dtype, shape, offsets = (said.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str):
        raise ValueError("no dtype")
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}")
    if not isinstance(shape, list):
        raise ValueError("no shape")
    if len(shape) > MAX_DIMS:
        raise ValueError(f"{len(shape)} dimensions; at most {MAX_DIMS} are allowed")
    if not all(map(_whole, shape)):
        raise ValueError("a dimension that is not a whole number from 0 on")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise ValueError("data_offsets are not two whole numbers from 0 on")
    begin, end = offsets
    if begin > end:
        raise ValueError(f"data_offsets {offsets} end before they begin")
    if end > data_bytes:
        raise ValueError(f"data_offsets {offsets} lie outside the file, which has {data_bytes} "
                         "bytes of data")
    length = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != length:
        raise ValueError(f"data_offsets give it {end - begin} bytes, dtype and shape make {length}")
    return begin, end, (pathlib.Path(), begin, _DTYPES[dtype], tuple(shape))


def _check_cover(path: pathlib.Path, places: list[tuple[int, int, str]], data_bytes: int) -> None:
    """The format wants the data to be covered without a gap or an overlap."""
    at, before = 0, ""
    for begin, end, name in sorted(places):
        if begin < at:
            raise _bad(path, f"tensor {name} overlaps {before}")
        if begin > at:
            raise _bad(path, f"{begin - at} bytes before tensor {name} belong to no tensor")
        at, before = end, name
    if at != data_bytes:
        raise _bad(path, f"{data_bytes - at} bytes at the end of the file belong to no tensor")


def _read_header(path: pathlib.Path) -> tuple[bytes, int]:
    """The header, and how many bytes of data lie behind it."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            raw = file.read(8)
            if len(raw) < 8:
                raise _bad(path, f"{len(raw)} bytes are too few for a safetensors file")
            length = struct.unpack("<Q", raw)[0]
            if length > _HEADER_MAX:
                raise _bad(path, f"the header says that it is {length} bytes long; at most "
                           f"{_HEADER_MAX} are allowed (is this a safetensors file?)", errno.E2BIG)
            if length > size - 8:
                raise _bad(path, f"truncated: the header is {length} bytes long, the file only "
                           f"{size}")
            return file.read(length), size - 8 - length
    except OSError as reason:
        raise _cannot_open(path, reason) from reason


def _cannot_open(path: pathlib.Path, reason: OSError) -> Error:
    return Error(reason.errno or errno.EIO, f"{path}: cannot be opened: {reason.strerror}")


def _read_file(path: pathlib.Path) -> dict[str, At]:
    """All tensors of one file."""
    text, data_bytes = _read_header(path)
    header = _parse(path, "the header: ", text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, "__metadata__ is not a JSON object of strings")
    found, places = {}, []
    for name, said in header.items():
        try:
            begin, end, at = _read_tensor(name, said, data_bytes)
        except ValueError as reason:
            raise _bad(path, f"tensor {name}: {reason}") from None
        places.append((begin, end, name))
        found[name] = (path, 8 + len(text) + begin, *at[2:])
    _check_cover(path, places, data_bytes)
    return found


def _read_index(path: pathlib.Path) -> dict[str, At]:
    """All tensors of its shards, which are those that it names, each where it says."""
    try:
        if path.stat().st_size > _HEADER_MAX:
            raise _bad(path, f"at most {_HEADER_MAX} bytes are allowed", errno.E2BIG)
        text = path.read_bytes()
    except OSError as reason:
        raise _cannot_open(path, reason) from reason
    where = _parse(path, "the index: ", text).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise _bad(path, 'no "weight_map" that says which shard has which tensor')
    for name, shard in where.items():
        if not isinstance(shard, str):
            raise _bad(path, f"tensor {name}: its shard is not a string")
        # A checkpoint reads nothing outside its folder, whatever its index says.
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise _bad(path, f"tensor {name}: the shard {shard!r} is not the plain name of a file")
    found: dict[str, At] = {}
    for shard in sorted(set(where.values())):
        for name, at in _read_file(path.parent / shard).items():
            if name not in where:
                raise _bad(path, f"tensor {name} of {shard} is not named in the index")
            if name in found:
                raise _bad(path, f"tensor {name} is there twice, in {found[name][0].name} and in "
                           f"{shard}", errno.EEXIST)
            found[name] = at
    for name, shard in where.items():
        if name not in found:
            raise _bad(path, f"tensor {name} is missing: the index says in {shard}")
        if found[name][0].name != shard:
            raise _bad(path, f"tensor {name} is in {found[name][0].name}, the index says in "
                       f"{shard}")
    return found


def _read_folder(path: pathlib.Path) -> dict[str, At]:
    index, single = path / _INDEX, path / _SINGLE
    # A link that leads nowhere counts: its sentence is the better one.
    has_index, has_single = (one.exists() or one.is_symlink() for one in (index, single))
    if has_index and has_single:
        raise _bad(path, f"both {_INDEX} and {_SINGLE} are in it; name the one that is meant")
    if has_index:
        return _read_index(index)
    if has_single:
        return _read_file(single)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise Error(errno.ENOENT, f"{path}: neither {_INDEX} nor {_SINGLE} is in it")
    found: dict[str, At] = {}
    for file in files:
        for name, at in _read_file(file).items():
            if name in found:
                raise _bad(file, f"tensor {name} is there twice, in {found[name][0].name} too",
                           errno.EEXIST)
            found[name] = at
    return found


class Checkpoint(Mapping[str, torch.Tensor]):
    """Tensors by name. Opening reads the headers; a tensor is a view of the mapped file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._maps: dict[pathlib.Path, torch.Tensor] = {}
        path = pathlib.Path(path)
        if path.is_dir():
            self._at = _read_folder(path)
        elif path.name.endswith(".json"):
            self._at = _read_index(path)
        else:
            self._at = _read_file(path)
        if all(0 in at[3] for at in self._at.values()):
            raise _bad(path, "it has no data")

    def described(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name to (dtype, shape)."""
        return {name: (at[2], at[3]) for name, at in self._at.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        file, offset, dtype, shape = self._at[name]
        if file not in self._maps:
            self._maps[file] = torch.from_file(str(file), shared=False, size=file.stat().st_size,
                                               dtype=torch.uint8)
        size = dtype.itemsize
        count = torch.Size(shape).numel()
        raw = self._maps[file][offset:offset + count * size]
        if offset % size:
            raw = raw.clone()
        return raw.view(dtype).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A safetensors file, an index (.json), or a folder, as a mapping of tensors.

    Of a folder its model.safetensors.index.json or its model.safetensors is taken (both: refused),
    else all .safetensors in it. InvalidArgument, which names file and tensor, for whatever
    the format does not allow: a name twice, data with holes or overlaps, an index that is wrong.
    """
    return Checkpoint(path)
