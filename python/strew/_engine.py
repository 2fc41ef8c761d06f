"""What the engines' adapters share: a worker's registration, and its held gate as one call."""

from __future__ import annotations

import errno
import os
import pathlib
import random
import socket as sockets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from ._agent import Agent
from ._checkpoint import open_checkpoint
from ._errors import BrokerLost, Dirty, Error, InvalidArgument, Timeout
from ._layout import Layout

Described = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class Place(NamedTuple):
    """Which group a worker belongs to, and its place among the members on this node."""

    replica: int
    part: int
    rank: int
    size: int


def _node(socket: str | None) -> str:
    """Alike in workers that one broker serves."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return "|".join((boot.read_text().strip() if boot.exists() else "", sockets.gethostname(),
                     os.path.abspath(socket or os.environ.get("STREW_SOCKET", "/"))))


def find_place(world: Any, copy: int, part: int, socket: str | None) -> Place:
    """Where this worker belongs. All workers of an engine call it together.

    Args:
        world: the engine's group of all its workers (vLLM's and SGLang's GroupCoordinator).
        copy: which of the engine's copies of the model; the workers of each differ in parts only.
        part: the pipeline stage.

    Engines do not know of each other, so a replica's number is drawn by its first worker;
    $STREW_REPLICA (plus the copy) if somebody wants to choose it.
    """
    said = os.environ.get("STREW_REPLICA")
    number = random.SystemRandom().randrange(1 << 31) if said is None else int(said) + copy
    mine = (_node(socket), copy, part, number)
    every: list[Any] = [mine]
    if world.world_size > 1:
        every = [None] * world.world_size
        torch.distributed.all_gather_object(every, mine, group=world.cpu_group)
    peers = [i for i, one in enumerate(every) if one[:3] == mine[:3]]
    replica = next(one[3] for one in every if one[1] == copy)
    return Place(replica, part, peers.index(world.rank_in_group), len(peers))


class Values(Mapping[str, torch.Tensor]):
    """A checkpoint's tensors in the dtypes in which the trainer sends them."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], described: Described) -> None:
        self._tensors = tensors
        self._described = {n: said for n, said in described.items() if n in tensors}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name].to(self._described[name][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)


class MadeUp(Mapping[str, torch.Tensor]):
    """Tensors with values made from their names: a checkpoint for an engine that has loaded none.

    Made when asked for, so that a model of any size takes the memory of one tensor.
    """

    def __init__(self, described: Described) -> None:
        self._described = described

    def __getitem__(self, name: str) -> torch.Tensor:
        dtype, shape = self._described[name]
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if dtype.is_floating_point:
            return (torch.randn(shape, generator=generator) * 0.1).to(dtype)
        return torch.randint(0, 100, shape, generator=generator).to(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)


def find_checkpoint(model: str, revision: str | None = None) -> Mapping[str, torch.Tensor]:
    """The safetensors of a folder or file, or of a hub's name that has been downloaded."""
    if not os.path.exists(model):
        try:
            from huggingface_hub import snapshot_download
            model = snapshot_download(model, revision=revision, local_files_only=True)
        except Exception as reason:
            raise InvalidArgument(errno.ENOENT, f"{model}: the checkpoint that the engine has "
                                  "loaded is not on this node; name it with checkpoint="
                                  ) from reason
    return open_checkpoint(model)


def read_described(tensors: list[list[Any]]) -> Described:
    """From [name, dtype's name, shape], as it goes to an engine."""
    return {name: (getattr(torch, dtype), tuple(shape)) for name, dtype, shape in tensors}


def write_described(tensors: Mapping[str, Any]) -> list[list[Any]]:
    """The reverse, of tensors or whatever has a dtype and a (global) shape."""
    return [[name, str(one.dtype).removeprefix("torch."), list(one.shape)]
            for name, one in tensors.items()]


class Receiver:
    """A worker of an engine that takes an update when it is told to, between two steps.

    Args:
        layout: from record_layout(); kept, as it cannot be proved again once weights have changed.
        open_agent: makes an Agent with a held gate. Called again after sleep().
        synchronize: waits until the device does nothing any more.
        timeout: seconds, for what waits for the broker outside of updates.
    """

    def __init__(self, layout: Layout, open_agent: Callable[[], Agent],
                 synchronize: Callable[[], None], timeout: float = 30.0) -> None:
        self._layout, self._open = layout, open_agent
        self._synchronize, self._timeout = synchronize, timeout
        self._agent: Agent | None = None
        self._asleep = False
        self._failed: Error | None = None  # of the last update, if no step may run because of it

    @property
    def state(self) -> str:
        """The group's, or "asleep", or "not registered"."""
        if self._agent is None:
            return "asleep" if self._asleep else "not registered"
        return self._agent.state

    @property
    def version(self) -> int:
        """What the parameters hold; 0: what the engine has loaded, or nobody knows."""
        return self._agent.version if self._agent else 0

    def register(self) -> None:
        """Hands the parameters to this node's broker, unless they are there already."""
        if self._agent is not None:
            return
        agent = self._open()
        try:
            agent.register(self._layout)
        except BaseException:
            agent.close()
            raise
        self._agent = agent

    def sleep(self) -> None:
        """Takes the parameters back before their memory goes: others are updated without it."""
        self._asleep = True
        self.close()

    def wake(self) -> None:
        """Registers again; prepare() does it where no broker is there now."""
        self._asleep = False
        self.register()

    def close(self) -> None:
        """Withdraws. The layout stays for the next register()."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    def prepare(self) -> None:
        """Before an update is begun: is the broker there? Else registers with its successor."""
        if self._asleep:
            raise InvalidArgument(errno.EBUSY, "this engine is asleep, and its parameters are "
                                  "withdrawn: wake it up before an update")
        if self._agent is None:
            self.register()
        agent = self._agent
        assert agent is not None
        try:
            # What earlier updates have left behind would be taken for this one's.
            while (event := agent.poll()) is not None:
                if event.kind == "lost":
                    raise BrokerLost(errno.ECONNRESET, event.text)
        except BrokerLost:
            agent.reconnect(self._timeout)

    def receive(self, version: int, timeout: float) -> None:
        """The held gate: lets this version in, and returns when the engine may go on with it.

        On any exception but Dirty and LoaderFailed the weights are the old ones, all of them.
        """
        agent = self._agent
        if agent is None:
            raise InvalidArgument(errno.EBUSY, f"this engine is {self.state}: there is no update "
                                  "for it")
        if agent.version > version:
            raise InvalidArgument(errno.EINVAL, f"version {version} is older than version "
                                  f"{agent.version}, which this engine has")
        self._synchronize()
        try:
            try:
                agent.ready()
            except BrokerLost:
                agent.reconnect(self._timeout)
                agent.ready()
            try:
                # It may be there already: by catching up, or the engine's loader is to try again.
                if agent.version != version:
                    self._wait(agent, version, timeout)
            finally:
                self._resume(agent, timeout)
        except BrokerLost as lost:
            agent.reconnect(self._timeout)
            if agent.state == "DIRTY":
                self._failed = Dirty(errno.EUCLEAN, f"the broker was lost while version {version} "
                                     "was written: no step may run before the next whole update")
                raise self._failed from lost
            raise Error(errno.ECONNABORTED, f"the broker was lost in version {version}: this "
                        f"engine has registered again, and keeps version {agent.version}"
                        ) from lost

    def _resume(self, agent: Agent, timeout: float) -> None:
        try:
            agent.resume(timeout + self._timeout)
        except BrokerLost:
            raise
        except Error as reason:
            self._failed = reason
            raise
        self._failed = None

    def _wait(self, agent: Agent, version: int, timeout: float) -> None:
        """Until the update has ended. Raises if it has not brought the version."""
        end = time.monotonic() + timeout
        while True:
            try:
                event = agent.wait(max(0.0, end - time.monotonic()))
            except Timeout:
                raise Timeout(errno.ETIMEDOUT, f"version {version} did not come in {timeout:g} s: "
                              "nobody published it, or another worker was late; this engine keeps "
                              f"version {agent.version}") from None
            if event.kind == "lost":
                raise BrokerLost(errno.ECONNRESET, event.text)
            # That it is given up may be because the update begins.
            if event.kind != "done" or (event.catching and event.outcome != "committed"):
                continue
            if event.outcome != "committed":  # the event's version is what the memory holds
                raise Error(errno.ECANCELED, f"version {version}: {event.outcome}: {event.text}; "
                            f"this engine keeps version {agent.version}")
            if event.version == version:
                return

    def finish(self) -> None:
        """After receive(): raises what that has raised, if no step may run."""
        if self._failed is not None:
            raise self._failed
