"""Tensors that were given other memory after they were declared: publish() says so, by name."""

import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")

from test_package import whole  # noqa: E402
from torch import nn  # noqa: E402

import strew  # noqa: E402
from loaders import free_port  # noqa: E402
from strew import _addresses  # noqa: E402
from strew._tensors import describe  # noqa: E402
from strew._watch import Watch  # noqa: E402


def add(watch, name, value, owned=False):
    said = describe(name, value)
    watch.add(name, value, said.data, said.keep, owned)


def make():
    return nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 5, bias=False))


def away_and_back(module):
    module.to(torch.float64)
    module.to(torch.float32)


def other_data(module):
    module[1].weight.data = module[1].weight.data.clone()


def other_parameter(module):
    module[1].weight = nn.Parameter(module[1].weight.detach().clone())


@pytest.fixture(params=["handles", "data_ptr"])
def asked(request, monkeypatch):
    """How torch is asked where its tensors lie."""
    if request.param == "handles":
        monkeypatch.setattr(_addresses, "FEW", 0)
        assert _addresses._find_shim() is not None


WAYS = [away_and_back, other_data, other_parameter]


@pytest.mark.parametrize("what, way", [
    *((what, way) for what in ("module", "state_dict") for way in WAYS),
    ("parameters", away_and_back), ("parameters", other_data)])
@pytest.mark.usefixtures("asked")
def test_a_module(broker, what, way):
    module = make()
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"module": module, "state_dict": module.state_dict(),
                         "parameters": dict(module.named_parameters())}[what])
        trainer._check_addresses()
        way(module)
        with pytest.raises(strew.Moved, match=r"0\.weight" if way is away_and_back else
                           r"1\.weight"):
            trainer.publish(1)


@pytest.mark.parametrize("what", ["module", "state_dict", "temporary", "view", "numpy"])
@pytest.mark.usefixtures("asked")
def test_what_has_not_moved(what):
    """Nothing is said where memory is as it was, whoever holds it now."""
    watch, module = Watch(), make()
    tensors = {"module": module.state_dict(keep_vars=True), "state_dict": module.state_dict(),
               "view": dict(enumerate(module[0].weight.data))}.get(what, {"a": torch.zeros(4)})
    arrays = [t.numpy() for t in tensors.values()] if what == "numpy" else []
    for name, value in tensors.items():
        add(watch, name, value, what == "module")
    del tensors, value
    assert watch.moved() is None
    if what != "state_dict":
        return
    kept = list(module.state_dict().values())  # others over the same memory
    del module
    assert watch.moved() is None
    kept[1:] = watch._plain.tensors[1:]  # the same objects
    assert watch.moved() is None
    kept.pop()
    assert watch.moved()[0] == "1.weight" and not arrays


@pytest.mark.usefixtures("asked")
def test_many_are_looked_at_in_turn():
    module, watch = nn.ParameterList(torch.zeros(1) for _ in range(300)), Watch()
    for name, value in module.state_dict().items():
        add(watch, name, value)
    del value
    module[123].data = torch.ones(1)
    assert [watch.moved() for _ in range(3)].count(None) == 2


class Freed(torch.Tensor):
    """Says when it is no more."""

    def __del__(self):
        gone.append(1)


gone = []


def test_handles_are_let_go(monkeypatch):
    """A tensor lives as long as the watch, and is whole again once that has released it."""
    monkeypatch.setattr(_addresses, "FEW", 0)
    watch, tensors = Watch(), [torch.zeros(4).as_subclass(Freed) for _ in range(3)]
    for i, tensor in enumerate(tensors):
        add(watch, str(i), tensor)
        before = sys.getrefcount(tensor)
    assert watch.moved() is None and tensor._use_count() == 2
    add(watch, "more", more := torch.zeros(2))
    assert watch.moved() is None and more._use_count() == 2
    watch.release()
    assert tensor._use_count() == 1 and sys.getrefcount(tensor) == before
    torch.utils.swap_tensors(more, torch.ones(2))
    assert watch.moved()[0] == "more"
    gone.clear()
    del tensors, tensor
    gc.collect()
    assert not gone
    del watch
    gc.collect()
    assert len(gone) == 3


def test_looks_and_a_release_at_once():
    """Also of a module's parameters, which nobody else may seem to have given up meanwhile."""
    watch, tensors = Watch(), [torch.zeros(1) for _ in range(500)]
    for i, tensor in enumerate(tensors):
        add(watch, str(i), tensor)
    module = nn.ParameterList(torch.zeros(1) for _ in range(300))
    for name, value in module.state_dict(keep_vars=True).items():
        add(watch, f"m.{name}", value, True)
    del value
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(watch.release if i % 5 == 4 else watch.moved) for i in range(400)]
        assert not any(look.result() for look in looks)
    tensors[77].data = torch.ones(1)
    assert watch.moved() == ("77", "has moved since it was declared", 1)


class Interrupted(Exception):
    """As Ctrl-C, from a signal's handler."""


def test_interrupted_looks():
    """No handle is lost or let go twice, whenever a look or a release is interrupted."""
    tensors, watch = [torch.zeros(1) for _ in range(3000)], Watch()
    for i, tensor in enumerate(tensors):
        add(watch, str(i), tensor)

    def interrupt(*_):
        raise Interrupted

    before, times = signal.signal(signal.SIGALRM, interrupt), 0
    try:
        for i in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 4e-3))
                while True:
                    watch.moved()
                    watch.release()
            except Interrupted:
                times += 1
            if not i % 10:
                assert watch.moved() is None
                add(watch, f"more {i}", tensors[0].detach())  # arrays have to follow
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert times == 300
    assert watch.moved() is None
    assert {tensor._use_count() for tensor in tensors} == {2}
    watch.release()
    assert {tensor._use_count() for tensor in tensors} == {1}
    tensors[2999].data = torch.ones(1)
    assert watch.moved()[0] == "2999"


def test_release_during_a_look():
    """Handles that a look uses are there until it is over, and add what it takes into account."""
    watch, tensors = Watch(), [torch.zeros(1) for _ in range(_addresses.FEW)]
    for i, tensor in enumerate(tensors):
        add(watch, str(i), tensor, True)
    moved, held, (_, uses) = watch._plain.moved()
    watch.release()
    assert not moved and tensor._use_count() == 1 + uses == 2 and held[0].all_as_before()
    del held
    assert tensor._use_count() == 1


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("first", ["module", "alias"])
def test_tied(broker, first):
    """One parameter by two names, which are given another one."""
    module = make()
    module.append(nn.Linear(6, 7))
    module[2].weight = module[0].weight
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        if first == "alias":
            trainer.declare({"alias": module[0].weight})
        trainer.declare(module)
        trainer.seal()
        trainer._check_addresses()
        module[0].weight = module[2].weight = nn.Parameter(torch.ones(7, 6))
        with pytest.raises(strew.Moved, match=r"tensor 0\.weight lies in memory"):
            trainer.publish(1)


def clones(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def tied_clones(module):
    said = clones(module)
    return {**said, "again": said["0.weight"].data}


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("what", [
    lambda m: {**m.state_dict(), "again": m[0].weight}, clones, tied_clones,
    lambda m: {"again": m[0].weight.detach(), **dict(m.named_parameters())},
    lambda m: dict(enumerate_names(m[0].weight.data.flatten().split(7))),
    lambda m: {"a": m[0].weight.data, "b": m[0].weight.data},
    lambda m: {**m.state_dict(), **{f"{n}.again": p for n, p in m.named_parameters()}}])
def test_healthy(broker, what):
    """Nothing is said of memory that nobody has given up, whoever holds it and however often."""
    module = make()
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare(what(module))
        trainer.seal()
        for _ in range(3):
            gc.collect()
            trainer._check_addresses()


def enumerate_names(tensors):
    return ((f"row {i}", tensor) for i, tensor in enumerate(tensors))


def test_closed(broker):
    tensors = {str(i): torch.zeros(1) for i in range(_addresses.FEW)}
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare(tensors)
        trainer.seal()
        assert tensors["0"]._use_count() == 2
    with pytest.raises(strew.InvalidArgument, match="closed already"):
        trainer.publish(2)
    assert tensors["0"]._use_count() == 1


class Extra(nn.Linear):
    def get_extra_state(self):
        return torch.zeros(2)

    def set_extra_state(self, state):
        pass


class Hook(nn.Linear):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "format"] = torch.tensor(1)


def test_what_cannot_be_watched(broker):
    """State that is made anew each time; a tensor of which torch does not say where it lies."""
    for kind, name in ((Extra, "_extra_state"), (Hook, "format")):
        with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer, \
                pytest.raises(strew.NotShareable, match=f"tensor {name}: the module has no such"):
            trainer.declare(kind(2, 2))
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        for tensor in (nested, nn.LazyLinear(3).weight):
            with pytest.raises(strew.NotShareable, match="tensor n: torch does not say"):
                trainer.declare({"n": tensor})
        trainer.declare(Extra(2, 2), rename={"_extra_state": None})
        trainer.seal()


@pytest.mark.parametrize("gate", ["held", "live"])
def test_a_parameter_declared_by_hand(broker, gate):
    source, parameter = torch.ones(3), nn.Parameter(torch.zeros(3), requires_grad=False)
    with strew.Agent("m", gate=gate, socket=broker.socket) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        agent.piece(agent.declare("the.name", parameter), whole("w", parameter))
        agent.register()
        trainer.declare({"w": source})
        assert agent.poll() is None
        take(agent, trainer, 1)
        assert (parameter == 1).all()
        memory, parameter.data = parameter.data, torch.zeros(3)
        source.fill_(2)
        words = "parameter the.name has moved since it was declared"
        with pytest.raises(strew.Moved, match=words):
            agent.wait(20) if gate == "live" else agent.ready()
        with pytest.raises(strew.Moved, match=words):
            agent.reconnect()
        # Found before the update is accepted: nothing is written, and its publisher reads the name.
        begin = time.monotonic()
        running = trainer.publish_async(2)
        with pytest.raises(strew.Moved, match=words):
            while agent.poll() is None:
                pass
        with pytest.raises(strew.NotCommitted, match=words):
            running.report(20)
        assert time.monotonic() - begin < 10
        assert (memory == 1).all() and (parameter == 0).all()
        assert agent.version == 1 and agent.peek() == ("CURRENT", 1)  # there is none newer
        parameter.data = memory
        take(agent, trainer, 3)
        assert (parameter == 2).all() and agent.peek() == ("CURRENT", 3)


def take(agent, trainer, version):
    """An update, with either gate."""
    running = trainer.publish_async(version)
    while (event := agent.between_steps() if agent.gate == "held" else agent.poll()) is None:
        pass
    assert event.kind == "done" and running.report(20).committed


@pytest.mark.parametrize("gate", ["held", "live"])
def test_a_look_that_fails(broker, gate, monkeypatch):
    """Whatever happens in the look before an update, Ctrl-C too, refuses it and is not lost."""
    parameter = torch.zeros(3)
    with strew.Agent("m", gate=gate, socket=broker.socket) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        agent.piece(agent.declare("p", parameter), whole("w", parameter))
        agent.register()
        trainer.declare({"w": torch.ones(3)})
        with monkeypatch.context() as patch:
            def interrupted():
                raise KeyboardInterrupt
            patch.setattr(agent, "_moved", interrupted)
            running = trainer.publish_async(1)
            with pytest.raises(KeyboardInterrupt):
                while agent.poll() is None:
                    pass
            with pytest.raises(strew.NotCommitted, match=r"could not look .*: KeyboardInterrupt"):
                running.report(20)
        assert (parameter == 0).all()
        take(agent, trainer, 2)
        assert (parameter == 1).all()


WORKER = """
import sys, time, torch, strew
from strew import Piece
parameter = torch.zeros(3)
agent = strew.Agent("m", gate="live", socket=sys.argv[1])
agent.piece(agent.declare("p", parameter),
            Piece("w", parameter.dtype, (3,), (3,), (0,), (3,), 0, (1,)))
agent.register()
time.sleep(float(sys.argv[2]))
"""


def test_an_engine_that_ends_without_closing(broker):
    """In the middle of updates: the library's thread may be about to ask Python's code."""
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"w": torch.ones(3)})
        version = 0
        for seconds in (0.3, 0.31, 0.32):
            begin = time.monotonic()
            with subprocess.Popen([sys.executable, "-c", WORKER, broker.socket, str(seconds)],
                                  stderr=subprocess.PIPE, text=True) as worker:
                while worker.poll() is None:
                    version += 1
                    with contextlib.suppress(strew.NotCommitted):
                        trainer.publish(version, timeout=20)
                    if time.monotonic() - begin > 40:
                        worker.kill()
                assert not worker.stderr.read()
            assert worker.returncode == 0


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    module, mesh = make(), init_device_mesh("cpu", (1,))  # not the GPU of a machine that has one
    for layer in module:
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def fsdp2_rank(port, socket, queue):
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo")
    try:
        with strew.Trainer("m", socket=socket) as trainer:  # shards that nobody else has ever held
            trainer.declare({n: t.to(torch.bfloat16) for n, t in sharded().state_dict().items()})
            trainer.seal()
            trainer._check_addresses()
        for what, way in (("module", "to"), ("module", "data"), ("state_dict", "to")):
            module = sharded()
            with strew.Trainer("m", socket=socket) as trainer:
                trainer.declare(module.state_dict() if what == "state_dict" else module)
                module(torch.zeros(2, 6)).sum().backward()
                trainer._check_addresses()
                if way == "to":
                    away_and_back(module)
                else:
                    local = module[1].weight._local_tensor
                    local.data = local.data.clone()
                try:
                    trainer.publish(1)
                    queue.put("published")
                except strew.Moved as moved:
                    queue.put(str(moved))
    except BaseException as failure:  # pylint: disable=broad-except
        queue.put(repr(failure))
    finally:
        torch.distributed.destroy_process_group()


def test_fsdp2(broker):
    pytest.importorskip("torch.distributed.fsdp")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    one = context.Process(target=fsdp2_rank, args=(free_port(), broker.socket, queue))
    one.start()
    for name in ("0.weight", "1.weight", "0.weight"):
        said = queue.get(timeout=240)
        assert f"tensor {name}" in said, said
    one.join(30)
