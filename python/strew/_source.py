"""What a trainer's side declares for an engine: a module's own memory, or copies of a stream."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ._engine import write_described
from ._errors import InvalidArgument, NotShareable
from ._host import host_empty
from ._trainer import Trainer, strip_prefixes


def _weights(source: Any) -> Mapping[str, Any] | None:
    """The tensors themselves, of a module, a mapping, or vLLM's ModuleSource."""
    module = getattr(source, "_module", None) if type(source).__name__ == "ModuleSource" else source
    if isinstance(module, torch.nn.Module):
        return {strip_prefixes(name): tensor for name, tensor in module.named_parameters()}
    if isinstance(module, Mapping):
        return {strip_prefixes(name): tensor for name, tensor in module.items()}
    return None


def check_whole(weights: Mapping[str, Any]) -> None:
    """Raises NotShareable for DeepSpeed's ZeRO-3, between whose steps parameters are empty: an
    empty tensor is nothing to declare, so that they would be left out in silence."""
    for name, tensor in weights.items():
        if hasattr(tensor, "ds_id"):
            raise NotShareable(errno.ENOTSUP, f"tensor {name}: DeepSpeed's ZeRO-3 gives it memory "
                               "for moments only; gather each tensor, and publish them in parts "
                               "(Trainer.declare_parts())")


class Source:
    """Declares once, then fill() before each publish.

    Of a module (also FSDP2's) or a mapping each rank declares what it holds, in place. Any other
    source of vLLM's makes whole tensors as it is iterated, a collective of all ranks: rank 0 keeps
    a copy of each, as much memory again as the model.
    """

    def __init__(self, source: Any, rank: int, size: int) -> None:
        self._source, self._rank = source, rank
        weights = _weights(source)
        self.in_place = weights is not None
        self.ranks = size if self.in_place else 1
        self._weights: Mapping[str, Any] = weights or {}
        self._copies: dict[str, torch.Tensor] = {}
        if weights is not None:
            check_whole(weights)
            self.described = write_described(weights)
            return
        held = getattr(source, "held_names", None)
        metadata = source.metadata() if callable(source.metadata) else source.metadata
        if (held is not None and held() is not None) or any(
                getattr(one, "owners", None) is not None for one in metadata):
            raise InvalidArgument(errno.ENOTSUP, f"{type(source).__name__}: each rank holds "
                                  "another part of the tensors; give the module itself, whose "
                                  "shards are declared where they are")
        self.described = write_described({one.name: one for one in metadata})

    @property
    def publishes(self) -> bool:
        """Does this rank declare anything?"""
        return self.in_place or self._rank == 0

    def declare(self, trainer: Trainer) -> None:
        """Declares all. fill() comes first where tensors are copied."""
        if self.in_place:
            trainer.declare(self._weights)
        else:
            trainer.declare(self._copies)

    def fill(self) -> None:
        """Copies what the source makes now. All ranks call it."""
        if self.in_place:
            return
        seen = 0
        for name, tensor in self._stream():
            seen += 1
            if self._rank != 0:
                continue
            if name not in self._copies:
                self._copies[name] = _like(tensor)
            self._copies[name].copy_(tensor.detach())
        if seen != len(self.described):
            raise InvalidArgument(errno.EINVAL, f"{type(self._source).__name__} made {seen} "
                                  f"tensors, its metadata name {len(self.described)}")

    def _stream(self) -> Iterator[tuple[str, torch.Tensor]]:
        full: Iterable[tuple[str, torch.Tensor]] = (
            self._source.iter_full() if hasattr(self._source, "iter_full") else self._source)
        return iter(full)


def _like(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return host_empty(tuple(tensor.shape), tensor.dtype)  # type: ignore[no-any-return]
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
