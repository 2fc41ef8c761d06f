"""Is what an engine's updates leave as it is padding, or something that the trainer lacks?"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ._engine import Described, MadeUp, Values
from ._errors import InvalidArgument, NotShareable
from ._layout import Layout
from ._record import record_layout
from ._reload import Reloader

logger = logging.getLogger("strew")


def as_sent(checkpoint: Described, described: Described) -> Described:
    """The checkpoint's tensors; what the trainer has too as the trainer sends it."""
    return {name: described.get(name, said) for name, said in checkpoint.items()}


def accepts_partial(layout: Layout, module: torch.nn.Module, load_weights: Callable[[Any], Any],
                    described: Described, own: Values | MadeUp | None) -> bool:
    """Whether updates may leave elements as they are: padding that no tensor has.

    Args:
        layout: of `module`, by its `load_weights` and the trainer's `described` tensors.
        own: all tensors of the engine's own checkpoint (see as_sent()); None: nobody knows them.

    InvalidArgument, by name, for what else no tensor fills: whole parameters, and parts of fused
    ones, whose tensor the trainer lacks or calls otherwise. They would keep what they were loaded
    with.
    """
    if layout.unfilled:
        raise InvalidArgument(errno.EINVAL, "no tensor of the trainer fills "
                              f"{_few(layout.unfilled)} ({len(layout.unfilled)} parameters of this "
                              "engine)")
    partial = any(one.uncovered for one in layout.parameters.values())
    none_lacks = own is not None and own.described.keys() <= described.keys()
    if none_lacks or not (partial or layout.reloader):
        return partial
    try:
        # Of `layout` alone it is not known what fills the parameters that go by the loader.
        mine = record_layout(module, load_weights, described)
    except NotShareable:
        if layout.reloader is not None:
            _refuse_taken(layout.reloader, described, own)
        return partial
    uncovered = {name: one.uncovered for name, one in mine.parameters.items() if one.uncovered
                 and (name in layout.parameters or name in layout.loader)}
    if own is None:
        _refuse_unknown(module, mine, uncovered)
    elif uncovered:
        _refuse_lacking(uncovered, record_layout(module, load_weights, own.described), described)
    return partial


def _refuse_lacking(uncovered: dict[str, int], whole: Layout, described: Described) -> None:
    """An element is padding if the engine's own checkpoint does not fill it either."""
    lacking = []
    for name, count in uncovered.items():
        filled = whole.parameters.get(name)
        if filled is None or filled.uncovered < count:
            tensors = {piece.tensor for piece in filled.pieces} if filled else set()
            lacking.append(f"{name} lacks {_few(sorted(tensors - described.keys())) or 'tensors'}")
    if lacking:
        raise InvalidArgument(errno.EINVAL, "the trainer's tensors fill parameters of this engine "
                              f"in part: {_few(lacking, '; ')} ({len(lacking)} parameters). Send "
                              "these too, by the names that they have in the engine's checkpoint")


def _refuse_unknown(module: torch.nn.Module, mine: Layout, uncovered: dict[str, int]) -> None:
    """With no checkpoint at hand only that is padding which the engine's own module says is."""
    unknown = [f"{name} ({count} of {mine.parameters[name].tensor.numel()} elements)"
               for name, count in uncovered.items()
               if count > _vocabulary_padding(module, name, mine.parameters[name].tensor)]
    if unknown:
        raise InvalidArgument(errno.EINVAL, "the trainer's tensors fill parameters of this engine "
                              f"in part: {_few(unknown)}. Without a checkpoint strew cannot tell "
                              "padding from a tensor that the trainer lacks, or calls otherwise: "
                              "have one where the engine's model path points (its headers will do)")


def _vocabulary_padding(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> int:
    """Elements that vLLM's and SGLang's embeddings have behind this worker's rows."""
    rows = getattr(module.get_submodule(name.rpartition(".")[0]), "shard_indices", None)
    if rows is None or not tensor.dim() or tensor.shape[0] != rows.num_elements_padded:
        return 0
    padding = rows.num_elements_padded - rows.num_org_elements - rows.num_added_elements
    return int(padding) * (tensor.numel() // tensor.shape[0])


class _Taken(TorchDispatchMode):
    """Which of these tensors a loader takes values from."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], watched: set[str]) -> None:
        super().__init__()
        self._tensors, self._watched = tensors, watched
        self._given: dict[int, tuple[Any, str]] = {}  # storages, kept while they are looked for
        self.names: set[str] = set()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors, for the loader: copies, as it may keep what it is given, or change it."""
        for name in self._tensors:
            tensor = self._tensors[name].clone()
            if name in self._watched:
                storage = tensor.untyped_storage()
                self._given[storage._cdata] = storage, name
            yield name, tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable or not any(r.alias_info for r in func._schema.returns):
            for one in tree_leaves((args, kwargs)):
                if isinstance(one, torch.Tensor):
                    given = self._given.get(one.untyped_storage()._cdata)
                    self.names |= {given[1]} if given is not None else set()
        return func(*args, **kwargs)


def _refuse_taken(reloader: Reloader, described: Described, own: Values | MadeUp | None) -> None:
    """Of a loader that cannot be followed: nothing may be lacking of which it takes values.

    What it fills may lie where nobody sees it. The engine loads its own checkpoint once more, which
    also mends what the rehearsal without those tensors has left there.
    """
    if own is None or not described.keys() <= own.described.keys():
        logger.warning("strew: this engine's loader cannot be followed, and there is no checkpoint "
                       "with the trainer's names: it is not known whether they fill all of it")
        return
    taken = _Taken(own, set(own) - set(described))
    with taken:
        reloader.run(taken.weights())
    if taken.names:
        raise InvalidArgument(errno.EINVAL, "the trainer's tensors fill this engine in part: it "
                              f"lacks {_few(sorted(taken.names))} ({len(taken.names)} tensors), "
                              "which the engine's loader takes. Send these too")


def _few(names: list[str], comma: str = ", ") -> str:
    return comma.join(names[:4]) + (comma + "..." if len(names) > 4 else "")
