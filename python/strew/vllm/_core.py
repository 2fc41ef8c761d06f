"""A vLLM worker's side: what is alike for the transfer engine and the worker extension."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from .._agent import Agent
from .._checkpoint import Checkpoint
from .._engine import (
    Described,
    MadeUp,
    Place,
    Receiver,
    Values,
    find_checkpoint,
    find_described,
    find_place,
    read_described,
)
from .._errors import Error, InvalidArgument
from .._layout import Layout
from .._padding import accepts_partial, as_sent
from .._record import record_layout

logger = logging.getLogger("strew.vllm")


@dataclasses.dataclass
class Init:
    """What a worker is told once.

    model: the trainer's name for it. tensors: [name, dtype, shape] of what the trainer sends; None:
    as in the checkpoint. checkpoint: what the engine has loaded, if that is not its model's path.
    """

    model: str = "policy"
    tensors: list[list[Any]] | None = None
    checkpoint: str | None = None
    apply: str = "staged"
    socket: str | None = None
    timeout: float = 30.0


@contextlib.contextmanager
def _without_caches(model: torch.nn.Module) -> Iterator[None]:
    """Attention layers keep the KV cache in plain attributes: it is no weight, and large."""
    kept = [(module, module.__dict__.pop("kv_cache")) for module in model.modules()
            if "kv_cache" in module.__dict__]
    try:
        yield
    finally:
        for module, cache in kept:
            module.__dict__["kv_cache"] = cache


class Core:
    """The parameters of one worker."""

    def __init__(self, vllm_config: Any, device: torch.device | None,
                 model: torch.nn.Module) -> None:
        self.config, self.model = vllm_config, model
        # Older CPU workers say none.
        self.device = device if device is not None else next(model.parameters()).device
        self._load_weights: Any = model.load_weights
        self.receiver: Receiver | None = None
        self._init: Init | None = None
        self._place: Place | None = None

    def init(self, said: Init) -> None:
        """Registers what the engine has loaded. A second time with the same is fine."""
        if self._place is None:  # all workers call it together, once
            self._place = self._find_place(said)
        if self.receiver is not None:
            if said != self._init:
                raise InvalidArgument(errno.EINVAL, "this engine was registered for another model "
                                      "or other tensors; that cannot be changed once weights have "
                                      "arrived: start it anew")
            self.receiver.prepare()
            return
        place, (layout, partial) = self._place, self._layout(said)
        receiver = Receiver(
            layout, lambda: Agent(said.model, replica=place.replica, part=place.part,
                                  rank=place.rank, size=place.size, apply=said.apply,
                                  partial=partial, socket=said.socket, timeout=said.timeout),
            self._synchronize, said.timeout)
        receiver.register()
        self.receiver, self._init = receiver, said
        logger.info("strew: %s, registered as replica %d part %d, %d of %d on this node",
                    layout.status(), *place)

    def _find_place(self, said: Init) -> Place:
        from vllm.distributed.parallel_state import get_pp_group, get_world_group
        parallel = self.config.parallel_config
        copy = getattr(parallel, "data_parallel_index", getattr(parallel, "data_parallel_rank", 0))
        part = get_pp_group().rank_in_group
        if getattr(parallel, "enable_expert_parallel", False):
            # Each has other experts: together they are one copy.
            copy, part = 0, copy * parallel.pipeline_parallel_size + part
        return find_place(get_world_group(), copy, part, said.socket)

    def need(self) -> Receiver:
        """The registration. Raises if there was no init."""
        if self.receiver is None:
            raise InvalidArgument(errno.EINVAL, "strew: init_weight_transfer_engine comes first")
        return self.receiver

    def close(self) -> None:
        """Withdraws the parameters. init() registers them again."""
        if self.receiver is not None:
            self.receiver.close()

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        from vllm.config import set_current_vllm_config
        with set_current_vllm_config(self.config):
            return self._load_weights(weights)

    def _reload(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """As vLLM's own engines load an update: layer by layer, post-processing included."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )
        with set_current_vllm_config(self.config):
            initialize_layerwise_reload(self.model)
            try:
                self._load_weights(weights)
            finally:
                finalize_layerwise_reload(self.model, self.config.model_config)

    def _checkpoint(self, said: Init) -> Checkpoint | None:
        """What the engine has loaded; None: nothing but random values."""
        if said.checkpoint is None and self.config.load_config.load_format == "dummy":
            return None
        model = self.config.model_config
        return find_checkpoint(said.checkpoint or model.model, model.revision)

    def _layout(self, said: Init) -> tuple[Layout, bool]:
        """Also whether updates may leave elements as they are."""
        checkpoint = self._checkpoint(said)
        if said.tensors is not None:
            described: Described = read_described(said.tensors)
        elif checkpoint is not None:
            described = checkpoint.described()
        else:
            raise InvalidArgument(errno.EINVAL, "an engine with random weights has no checkpoint "
                                  "to take the tensors' names from: pass tensors=")
        try:
            from vllm.model_executor.model_loader import reload as _  # noqa: F401
            reload = self._reload
        except ImportError:
            reload = None  # what an older vLLM has changed after loading is refused then
        values: Mapping[str, torch.Tensor]
        with _without_caches(self.model):
            if checkpoint is not None:
                values = Values(checkpoint, described)
            elif reload is not None:
                values = MadeUp(described)
                reload(values.items())
            else:
                raise InvalidArgument(errno.ENOTSUP, "this vLLM cannot load again, which random "
                                      "weights need: load a checkpoint")
            layout = record_layout(self.model, self._load, described, prove=values, reload=reload)
            if layout.refused:
                raise InvalidArgument(errno.ENOTSUP, "strew cannot fill all of this engine's "
                                      f"parameters: {_few(layout.refused)}")
            partial = accepts_partial(layout, self.model, self._load, described,
                                      self._own(checkpoint, described))
        if self._plain(layout):
            layout.reloader = None
        return layout, partial

    def _own(self, checkpoint: Checkpoint | None, described: Described) -> Values | MadeUp | None:
        if checkpoint is not None:
            return Values(checkpoint, as_sent(checkpoint.described(), described))
        model = self.config.model_config
        named = find_described(model.model, model.revision)
        return MadeUp(as_sent(named, described)) if named is not None else None

    def _plain(self, layout: Layout) -> bool:
        """Is there nothing for the loader to do? Quantized ones may keep more than is seen."""
        return (layout.reloader is not None and not layout.reloader.feed and not layout.loader
                and self.config.model_config.quantization is None)


def _few(refused: Mapping[str, str]) -> str:
    shown = "; ".join(f"{name}: {why}" for name, why in list(refused.items())[:4])
    return shown + (f"; and {len(refused) - 4} more" if len(refused) > 4 else "")


def follow_sleep(worker_class: type, core_of: Any) -> None:
    """Makes a worker class withdraw before it sleeps and register when its weights are awake.

    vLLM tells a transfer engine nothing of it, and what is written after the memory went would
    end the process.
    """
    if "_strew_follows" in worker_class.__dict__:
        return
    sleep, wake_up = worker_class.sleep, worker_class.wake_up  # type: ignore[attr-defined]

    def sleeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        core = core_of(self)
        if core is not None and core.receiver is not None:
            core.receiver.sleep()
        return sleep(self, *args, **kwargs)

    def waking(self: Any, tags: list[str] | None = None) -> Any:
        result = wake_up(self, tags)
        core = core_of(self)
        if core is not None and core.receiver is not None and (not tags or "weights" in tags):
            try:
                core.receiver.wake()
            except Error as reason:
                # The engine wakes all the same; the next update's start tries again, and raises.
                logger.warning("strew: not registered after waking up: %s", reason)
        return result

    worker_class.sleep, worker_class.wake_up = sleeping, waking  # type: ignore[attr-defined]
    worker_class._strew_follows = True  # type: ignore[attr-defined]


def answer_together(worker_class: type, core_of: Any, names: Iterable[str]) -> None:
    """Makes these methods of a worker class fail in the last worker of an engine, if in any.

    vLLM's executor of several processes stops reading answers at the first failure: those of the
    workers behind it stay in their queues, and are taken for the answers to later calls. A worker
    that may run no step would seem to have said that it may.
    """
    if "_strew_answers" in worker_class.__dict__:
        return
    for name in names:
        if hasattr(worker_class, name):
            setattr(worker_class, name, _together(getattr(worker_class, name), core_of))
    worker_class._strew_answers = True  # type: ignore[attr-defined]


def _together(method: Any, core_of: Any) -> Any:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        core = core_of(self)
        size = core.config.parallel_config.world_size if core is not None else 1
        if size == 1:
            return method(self, *args, **kwargs)
        from vllm.distributed.parallel_state import get_world_group
        world, result, failure = get_world_group(), None, None
        if world.world_size != size:  # data-parallel copies, which need not be called together
            return method(self, *args, **kwargs)
        try:
            result = method(self, *args, **kwargs)
        except Exception as reason:  # pylint: disable=broad-except
            failure = reason
        said: list[Any] = [None] * world.world_size
        torch.distributed.all_gather_object(
            said, failure and (str(failure) or type(failure).__name__), group=world.cpu_group)
        if self.rank == size - 1:
            if failure is not None:
                raise failure
            for rank, sentence in enumerate(said):
                if sentence is not None:
                    raise RuntimeError(f"strew: worker {rank}: {sentence}")
        elif failure is not None:
            logger.warning("strew: %s", failure)
        return result
    return call
