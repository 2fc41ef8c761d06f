"""The trainer's side: publishes, and has vLLM's engines take it in the right order."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, ClassVar

import torch

from .._control import Publisher, call_each
from .._errors import Error
from .._source import Source
from .._trainer import Report, Trainer
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
            self._publisher = Publisher(self._trainer, info.timeout)
        self._declared = False

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
                engine._each(lambda at: at.client.init_weight_transfer_engine(said))
                for failure in engine.failures.values():
                    raise failure
        except BaseException:
            engine.shutdown()
            raise
        return engine

    def send_weights(self, version: int | None = None) -> Report | None:
        """Publishes what the source has now, as the next version; None on ranks without a part.

        Engines that cannot take it are left with the version they had, running, and named in
        the report and in `failures`. Raises if none has it: NotCommitted, or what the engine said.
        An engine of which it is not known that it may run is left paused, until a later version.
        Whatever is raised (Ctrl-C too), the other engines run, and the next call is like any.
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
                return self._send(version)
            self._publisher.publish(version)
            try:
                report = self._publisher.report()
            except BaseException as failure:
                if self._publisher.drop(failure):
                    self.version = version
                raise
        self.version = version
        return report

    def _send(self, version: int) -> Report:
        self.failures = {}
        begun = self._left()  # the engines that are not as they were before, or may not be
        kept: set[int] | None = None  # those that have not got the version
        paused = updated = False
        try:
            # An engine whose broker is another one now must be with it before it is published.
            self._each(lambda at: at.client.start_weight_update())
            self._end(self.failures)  # some of their workers may have begun
            begun = self._left()
            self._raise_if_none_is_left()
            self._publisher.publish(version)
            paused = True
            self._each(lambda at: at.pause(self.info.pause))
            updated = True
            update = {"version": version, "timeout": self.info.timeout}
            self._each(lambda at: at.client.update_weights(update))
            kept = set(self.failures)
            report = self._publisher.report()
            self.version = version
            self._each(lambda at: at.finish(version))
            self._end(set(self.failures) - kept)
            self._each(lambda at: at.reset_prefix_cache())
            self._each(lambda at: at.resume())
            begun = [i for i in begun if i in kept]
            self._settle(begun)
        except BaseException as failure:
            kept = set(self.failures) if kept is None else kept
            self._settle(begun, resume=paused, reset=set(begun) - kept if updated else set())
            # Ranks count alike: what this one alone has seen counts where there is no other.
            seen = self._source.ranks == 1 and updated and bool(set(begun) - kept)
            if self._publisher.drop(failure) or seen:
                self.version = version
            cause = next(iter(self.failures.values()), None)
            raise failure from (None if cause is failure else cause)
        self._raise_if_none_is_left()
        return report

    def _settle(self, engines: Iterable[int], resume: bool = True,
                reset: Collection[int] = ()) -> None:
        """Engines that have not got the version, or of which it is not known, go on with what they
        have, if they may: their workers say so when an update is started and finished. Else they
        are left paused. reset: those that may have the version."""
        def settle(index: int) -> None:
            control = self._controls[index]
            try:
                _end(control)
                try:
                    control.client.start_weight_update()
                    control.client.finish_weight_update()
                except Exception:
                    _end(control)
                    raise
                if index in reset:
                    control.reset_prefix_cache()
                if resume:
                    control.resume()
            except Exception as failure:  # pylint: disable=broad-except
                logger.error("strew: engine %d is left paused: %s", index, failure)
        call_each({i: i for i in engines}, settle, {})

    def _end(self, engines: Iterable[int]) -> None:
        """No worker of theirs is in an update from here on."""
        def end(control: Control) -> None:
            with contextlib.suppress(OSError):
                _end(control)
        call_each({i: self._controls[i] for i in engines
                   if not _unreachable(self.failures[i])}, end, {})

    def _left(self) -> list[int]:
        return [i for i in range(len(self._controls)) if i not in self.failures]

    def _raise_if_none_is_left(self) -> None:
        if not self._left():
            raise next(iter(self.failures.values()))

    def _each(self, call: Callable[[Control], Any]) -> None:
        """Calls all engines at once. Those that fail are left out from then on."""
        call_each({i: self._controls[i] for i in self._left()}, call, self.failures)

    def shutdown(self) -> None:
        """Waits for lent memory, then disconnects. Engines keep what they have."""
        if self._trainer is not None:
            self._trainer.close()
            self._trainer = None


def _end(control: Control) -> None:
    """Ends an update in all workers that are in one, as vLLM would refuse to start the next. Where
    no step may run they do not finish it; but it ends when they fail in it, and there is no version
    0. Raises OSError where nobody answers."""
    try:
        control.client.finish_weight_update()
    except Exception as failure:  # pylint: disable=broad-except
        if _unreachable(failure):
            raise
        with contextlib.suppress(Exception):
            control.client.update_weights({"version": 0, "timeout": 0.0})


def _unreachable(failure: BaseException) -> bool:
    """Has nobody answered? An answer that something went wrong is an OSError too, of HTTP clients:
    urllib's has a code, requests' a response."""
    return (isinstance(failure, OSError) and not isinstance(failure, Error)
            and getattr(failure, "code", None) is None
            and getattr(failure, "response", None) is None)
