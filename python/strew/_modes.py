"""What is different around a loader while it is followed: indices, and thread pools."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def _is_list(index: Any) -> bool:
    """A list of indices or an array of NumPy's, whose scalars are numbers."""
    if isinstance(index, (list, range)):
        return len(index) > 0
    return hasattr(index, "__array_interface__") and getattr(index, "ndim", 0) > 0


class IndicesStay(TorchFunctionMode):
    """Indices keep their values: torch would make them on the stand-ins' device, without data.

    look: called with what hands out its numbers without an operation that the follower would see.
    """

    def __init__(self, look: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._look = look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if _is_list(i) else i for i in index)
            args = (args[0], index, *args[2:])
        elif func in (torch.arange, torch.tensor) and \
                torch.device(kwargs.get("device") or "cpu").type == "meta":
            kwargs = {**kwargs, "device": "cpu"}
        elif func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__):
            self._look(args[0])
        return func(*args, **kwargs)


@contextlib.contextmanager
def threads_inline() -> Iterator[None]:
    """What this thread gives to a thread pool is done at once, and so is followed."""
    real, here = ThreadPoolExecutor.submit, threading.get_ident()

    def submit(self: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here:
            return real(self, function, *args, **kwargs)
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as failure:  # pylint: disable=broad-except
            future.set_exception(failure)
        return future

    ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
    try:
        yield
    finally:
        ThreadPoolExecutor.submit = real  # type: ignore[method-assign]
