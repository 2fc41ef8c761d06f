"""Is a parameter, in live memory, what an update of the same checkpoint would write?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ._layout import LayoutParameter, Piece

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """As integers: NaNs and zeros of both signs compare as what they are."""
    return tensor.view(_BITS.get(tensor.element_size(), torch.int64))


def source_box(piece: Piece, tensor: torch.Tensor) -> torch.Tensor:
    """The elements of the tensor that a piece takes, in its box's shape."""
    box = tensor.reshape(piece.view)
    for dim, (start, extent) in enumerate(zip(piece.start, piece.extent)):
        box = box.narrow(dim, start, extent)
    return box


def target_box(piece: Piece, parameter: torch.Tensor) -> torch.Tensor:
    """The elements of the parameter that a piece writes, in its box's shape."""
    return parameter.as_strided(piece.extent, piece.stride,
                                parameter.storage_offset() + piece.offset)


def differs(parameter: LayoutParameter, tensors: Mapping[str, Any]) -> str:
    """Why the parameter is not what its pieces would write; "" if it is, bit for bit."""
    live = parameter.tensor.detach()
    for piece in parameter.pieces:
        if piece.tensor not in tensors:
            return f"the checkpoint has no tensor {piece.tensor} to prove it with"
        source = tensors[piece.tensor]
        if tuple(source.shape) != piece.shape:
            return f"tensor {piece.tensor} has shape {tuple(source.shape)} in the checkpoint"
        want = source_box(piece, source).to(device=live.device, dtype=live.dtype)
        have = target_box(piece, live)
        if not torch.equal(bits(want.contiguous()), bits(have.contiguous())):
            return (f"its live values are not those of tensor {piece.tensor}: the engine has "
                    "changed them after loading")
    return ""
