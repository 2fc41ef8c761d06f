"""strew as a custom weight loader of SGLang.

    Engine(model_path=..., custom_weight_loader=["strew.sglang.load"])

    trainer = strew.sglang.EngineTrainer([engine], source=module)  # or a server's URL
    trainer.send_weights()

SGLang has load() called in each of its schedulers, between two steps, whenever it is told to update
weights with that name as load_format. What comes with the call is one empty tensor, whose name says
what to do: the weights come by the broker. Importing this module imports neither SGLang nor torch.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._control import Publisher, call_each
from ._errors import Dirty, Error, InvalidArgument, LoaderFailed, NotCommitted, Timeout

if TYPE_CHECKING:
    from ._engine import Place, Receiver
    from ._trainer import Report

LOADER = "strew.sglang.load"
_MARK = "strew:"
logger = logging.getLogger("strew.sglang")

_receivers: weakref.WeakKeyDictionary[Any, Receiver] = weakref.WeakKeyDictionary()
_places: weakref.WeakKeyDictionary[Any, dict[str | None, Place]] = weakref.WeakKeyDictionary()


def load(model: Any, named_tensors: Sequence[tuple[str, Any]]) -> None:
    """What SGLang calls. An exception ends its scheduler, so Dirty or LoaderFailed is raised if no
    step may run, and nothing else; whoever publishes learns the rest from the report, as the old
    weights stay. A request that is no good is an error in the log. To "sleep" returns only when the
    parameters' memory may go."""
    for name, _ in named_tensors:
        do = ""
        try:
            if not name.startswith(_MARK):
                raise InvalidArgument(errno.EINVAL, f"{LOADER} takes no tensors, but {name} was "
                                      "sent: use strew.sglang.EngineTrainer")
            said = json.loads(name.removeprefix(_MARK))
            do = said.get("do")
            _do(model, **said)
        except (Dirty, LoaderFailed):
            raise
        except Exception as reason:  # pylint: disable=broad-except
            receiver = _receivers.get(model)
            if receiver is not None and do != "init":
                receiver.finish()
            logger.error("strew: %s: the weights are as they were: %s", do or "a request",
                         reason if isinstance(reason, Error)
                         else f"{type(reason).__name__}: {reason}")


def _do(model: Any, do: str, **said: Any) -> None:
    if do == "init":
        _init(model, **said)
        return
    receiver = _receivers.get(model)
    if receiver is None:
        raise InvalidArgument(errno.EINVAL, f"{do} came before init, or init has failed")
    if do == "prepare":
        receiver.prepare()
        receiver.finish()
    elif do == "update":
        receiver.receive(**said)
    elif do == "sleep":
        _sleep(receiver)
    elif do == "wake":
        receiver.wake()
    else:
        raise InvalidArgument(errno.EINVAL, f"{do}: this strew knows no such call")


def _sleep(receiver: Receiver) -> None:
    """SGLang lets the memory go when load() has returned, and ends the scheduler if it raises:
    where the broker hangs neither is wanted, so this waits until it goes on or has ended."""
    while True:
        try:
            receiver.sleep()
            return
        except Timeout as late:
            logger.error("strew: sleep: waiting, as this memory cannot be let go of yet: %s", late)
        except Error as reason:
            raise Dirty(errno.EUCLEAN, f"the broker does not give the parameters back: {reason}"
                        ) from reason


def _init(model: Any, name: str, replica: int, tensors: list[list[Any]], checkpoint: str | None,
          apply: str, socket: str | None, timeout: float, path: str | None = None) -> None:
    """Registers the parameters; a second time looks whether they are.

    checkpoint: what the engine has loaded; None: random weights. path: of its model.
    """
    from ._agent import Agent
    from ._engine import Receiver, read_described
    place = _find_place(model, socket)
    if model in _receivers:
        _receivers[model].prepare()
        _receivers[model].finish()
        return
    layout, partial = _layout(model, read_described(tensors), checkpoint, path)
    receiver = Receiver(layout, lambda: Agent(
        name, replica=replica, part=place.part, rank=place.rank, size=place.size, apply=apply,
        partial=partial, socket=socket, timeout=timeout), _synchronize, timeout)
    receiver.register()
    _receivers[model] = receiver
    logger.info("strew: %s, registered as replica %d part %d, %d of %d on this node",
                layout.status(), replica, *place[1:])


def _find_place(model: Any, socket: str | None) -> Place:
    """All workers find theirs together, the first time that they are told of that socket: later it
    is kept, as those that have registered since do not come here with the others."""
    from ._engine import find_place
    places = _places.setdefault(model, {})
    if socket not in places:
        world, part = _groups()
        places[socket] = find_place(world, 0, part, socket)
    return places[socket]


def _groups() -> tuple[Any, int]:
    """SGLang's group of all workers of this engine, and its pipeline stage."""
    try:
        from sglang.srt.runtime_context import get_parallel
        return get_parallel().world_group, get_parallel().pp_group.rank_in_group
    except (ImportError, AttributeError):  # before 0.5.2x
        from sglang.srt.distributed.parallel_state import get_pp_group, get_world_group
        return get_world_group(), get_pp_group().rank_in_group


def _synchronize() -> None:
    import torch
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _layout(model: Any, described: Any, checkpoint: str | None, path: str | None) -> Any:
    """Also whether updates may leave elements as they are. What SGLang changes after loading is
    refused: it runs its own hook at an update's end, and there is no telling here whether it has.
    """
    import torch

    from ._engine import MadeUp, Values, find_checkpoint, find_described
    from ._padding import accepts_partial, as_sent
    from ._record import record_layout
    values: Mapping[str, Any]
    own: Any
    if checkpoint is None:  # random weights: nobody misses them
        named = find_described(path) if path is not None else None
        own = MadeUp(as_sent(named, described)) if named is not None else None
        values = MadeUp(described)
        with torch.no_grad():
            model.load_weights(list(values.items()))
    else:
        loaded = find_checkpoint(checkpoint)
        own = Values(loaded, as_sent(loaded.described(), described))
        values = Values(loaded, described)
    layout = record_layout(model, model.load_weights, described, prove=values)
    return layout, accepts_partial(layout, model, model.load_weights, described, own)


def _tensors(do: str, said: dict[str, Any], host: bool = False) -> list[tuple[str, Any]]:
    """What load() is sent: an empty tensor, whose memory need not be shared with anybody."""
    import torch
    from torch.multiprocessing import reductions
    # Where SGLang has patched how tensors are pickled, only a GPU's can be.
    patched = hasattr(reductions, "_reduce_tensor_original") and torch.cuda.is_available()
    tensor = torch.empty(0, device="cuda" if patched and not host else "cpu")
    return [(_MARK + json.dumps({"do": do, **said}), tensor)]


def pickled(tensors: list[tuple[str, Any]]) -> bytes:
    """As SGLang's MultiprocessingSerializer does it, whether its patch is there or not."""
    import io
    from multiprocessing.reduction import ForkingPickler

    import torch
    from torch.multiprocessing import reductions
    reduce = getattr(reductions, "_reduce_tensor_original", reductions.reduce_tensor)
    buffer = io.BytesIO()
    pickler: Any = ForkingPickler(buffer)
    pickler.dispatch_table[torch.Tensor] = reduce  # the table is this pickler's own
    pickler.dump(tensors)
    return buffer.getvalue()


class _Engine:
    """sglang.Engine in this process. It runs no step while it is called."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def path(self) -> tuple[str, bool]:
        """Of its model, and whether it has loaded that: not so if its weights are random."""
        args = self._engine.server_args
        return args.model_path, not str(args.load_format).endswith("dummy")

    def call(self, do: str, **said: Any) -> None:
        """load() in each scheduler."""
        tensors = _tensors(do, said)
        sessions = hasattr(self._engine, "begin_weight_update")  # from 0.5.2x on
        if sessions:
            _check(self._engine.begin_weight_update())
        try:
            _check(self._engine.update_weights_from_tensor(tensors, load_format=LOADER,
                                                           flush_cache=False))
        finally:
            if sessions:
                _check(self._engine.end_weight_update())

    def pause(self) -> None:
        """Nothing."""

    def resume(self) -> None:
        """Nothing."""

    def flush(self) -> None:
        """SGLang's own."""
        _check(self._engine.flush_cache())

    def label(self, version: int) -> None:
        """An Engine has no call for it."""

    def memory(self, what: str, tags: list[str] | None) -> None:
        """release_memory_occupation, resume_memory_occupation."""
        getattr(self._engine, what)(tags=tags)


class _Server:
    """An SGLang server, by its URL."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._timeout = url.rstrip("/"), timeout
        said = self._get("get_server_info")
        self._ranks = int(said.get("tp_size", 1))
        self._path = said["model_path"], not str(said.get("load_format")).endswith("dummy")

    def _send(self, path: str, body: dict[str, Any] | None) -> Any:
        import urllib.request
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}/{path}", data=data,
                                         headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self._timeout) as answer:
            said = answer.read()
        try:
            return json.loads(said)
        except ValueError:
            return None  # some answer in plain words

    def _get(self, path: str) -> Any:
        return self._send(path, None)

    def _post(self, path: str, **body: Any) -> Any:
        return self._send(path, body)

    def _optional(self, path: str, **body: Any) -> None:
        """What older servers have not."""
        import urllib.error
        try:
            _check(self._post(path, **body))
        except urllib.error.HTTPError as failure:
            if failure.code != 404:
                raise

    def path(self) -> tuple[str, bool]:
        """Of its model, and whether it has loaded that: not so if its weights are random."""
        return self._path

    def call(self, do: str, **said: Any) -> None:
        """load() in each scheduler."""
        import base64
        payload = base64.b64encode(pickled(_tensors(do, said, host=True))).decode()
        self._optional("begin_weight_update")
        try:
            _check(self._post("update_weights_from_tensor", load_format=LOADER, flush_cache=False,
                              serialized_named_tensors=[payload] * self._ranks))
        finally:
            self._optional("end_weight_update")

    def pause(self) -> None:
        """Requests go back to the queue: their cache is computed again, with the new weights."""
        self._post("pause_generation", mode="retract")

    def resume(self) -> None:
        """They go on."""
        self._post("continue_generation")

    def flush(self) -> None:
        """SGLang's own."""
        self._post("flush_cache")

    def label(self, version: int) -> None:
        """What the server says its weights are."""
        self._optional("update_weight_version", new_version=str(version), abort_all_requests=False)

    def memory(self, what: str, tags: list[str] | None) -> None:
        """release_memory_occupation, resume_memory_occupation."""
        self._post(what, tags=tags)


def _check(said: Any) -> None:
    """SGLang's answers are (success, message), a dict or an object with these, or None."""
    if said is None:
        return
    if isinstance(said, tuple):
        success, message = said[:2]
    elif isinstance(said, dict):
        success, message = said.get("success", True), said.get("message", "")
    else:
        success, message = getattr(said, "success", True), getattr(said, "message", "")
    if not success:
        raise Error(errno.ECANCELED, f"SGLang: {message}")


class EngineTrainer:
    """A trainer's rank, and (on rank 0) the engines that take its weights.

    Args:
        engines: sglang.Engine objects, or URLs of servers; as replicas they are numbered from
            `replica` on.
        source: a module (FSDP2's shards are declared where they are) or a state_dict.
        model: the name under which it is published. rank, size: among the trainer's ranks.
        checkpoint: what the engines have loaded, if it is not their model_path.
        start_version: the last one published, for a trainer that was started again.
        socket, engine_socket: of this node's broker and the engines'; None: $STREW_SOCKET.
        timeout: seconds, of an update.
    """

    def __init__(self, engines: Any, source: Any, *, model: str = "policy", rank: int = 0,
                 size: int = 1, replica: int = 0, checkpoint: str | None = None,
                 start_version: int = 0, apply: str = "staged",
                 socket: str | os.PathLike[str] | None = None, engine_socket: str | None = None,
                 timeout: float = 60.0) -> None:
        from ._source import Source
        from ._trainer import Trainer
        self.failures: dict[int, Exception] = {}  # of the last update, by engine
        self.version, self._timeout, self._replica = start_version, timeout, replica
        self._asleep: set[int] = set()
        self._engines: list[Any] = []
        self._source = Source(source, rank, size)
        if not self._source.in_place:
            raise InvalidArgument(errno.EINVAL, "the source is a module or a state_dict")
        self._trainer = Trainer(model, rank=rank, size=size, socket=socket)
        self._publisher, self._alone = Publisher(self._trainer, timeout), size == 1
        try:
            self._source.declare(self._trainer)
            if rank == 0:
                given = engines if isinstance(engines, (list, tuple)) else [engines]
                self._engines = [_Server(one, timeout + 60) if isinstance(one, str)
                                 else _Engine(one) for one in given]
            for index, engine in enumerate(self._engines):
                path, loaded = engine.path()
                engine.call("init", name=model, replica=replica + index, apply=apply,
                            tensors=self._source.described, socket=engine_socket, timeout=30.0,
                            checkpoint=checkpoint or (path if loaded else None), path=path)
        except BaseException:
            self._trainer.close()
            raise

    def send_weights(self, version: int | None = None) -> Report:
        """Publishes the source as it is now; all ranks call it.

        Engines that have not taken it go on with the weights they had: the report names them, by
        replica, and `failures` says why where an engine or its server has failed. Raises
        NotCommitted if none has it, or what the engines said if none can be asked. An engine whose
        cache could not be flushed is left paused, until a later version. Whatever is raised (Ctrl-C
        too), the other engines run, and the next call is like any.
        """
        version = self.version + 1 if version is None else version
        self.failures = {}
        awake = self._left()
        paused: list[int] = []  # or may be
        stale: set[int] = set()  # may have the version, and a cache of an older one
        try:
            self._each(lambda one: one.call("prepare"))
            if awake and not self._left():
                raise next(iter(self.failures.values()))
            self._publisher.publish(version)
            paused = self._left()
            self._each(lambda one: one.pause())
            stale = set(self._left())
            self._each(lambda one: one.call("update", version=version, timeout=self._timeout))
            report = self._publisher.report()
            have = {group.replica - self._replica for group in report.groups}
            have -= {group.replica - self._replica for group in report.groups
                     if group.outcome != "committed"}
            self.version = version
            stale = have & set(awake)
            self._flush(stale)
            self._each(lambda one: one.label(version), have)
        except BaseException as failure:
            if isinstance(failure, NotCommitted):
                stale.clear()
            # Ranks count alike: what this one alone has seen counts where there is no other.
            seen = self._alone and bool(stale)
            try:
                self._flush(stale)
            finally:
                self._resume(paused, stale)
            if self._publisher.drop(failure) or seen:
                self.version = version
            raise
        self._resume(paused, stale)
        return report

    def _flush(self, stale: set[int]) -> None:
        """Takes those whose cache is flushed out of `stale`."""
        def flush(index: int) -> None:
            self._engines[index].flush()
            stale.discard(index)
        call_each({i: i for i in sorted(stale)}, flush, self.failures)

    def _resume(self, paused: Sequence[int], stale: Collection[int]) -> None:
        """All that may: load() has ended each scheduler that must not run."""
        for index in stale:
            logger.error("strew: engine %d is left paused: its cache was not flushed", index)
        call_each({i: self._engines[i] for i in paused if i not in stale},
                  lambda one: one.resume(), self.failures)

    def _left(self) -> list[int]:
        """Awake, and without a failure in this update."""
        return [i for i in range(len(self._engines))
                if i not in self._asleep and i not in self.failures]

    def release_memory_occupation(self, engine: int = 0, tags: list[str] | None = None) -> None:
        """SGLang's, behind taking the parameters back if it is the weights' memory that goes."""
        if not tags or "weights" in tags:
            self._engines[engine].call("sleep")
            self._asleep.add(engine)
        self._engines[engine].memory("release_memory_occupation", tags)

    def resume_memory_occupation(self, engine: int = 0, tags: list[str] | None = None) -> None:
        """SGLang's, and the parameters are registered again."""
        self._engines[engine].memory("resume_memory_occupation", tags)
        if not tags or "weights" in tags:
            self._engines[engine].call("wake")
            self._asleep.discard(engine)

    def _each(self, call: Any, among: Collection[int] | None = None) -> None:
        """Calls all engines at once, or those of `among`. Those that fail are left out from then
        on."""
        call_each({i: self._engines[i] for i in self._left() if among is None or i in among}, call,
                  self.failures)

    def close(self) -> None:
        """Waits for lent memory, then disconnects. Engines keep what they have."""
        self._trainer.close()
