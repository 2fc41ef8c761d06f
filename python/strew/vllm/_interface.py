"""Which of vLLM's interfaces of weight transfer is there: they have changed between releases."""

from __future__ import annotations

import errno
import inspect
from typing import Any, NamedTuple

from .._errors import Error

SUPPORTED = ("strew knows the interface of vLLM 0.25 to 0.33 (seen to work: 0.25.1, 0.32.0); for "
             "older ones there is worker_extension_cls=\"strew.vllm.WorkerExtension\"")

# What StrewEngine has for each abstract method that vLLM has had; trainer_send_weights until 0.27.
_ENGINE = {"init_transfer_engine", "start_weight_update", "finish_weight_update",
           "receive_weights", "shutdown", "trainer_send_weights"}
_TRAINER = {"trainer_init", "send_weights"}


class Found(NamedTuple):
    """What this vLLM has. engine: a factory for workers whose engines get the model and are told
    of an update's start and end; trainer: one for trainers."""

    version: str
    engine: bool
    trainer: bool


def _arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def found() -> Found:
    """Looks at the classes, not at the version's number. ImportError where there is no vLLM."""
    import vllm
    version = getattr(vllm, "__version__", "of an unknown version")
    try:
        from vllm.distributed.weight_transfer import base, factory
        abstract = base.WeightTransferEngine.__abstractmethods__
        engine = (
            {"config", "vllm_config", "device", "model"} <= _arguments(
                base.WeightTransferEngine.__init__)
            and {"start_weight_update", "finish_weight_update"} <= abstract <= _ENGINE
            and "load_weights" not in _arguments(base.WeightTransferEngine.receive_weights)
            and hasattr(factory.WeightTransferEngineFactory, "register_engine"))
    except (ImportError, AttributeError):
        return Found(version, False, False)
    try:
        trainer = (engine and base.TrainerWeightTransferEngine.__abstractmethods__ <= _TRAINER
                   and {"init_info", "client", "source"} <= _arguments(
                       factory.WeightTransferTrainerFactory.trainer_init))
    except AttributeError:
        trainer = False
    return Found(version, engine, trainer)


def refuse(have: Found) -> Error:
    """For whoever asks for what is not there."""
    return Error(errno.ENOTSUP, f"vLLM {have.version} has another interface of weight transfer "
                 f"than strew has been written for: {SUPPORTED}")


class Unsupported:
    """Registered in vLLM's factory where the interface is another one: says so when it is used."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise refuse(found())


def register() -> None:
    """Puts backend "strew" into both of vLLM's factories; called in each process of vLLM's."""
    try:
        from vllm.distributed.weight_transfer import factory
    except ImportError:
        return  # before 0.16: there is WorkerExtension
    have = found()
    engines = factory.WeightTransferEngineFactory
    if "strew" not in engines._registry:
        where = ("strew.vllm._worker", "StrewEngine") if have.engine else (
            "strew.vllm._interface", "Unsupported")
        engines.register_engine("strew", *where)
    if have.trainer:
        trainers = factory.WeightTransferTrainerFactory
        if "strew" not in trainers._registry:
            trainers.register_engine("strew", "strew.vllm._trainer", "StrewTrainerEngine")
