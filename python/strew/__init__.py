"""strew: freshly trained weights into running inference workers.

    trainer = strew.Trainer(model="policy")
    trainer.declare(module)
    report = trainer.publish(version=step)

    agent = strew.Agent(model="policy", rank=tp_rank, size=tp_size)
    agent.register(strew.record_layout(module, load_weights, names))
    with agent.paused():
        ...

Each talks to this node's broker (``strewd``) over a Unix socket, by libstrew. Importing the
package imports neither torch nor NumPy. A Trainer or Agent may be used by several threads, one
call at a time. Calls that wait release the GIL and obey Ctrl-C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._agent import Agent, Event
from ._errors import (
    BrokerLost,
    BrokerMissing,
    Busy,
    Dirty,
    Error,
    InvalidArgument,
    LoaderFailed,
    Moved,
    NotCommitted,
    NotShareable,
    Refused,
    Timeout,
)
from ._host import host_empty
from ._layout import Layout, LayoutParameter, Piece
from ._lib import VERSION as __version__
from ._programs import program
from ._trainer import GroupReport, Publishing, Report, Trainer

if TYPE_CHECKING:
    from ._checkpoint import open_checkpoint
    from ._record import record_layout

__all__ = [
    "Agent", "BrokerLost", "BrokerMissing", "Busy", "Dirty", "Error", "Event", "GroupReport",
    "InvalidArgument", "Layout", "LayoutParameter", "LoaderFailed", "Moved", "NotCommitted",
    "NotShareable", "Piece", "Publishing", "Refused", "Report", "Timeout", "Trainer",
    "__version__", "host_empty", "open_checkpoint", "program", "record_layout",
]


def __getattr__(name: str) -> Any:
    """What needs torch, or an engine, is imported when it is asked for."""
    if name == "record_layout":
        from ._record import record_layout  # pylint: disable=import-outside-toplevel
        return record_layout
    if name == "open_checkpoint":
        from ._checkpoint import open_checkpoint  # pylint: disable=import-outside-toplevel
        return open_checkpoint
    if name in ("callback", "sglang", "vllm"):
        import importlib  # pylint: disable=import-outside-toplevel
        return importlib.import_module(f"strew.{name}")
    raise AttributeError(f"module 'strew' has no attribute {name!r}")
