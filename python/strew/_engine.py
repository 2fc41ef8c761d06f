"""What the engines' adapters share: a worker's registration, and its held gate as one call."""

from __future__ import annotations

import contextlib
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
from ._checkpoint import Checkpoint, open_checkpoint
from ._errors import (
    BrokerLost,
    Busy,
    Dirty,
    Error,
    InvalidArgument,
    LoaderFailed,
    Timeout,
)
from ._layout import Layout

Described = dict[str, tuple[torch.dtype, tuple[int, ...]]]

# Said of an agent whose broker is gone: its memory was being written, or may have been. IN_DOUBT
# said by a broker that is there is another thing: the old version, whole, and not known to be last.
_TORN = ("DIRTY", "IN_DOUBT")


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
        self.described = {n: said for n, said in described.items() if n in tensors}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name].to(self.described[name][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)


class MadeUp(Mapping[str, torch.Tensor]):
    """Tensors with values made from their names: a checkpoint for an engine that has loaded none.

    Made when asked for, so that a model of any size takes the memory of one tensor.
    """

    def __init__(self, described: Described) -> None:
        self.described = described

    def __getitem__(self, name: str) -> torch.Tensor:
        dtype, shape = self.described[name]
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if dtype.is_floating_point:
            return (torch.randn(shape, generator=generator) * 0.1).to(dtype)
        return torch.randint(0, 100, shape, generator=generator).to(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)


def find_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
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


def find_described(model: str, revision: str | None = None) -> Described | None:
    """What tensors the checkpoint of a model has that was not loaded; None if there is none."""
    try:
        return find_checkpoint(model, revision).described()
    except (Error, OSError, ValueError, KeyError):
        return None


def read_described(tensors: list[list[Any]]) -> Described:
    """From [name, dtype's name, shape], as it goes to an engine."""
    return {name: (getattr(torch, dtype), tuple(shape)) for name, dtype, shape in tensors}


def write_described(tensors: Mapping[str, Any]) -> list[list[Any]]:
    """The reverse, of tensors or whatever has a dtype and a (global) shape."""
    return [[name, str(one.dtype).removeprefix("torch."), list(one.shape)]
            for name, one in tensors.items()]


def _open_gate() -> Dirty:
    return Dirty(errno.EUCLEAN, "the broker may write to the parameters, and has not given them "
                 "back: no step may run")


class Receiver:
    """A worker of an engine that takes an update when it is told to, between two steps.

    Whether steps may run is finish()'s to say. From the moment that the broker may write until it
    has given the parameters back they may not, whatever happens in between.

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
        self._leaving: Agent | None = None  # whose memory the broker has not given back yet
        self._asleep = False
        self._failed: Error | None = None  # why no step may run
        self._untold = False  # ... which this agent, and so its broker, has never heard of

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
        self.close()
        agent = self._open()
        try:
            agent.register(self._layout)
        except BaseException:
            self._leaving = agent
            with contextlib.suppress(Error):  # the next call begins with it
                self.close()
            raise
        self._agent = agent

    def sleep(self) -> None:
        """Takes the parameters back before their memory goes: others are updated without it.

        On an exception the broker may still write to them, and the memory must stay; call it again.
        """
        self._asleep = True
        self.close()

    def wake(self) -> None:
        """Registers again; prepare() does it where no broker is there now."""
        self._asleep = False
        self.register()

    def close(self) -> None:
        """Withdraws. The layout stays for the next register(). As sleep() on an exception."""
        if self._agent is not None:
            self._untold = self._untold or self._failed is not None
            self._agent, self._leaving = None, self._agent
        if self._leaving is not None:
            self._leaving.close()
            self._leaving = None

    def prepare(self) -> None:
        """Before an update is begun: is the broker there? Else registers with its successor.

        Passes also where no step may run, as an update is what heals: finish() raises then. Where
        that was not known for certain, the broker is asked.
        """
        if self._asleep:
            raise InvalidArgument(errno.EBUSY, "this engine is asleep, and its parameters are "
                                  "withdrawn: wake it up before an update")
        if self._agent is None:
            self.register()
        agent = self._agent
        assert agent is not None
        had = agent.version
        try:
            # What earlier updates have left behind would be taken for this one's.
            while (event := agent.poll()) is not None:
                if event.kind == "lost":
                    raise BrokerLost(errno.ECONNRESET, event.text)
        except BrokerLost:
            self._lost(agent, self._failed, had)
            agent.reconnect(self._timeout)
        if agent.state in _TORN or not isinstance(self._failed, (LoaderFailed, type(None))):
            self._ask(agent)

    def receive(self, version: int, timeout: float) -> None:
        """The held gate: lets this version in, and returns when the engine may go on with it.

        Args:
            version: the trainer's number, above 0.
            timeout: seconds, of the update.

        Dirty and LoaderFailed: no step may run before a later call has returned, or finish().
        On any other exception of strew's the weights are whole, and those that the engine had.
        """
        try:
            self._receive(version, timeout)
        except Error as reason:
            if self._failed is not None and self._failed is not reason:
                raise self._failed from reason
            raise

    def _receive(self, version: int, timeout: float) -> None:
        agent = self._agent
        if agent is None:
            raise InvalidArgument(errno.EBUSY, f"this engine is {self.state}: there is no update "
                                  "for it")
        had, before = agent.version, self._failed
        if version < 1:
            raise InvalidArgument(errno.EINVAL, f"version {version}: versions are above 0")
        if had > version:
            raise InvalidArgument(errno.EINVAL, f"version {version} is older than version {had}, "
                                  "which this engine has")
        self._synchronize()
        try:
            self._ready(agent)
        except BrokerLost:
            self._lost(agent, before, had)
            self._reconnect(agent)
            before = self._failed
            self._ready(agent)
        try:
            try:
                # It may be there already: by catching up, or the engine's loader is to try again.
                if agent.version != version:
                    self._wait(agent, version, timeout)
            finally:
                self._resume(agent, timeout + self._timeout)
        except BrokerLost as lost:
            had = self._lost(agent, before, had)
            if self._failed is None and had == version:
                return  # the broker went behind its end; prepare() finds the next one
            self._reconnect(agent)
            if self._failed is None and version not in (had, agent.version):
                raise Error(errno.ECONNABORTED, f"the broker was lost in version {version}: this "
                            f"engine has registered again, and keeps version "
                            f"{agent.version or had}") from lost
        if self._failed is not None:
            raise self._failed

    def _ready(self, agent: Agent) -> None:
        """Opens the gate. No step may run from here on, until _resume() has the broker's word."""
        before = self._failed
        self._failed = before or _open_gate()
        try:
            agent.ready()
        except Busy:  # a resume was cut short: its answer is still to come
            with contextlib.suppress(Dirty, LoaderFailed):
                self._resume(agent, self._timeout)
            self._failed = self._failed or _open_gate()
            agent.ready()
        except Error:
            self._failed = before
            raise

    def _resume(self, agent: Agent, timeout: float) -> None:
        try:
            agent.resume(timeout)
        except BrokerLost:
            raise
        except Error as reason:
            self._failed = reason if isinstance(reason, (Dirty, LoaderFailed)) else Dirty(
                errno.EUCLEAN, f"the broker has not given the parameters back: {reason}")
            raise self._failed from reason
        # An agent that was opened since may hold what its broker takes for whole.
        if not self._untold or agent.version > 0:
            self._failed, self._untold = None, False

    def _lost(self, agent: Agent, before: Error | None, had: int) -> int:
        """The broker is gone: may steps run now? To be called before agent.reconnect(), which may
        fail, and makes the agent forget. before, had: _failed and the version until now. Returns
        the version that the memory has, if that is whole."""
        state, version = agent.state, max(had, agent.version)
        if state in _TORN:
            self._failed = Dirty(errno.EUCLEAN, f"the broker was lost while an update was, or may "
                                 f"have been, written to the parameters ({state}): no step may run "
                                 "before the next whole update, or before a broker knows better")
        elif version > had and self._layout.reloader is not None:
            self._failed = Dirty(errno.EUCLEAN, f"version {version} is there, but the broker was "
                                 "lost before the engine's loader has run on it")
        else:
            self._failed = before
        return version

    def _reconnect(self, agent: Agent) -> None:
        """After _lost()."""
        agent.reconnect(self._timeout)
        if self._failed is not None:
            self._ask(agent)

    def _ask(self, agent: Agent) -> None:
        """Sets _failed as the broker sees it, which knows from its predecessor's page what was
        written. A state alone would not do: a group of which others are missing is FORMING."""
        before, had = self._failed, agent.version
        self._synchronize()
        try:
            self._ready(agent)
            self._resume(agent, self._timeout)
        except (Dirty, LoaderFailed):
            pass  # finish() raises it
        except BrokerLost:
            self._lost(agent, before, had)
            raise

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
        """After receive(), or prepare(): raises if no step may run, and why."""
        if self._failed is None and self._agent is not None and self._agent.state == "DIRTY":
            self._failed = Dirty(errno.EUCLEAN, "the parameters are written in part: no step may "
                                 "run before the next whole update")
        if self._failed is not None:
            raise self._failed
