"""For trainers of transformers' kind, TRL's among them: publishes after each optimizer step.

    GRPOTrainer(model, ..., callbacks=[strew.callback.PublishCallback()])
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import transformers

from ._source import check_whole
from ._trainer import Report, Trainer

logger = logging.getLogger("strew.callback")


class _Publisher:
    """Publishes a module's parameters where they are."""

    def __init__(self, module: Any, model: str, socket: str | os.PathLike[str] | None,
                 timeout: float) -> None:
        self._timeout = timeout
        parameters = dict(module.named_parameters())
        check_whole(parameters)
        self._trainer = Trainer(model, socket=socket)
        try:
            self._trainer.declare(parameters)
        except BaseException:
            self._trainer.close()
            raise

    def send_weights(self, version: int) -> Report:
        """The parameters as they are now."""
        return self._trainer.publish(version, timeout=self._timeout)

    def shutdown(self) -> None:
        """Waits for lent memory, then disconnects."""
        self._trainer.close()


class PublishCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Publishes the model as version `start_version` + global step, on every rank.

    Args:
        connect: called with the model when training begins; returns what has send_weights(version),
            and shutdown() or close(): strew.vllm.StrewTrainerEngine or strew.sglang.EngineTrainer,
            which pause their engines. None: the model's parameters are published, and the engines
            let updates in by themselves (Agent.between_steps()).
        model, socket, timeout: without `connect`, as of strew.Trainer and its publish().
        start_version: the last one published, for a trainer that was started again.

    The parameters must keep their memory: where they have it for moments only (DeepSpeed's ZeRO-3)
    NotShareable is raised when training begins, by strew's own classes behind `connect` too. An
    update that nobody takes ends training: the exception is publish()'s.
    """

    def __init__(self, connect: Callable[[Any], Any] | None = None, *, model: str = "policy",
                 socket: str | os.PathLike[str] | None = None, timeout: float = 60.0,
                 start_version: int = 0) -> None:
        self._connect = connect or (lambda module: _Publisher(module, model, socket, timeout))
        self._sender: Any = None
        self._start = start_version
        self.report: Report | None = None  # of the last version

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Connects."""
        if self._sender is None:
            self._sender = self._connect(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Publishes: the optimizer has stepped, and the next rollout comes after this."""
        self.report = self._sender.send_weights(self._start + state.global_step)
        if self.report is not None and not self.report.committed:
            logger.warning("strew: version %d: %s: %s", self.report.version, self.report.outcome,
                           self.report.text)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Disconnects. Engines keep what they have."""
        sender, self._sender = self._sender, None
        if sender is not None:
            getattr(sender, "shutdown", getattr(sender, "close", lambda: None))()
