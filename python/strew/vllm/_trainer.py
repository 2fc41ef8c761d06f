"""The trainer's side: publishes, and has vLLM's engines take it in the right order."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from .._errors import BrokerLost, Error, NotCommitted
from .._source import Source
from .._trainer import Publishing, Report, Trainer
from ._client import Control
from ._interface import found, refuse

try:
    from vllm.distributed.weight_transfer import base
except ImportError:  # before 0.16
    base = None

logger = logging.getLogger("strew.vllm")

# Before 0.27 vLLM has neither: the same classes then stand on their own.
_InitBase: Any = getattr(base, "TrainerInitInfo", object)
_EngineBase: Any = getattr(base, "TrainerWeightTransferEngine", object)


@dataclasses.dataclass(kw_only=True)
class StrewTrainerInitInfo(_InitBase):  # type: ignore[misc]
    """How a trainer's rank publishes.

    rank, size: of this process among the trainer's ranks; size None: torch.distributed's.
    model: the name under which the trainer publishes. start_version: the last one published, for a
    trainer that was started again. socket: of this node's broker; None: $STREW_SOCKET.
    engine_socket: of the engines' nodes, if it is another. checkpoint: what the engines have
    loaded, if that is not their model's path. apply: "staged" or "direct". pause: "keep" (requests
    stop and go on), "wait" or "abort", vLLM's modes. timeout: seconds for an update.
    """

    backend: ClassVar[str] = "strew"
    rank: int = 0
    size: int | None = None
    model: str = "policy"
    start_version: int = 0
    socket: str | None = None
    engine_socket: str | None = None
    checkpoint: str | None = None
    apply: str = "staged"
    pause: str = "keep"
    timeout: float = 60.0


def _size(said: int | None) -> int:
    if said is not None:
        return said
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_initialized() else 1


class StrewTrainerEngine(_EngineBase):  # type: ignore[misc]
    """trainer_init(), then send_weights() after each step, on every rank of the trainer."""

    init_info_cls = StrewTrainerInitInfo

    def __init__(self, info: StrewTrainerInitInfo, clients: Sequence[Any], source: Any) -> None:
        self.info = info
        self.is_sender = info.rank == 0
        self.source = source
        self.client = clients[0] if len(clients) == 1 else list(clients)
        self.version = info.start_version
        self.failures: dict[int, Exception] = {}
        self._controls = [Control(one) for one in clients] if self.is_sender else []
        size = _size(info.size)
        self._source = Source(source, info.rank, size)
        self._trainer: Trainer | None = None
        if self._source.publishes:
            self._trainer = Trainer(info.model, rank=info.rank, size=self._source.ranks,
                                    socket=info.socket)
        self._declared = self._lost = False

    @classmethod
    def trainer_init(cls, init_info: StrewTrainerInitInfo, *, client: Any,
                     source: Any = None) -> StrewTrainerEngine:
        """On every rank. The sender (rank 0) has the engines register their parameters.

        client: one of vLLM's weight sync clients, or a list of them, one for each engine.
        source: vLLM's ModuleSource or any other WeightSource; a module or state_dict is fine too.
        """
        have = found()
        if not have.engine:
            raise refuse(have)
        return cls.connect(init_info, client=client, source=source)

    @classmethod
    def connect(cls, init_info: StrewTrainerInitInfo, *, client: Any,
                source: Any) -> StrewTrainerEngine:
        """The same for engines that WorkerExtension serves, whatever vLLM the trainer has."""
        if source is None:
            raise ValueError("strew needs a source: ModuleSource(module), or the module itself")
        clients = list(client) if isinstance(client, (list, tuple)) else [client]
        engine = cls(init_info, clients, source)
        try:
            if engine.is_sender:
                said = {"model": init_info.model, "tensors": engine._source.described,
                        "checkpoint": init_info.checkpoint, "apply": init_info.apply,
                        "socket": init_info.engine_socket}
                engine._each(lambda at: at.client.init_weight_transfer_engine(said), every=True)
        except BaseException:
            engine.shutdown()
            raise
        return engine

    def send_weights(self, version: int | None = None) -> Report | None:
        """Publishes what the source has now, as the next version; None on ranks without a part.

        Engines that cannot take it are left with the version they had, running, and named in
        the report and in `failures`. Raises if none has it: NotCommitted, or what the engine said.
        An engine of which it is not known that it may run is left paused.
        """
        version = self.version + 1 if version is None else version
        self._source.fill()
        report = None
        if self._trainer is not None:
            if not self._declared:
                self._source.declare(self._trainer)
                self._trainer.seal()
                self._declared = True
            if self.is_sender:
                return self._send(self._trainer, version)
            report = self._take(self._trainer, self._publish(self._trainer, version))
        self.version = version
        return report

    def _publish(self, trainer: Trainer, version: int) -> Publishing:
        if self._lost:
            trainer.reconnect(self.info.timeout)
            self._lost = False
        try:
            return trainer.publish_async(version, timeout=self.info.timeout)
        except BrokerLost:
            trainer.reconnect(self.info.timeout)
            return trainer.publish_async(version, timeout=self.info.timeout)

    def _take(self, trainer: Trainer, handle: Publishing) -> Report:
        try:
            report = handle.report(self.info.timeout + 30.0)
        except BrokerLost:
            self._lost = True
            raise
        if not any(group.outcome == "committed" for group in report.groups):
            raise NotCommitted(report, report.text or "no engine is registered")
        return report

    def _send(self, trainer: Trainer, version: int) -> Report:
        self.failures = {}
        # An engine whose broker is another one now must be with it before anything is published.
        self._each(lambda at: at.client.start_weight_update())
        self._raise_if_none_is_left()
        started = self._left()
        handle = self._publish(trainer, version)
        self._each(lambda at: at.pause(self.info.pause))
        update = {"version": version, "timeout": self.info.timeout}
        self._each(lambda at: at.client.update_weights(update))
        try:
            report = self._take(trainer, handle)
        except Error as failure:
            for index in started:
                self._settle(index)
            raise failure from next(iter(self.failures.values()), None)
        self.version = version
        for index in set(started) - set(self._left()):
            self._settle(index)
        self._each(lambda at: at.finish(version))
        self._each(lambda at: at.reset_prefix_cache())
        self._each(lambda at: at.resume())
        self._raise_if_none_is_left()
        return report

    def _settle(self, index: int) -> None:
        """An engine that has not got the version goes on with the old one, if it may: its workers
        say so when an update is started and finished. Else it is left paused."""
        client = self._controls[index].client
        with contextlib.suppress(Exception):
            client.finish_weight_update()  # of workers that have not failed
        try:
            client.start_weight_update()
            client.finish_weight_update()
            self._controls[index].resume()
        except Exception as failure:  # pylint: disable=broad-except
            logger.error("strew: engine %d is left paused: %s", index, failure)

    def _left(self) -> list[int]:
        return [i for i in range(len(self._controls)) if i not in self.failures]

    def _raise_if_none_is_left(self) -> None:
        if not self._left():
            raise next(iter(self.failures.values()))

    def _each(self, call: Callable[[Control], Any], every: bool = False) -> None:
        """Calls all engines at once. Those that fail are left out from then on; every: raises."""
        left = self._left()
        if len(left) > 1:
            with concurrent.futures.ThreadPoolExecutor(len(left)) as pool:
                ended = list(pool.map(lambda i: _outcome(call, self._controls[i]), left))
        else:  # perhaps in this process, whose threads have devices of their own
            ended = [_outcome(call, self._controls[i]) for i in left]
        for index, failure in zip(left, ended):
            if failure is None:
                continue
            if every or not isinstance(failure, Exception):
                raise failure
            logger.warning("strew: engine %d: %s", index, failure)
            self.failures[index] = failure

    def shutdown(self) -> None:
        """Waits for lent memory, then disconnects. Engines keep what they have."""
        if self._trainer is not None:
            self._trainer.close()
            self._trainer = None


def _outcome(call: Callable[[Control], Any], control: Control) -> BaseException | None:
    try:
        call(control)
    except BaseException as failure:  # pylint: disable=broad-except
        return failure
    return None
