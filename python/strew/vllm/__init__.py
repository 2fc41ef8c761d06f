"""strew as a weight transfer backend of vLLM.

    LLM(model, weight_transfer_config=WeightTransferConfig(backend="strew"))

    trainer = WeightTransferTrainerFactory.trainer_init(
        strew.vllm.StrewTrainerInitInfo(rank=rank), client=client, source=ModuleSource(module))
    trainer.send_weights()

vLLM finds register() by the entry point vllm.general_plugins. Importing this module imports vLLM
only when a class of it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._extension import WorkerExtension
from ._interface import found, register

if TYPE_CHECKING:
    from ._client import LLMClient
    from ._trainer import StrewTrainerEngine, StrewTrainerInitInfo
    from ._worker import StrewEngine

__all__ = ["LLMClient", "StrewEngine", "StrewTrainerEngine", "StrewTrainerInitInfo",
           "WorkerExtension", "found", "register"]

_WHERE = {"LLMClient": "_client", "StrewEngine": "_worker", "StrewTrainerEngine": "_trainer",
          "StrewTrainerInitInfo": "_trainer"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'strew.vllm' has no attribute {name!r}")
    import importlib  # pylint: disable=import-outside-toplevel
    if name.startswith("StrewTrainer"):
        register()  # a trainer's process loads no plug-ins of vLLM
    return getattr(importlib.import_module(f"strew.vllm.{_WHERE[name]}"), name)
