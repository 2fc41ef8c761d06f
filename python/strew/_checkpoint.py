"""Checkpoints in safetensors files: names, shapes and dtypes from their headers; values by mmap."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ._errors import Error, InvalidArgument

_HEADER_MAX = 100 << 20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
           "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8,
           "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
           "F64": torch.float64, "BOOL": torch.bool}


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        if index.exists():
            path = index
        else:
            files = sorted(path.glob("*.safetensors"))
            if not files:
                raise Error(errno.ENOENT, f"{path}: there is no .safetensors file in it")
            return files
    if path.name.endswith(".json"):
        shards = set(json.loads(path.read_text())["weight_map"].values())
        return [path.parent / name for name in sorted(shards)]
    return [path]


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    with open(path, "rb") as file:
        raw = file.read(8)
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
        if not 2 <= length <= _HEADER_MAX:
            raise InvalidArgument(errno.EINVAL, f"{path}: this is no safetensors file")
        try:
            header = json.loads(file.read(length))
        except ValueError as reason:
            raise InvalidArgument(errno.EINVAL, f"{path}: its header is bad: {reason}") from reason
    header.pop("__metadata__", None)
    return header, 8 + length


class Checkpoint(Mapping[str, torch.Tensor]):
    """Tensors by name. Opening reads the headers; a tensor is a view of the mapped file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._at: dict[str, tuple[pathlib.Path, int, torch.dtype, tuple[int, ...]]] = {}
        self._maps: dict[pathlib.Path, torch.Tensor] = {}
        for file in _files(pathlib.Path(path)):
            header, base = _header(file)
            for name, said in header.items():
                if said["dtype"] not in _DTYPES:
                    raise InvalidArgument(errno.EINVAL, f"{file}: tensor {name} has dtype "
                                          f"{said['dtype']}, which is not supported")
                if name in self._at:
                    raise InvalidArgument(errno.EEXIST, f"{file}: tensor {name} is there twice")
                self._at[name] = (file, base + said["data_offsets"][0], _DTYPES[said["dtype"]],
                                  tuple(said["shape"]))

    def described(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name to (dtype, shape)."""
        return {name: (at[2], at[3]) for name, at in self._at.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        file, offset, dtype, shape = self._at[name]
        if file not in self._maps:
            self._maps[file] = torch.from_file(str(file), shared=False, size=file.stat().st_size,
                                               dtype=torch.uint8)
        size = torch.empty((), dtype=dtype).element_size()
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
    """A safetensors file, an index (.json), or a folder of one, as a mapping of tensors."""
    return Checkpoint(path)
