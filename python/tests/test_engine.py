"""What the adapters of engines share: the held gate as one call, places, sources, checkpoints."""

import functools
import os
import signal
import threading
import time
import types

import pytest
from conftest import Broker

torch = pytest.importorskip("torch")

from torch import nn

import strew
from loaders import in_threads, random_values, same_bits
from strew._engine import (
    MadeUp,
    Receiver,
    Values,
    find_place,
    read_described,
    write_described,
)
from strew._layout import LayoutParameter, Piece
from strew._padding import accepts_partial
from strew._source import Source

SHAPES = {"a": (torch.float32, (6, 5)), "b": (torch.bfloat16, (7,))}


class Worker(nn.Module):
    """The half of an engine's worker that loads weights."""

    def __init__(self, zeros=torch.zeros):
        super().__init__()
        for name, (dtype, shape) in SHAPES.items():
            self.register_parameter(name, nn.Parameter(zeros(shape, dtype=dtype),
                                                       requires_grad=False))

    def load_weights(self, weights):
        for name, tensor in weights:
            getattr(self, name).data.copy_(tensor)


def make(broker, replica=0, rank=0, size=1, timeout=10.0, zeros=torch.zeros, **options):
    module = Worker(zeros)
    layout = strew.record_layout(module, module.load_weights, SHAPES)
    return module, Receiver(layout, functools.partial(
        strew.Agent, "m", replica=replica, rank=rank, size=size, socket=broker.socket, **options),
        lambda: None, timeout)


def trainer_of(broker, values):
    trainer = strew.Trainer("m", rank=0, size=1, socket=broker.socket)
    trainer.declare(values)
    return trainer


def has(module, values):
    return all(same_bits(getattr(module, name).data, value) for name, value in values.items())


def change(values, seed):
    with torch.no_grad():
        for name, value in random_values(SHAPES, seed).items():
            values[name].copy_(value)


def update(trainer, version, *receivers, timeout=20.0):
    """As an engine's control plane does it: begun, then every worker is told to let it in."""
    for one in receivers:
        one.prepare()
    handle = trainer.publish_async(version, timeout=timeout)
    in_threads([functools.partial(one.receive, version, timeout) for one in receivers])
    for one in receivers:
        one.finish()
    return handle.report(timeout + 10)


def test_a_parameter_that_no_tensor_fills():
    module = Worker()
    named = dict(list(SHAPES.items())[1:])
    missing = next(iter(SHAPES))
    layout = strew.record_layout(module, module.load_weights, named)
    with pytest.raises(strew.InvalidArgument, match=f"no tensor of the trainer fills .*{missing}"):
        accepts_partial(layout, module, module.load_weights, named, MadeUp(SHAPES))
    layout = strew.record_layout(module, module.load_weights, SHAPES)
    assert not accepts_partial(layout, module, module.load_weights, SHAPES, MadeUp(SHAPES))


class Merged(nn.Module):
    """Fused parameters, one of which the engine changes while it loads, and a padded vocabulary."""

    SHAPES = {"gate": (torch.float32, (4, 3)), "up": (torch.float32, (4, 3)),
              "k": (torch.float32, (2, 3)), "v": (torch.float32, (2, 3)),
              "rows": (torch.float32, (5, 3))}

    def __init__(self):
        super().__init__()
        self.gate_up, self.kv = (nn.Parameter(torch.zeros(n, 3), requires_grad=False)
                                 for n in (8, 4))
        self.embed = nn.Module()
        self.embed.weight = nn.Parameter(torch.zeros(8, 3), requires_grad=False)

    def load_weights(self, weights):
        for name, tensor in weights:
            for target, parts in ((self.gate_up, ("gate", "up")), (self.kv, ("k", "v")),
                                  (self.embed.weight, ("rows",))):
                if name in parts:
                    n = tensor.shape[0]
                    target.data.narrow(0, n * parts.index(name), n).copy_(tensor)

    def reload(self, weights):
        self.load_weights((n, t * 2 if n in ("k", "v") else t) for n, t in weights)


def judge_merged(sent, checkpoint, rows=None):
    """As an engine's adapter does it, whose trainer sends these tensors."""
    values = random_values(Merged.SHAPES, 1)
    module = Merged()
    module.reload(values.items())
    if rows is not None:
        module.embed.shard_indices = types.SimpleNamespace(
            num_elements_padded=8, num_org_elements=rows, num_added_elements=0)
    described = {name: (value.dtype, tuple(value.shape)) for name, value in values.items()
                 if name in sent}
    layout = strew.record_layout(module, module.load_weights, described, reload=module.reload,
                                 prove={name: values[name] for name in described})
    assert not layout.refused and layout.loader == ["kv"]
    return accepts_partial(layout, module, module.load_weights, described,
                           MadeUp(checkpoint) if checkpoint is not None else None)


def test_a_parameter_that_is_filled_in_part():
    """Padding is what the engine's own checkpoint leaves too; not a tensor that the trainer lacks,
    whether the parameter is written raw or by the loader."""
    every, extra = set(Merged.SHAPES), {"nowhere": (torch.float32, (2, 2))}
    assert judge_merged(every, Merged.SHAPES)
    assert judge_merged(every, {**Merged.SHAPES, **extra})
    with pytest.raises(strew.InvalidArgument, match=r"in part: gate_up lacks up \(1 parameters\)"):
        judge_merged(every - {"up"}, Merged.SHAPES)
    with pytest.raises(strew.InvalidArgument, match="in part: kv lacks k .*engine's checkpoint"):
        judge_merged(every - {"k"}, Merged.SHAPES)
    with pytest.raises(strew.InvalidArgument, match="gate_up lacks up; kv lacks v"):
        judge_merged(every - {"up", "v"}, {**Merged.SHAPES, **extra})


class Packed(Merged):
    """Its weights lie where nobody sees them, and its own loader does not fit it any more."""

    def __init__(self):
        super().__init__()
        self.hidden = []
        self.scale = nn.Parameter(torch.zeros(3), requires_grad=False)

    def load_weights(self, weights):
        for _, _ in weights:
            raise AttributeError("it was packed")

    def reload(self, weights):
        whole = Merged()
        given = dict(weights)
        whole.load_weights(given.items())
        self.hidden = [p.tolist() for p in whole.parameters()]
        self.scale.data.copy_(given["gate"].amax(0))


def judge_packed(sent, own):
    values = random_values(Merged.SHAPES, 1)
    module = Packed()
    for name in ("gate_up", "kv", "embed"):
        delattr(module, name)
    module.reload(values.items())
    described = {name: (value.dtype, tuple(value.shape)) for name, value in values.items()
                 if name in sent}
    layout = strew.record_layout(module, module.load_weights, described, reload=module.reload,
                                 prove={name: values[name] for name in described})
    assert not layout.refused and not layout.unfilled and layout.loader == ["scale"]
    before = module.hidden
    assert not accepts_partial(layout, module, module.load_weights, described, own)
    return module.hidden == before


def test_a_loader_that_cannot_be_followed(caplog):
    """What it takes must be sent: where it goes is not seen."""
    every = set(Merged.SHAPES)
    values = random_values(Merged.SHAPES, 1)
    more = {**values, "nowhere": torch.ones(2)}
    own = Values(more, {name: (t.dtype, tuple(t.shape)) for name, t in more.items()})
    assert judge_packed(every, own)
    with pytest.raises(strew.InvalidArgument, match=r"in part: it lacks k, up \(2 tensors\)"):
        judge_packed(every - {"up", "k"}, own)
    assert not caplog.text
    judge_packed(every - {"up"}, None)
    assert "it is not known whether they fill all of it" in caplog.text


def test_padding_of_random_weights():
    """Where there is no checkpoint only the embedding's own word tells."""
    every = set(Merged.SHAPES)
    assert judge_merged(every, None, rows=5)
    with pytest.raises(strew.InvalidArgument, match=r"gate_up \(12 of 24 elements\)\. Without"):
        judge_merged(every - {"up"}, None, rows=5)
    with pytest.raises(strew.InvalidArgument, match=r"in part: kv \(6 of 12 elements\)\. Without"):
        judge_merged(every - {"v"}, None, rows=5)
    for rows in (6, None):
        with pytest.raises(strew.InvalidArgument, match=r"embed.weight \(9 of 24 elements\)"):
            judge_merged(every, None, rows=rows)


def test_updates(broker):
    values = random_values(SHAPES, 1)
    workers = [make(broker, rank=r, size=2) for r in range(2)]
    in_threads([one.register for _, one in workers])
    receivers = [one for _, one in workers]
    with trainer_of(broker, values) as trainer:
        for version in (1, 2, 5):
            change(values, version)
            assert update(trainer, version, *receivers).committed
            assert all(has(module, values) for module, _ in workers)
            assert {one.version for one in receivers} == {version}
        receivers[0].receive(5, 1.0)  # it is there: nothing is waited for
        with pytest.raises(strew.InvalidArgument, match="version 4 is older than version 5"):
            receivers[0].receive(4, 1.0)
    for one in receivers:
        one.close()


def test_an_update_that_nobody_publishes(broker):
    values = random_values(SHAPES, 1)
    module, receiver = make(broker)
    receiver.register()
    with trainer_of(broker, values) as trainer:
        assert update(trainer, 1, receiver).committed
        receiver.prepare()
        with pytest.raises(strew.Timeout, match="version 2 did not come in 0.2 s.*keeps version 1"):
            receiver.receive(2, 0.2)
        receiver.finish()  # steps may run
        assert has(module, values) and receiver.version == 1
        change(values, 3)
        assert update(trainer, 2, receiver).committed and has(module, values)
    receiver.close()


def test_an_update_that_aborts_leaves_the_old_weights(broker):
    values = random_values(SHAPES, 1)
    (module, receiver), (_, late) = make(broker, rank=0, size=2), make(broker, rank=1, size=2)
    in_threads([receiver.register, late.register])
    with trainer_of(broker, values) as trainer:
        assert update(trainer, 1, receiver, late).committed
        old = {name: tensor.clone() for name, tensor in values.items()}
        change(values, 2)
        receiver.prepare()
        handle = trainer.publish_async(2, timeout=2)  # the other never pauses
        with pytest.raises(strew.Error, match="version 2: .*keeps version 1"):
            receiver.receive(2, 20.0)
        with pytest.raises(strew.NotCommitted):
            handle.report(10)
        assert has(module, old)
        # The late one has an answer to it in its queue, which is not the next one's.
        assert update(trainer, 2, receiver, late).committed and has(module, values)
    receiver.close()
    late.close()


def test_no_sleep_while_the_broker_stands_still(broker):
    """The parameters' memory may not go: sleep() says so, and comes to its end later."""
    def open_agent():
        agent = opened()
        agent._timeout = 0.3  # of close()
        return agent
    _, receiver = make(broker)
    opened, receiver._open = receiver._open, open_agent
    receiver.register()
    broker.process.send_signal(signal.SIGSTOP)
    try:
        for call in (receiver.sleep, receiver.sleep, receiver.close, receiver.wake):
            with pytest.raises(strew.Timeout, match="may still write"):
                call()
    finally:
        broker.process.send_signal(signal.SIGCONT)
    receiver._leaving._timeout = 30.0
    receiver.sleep()
    assert receiver.state == "asleep" and not broker.groups()
    receiver.wake()
    assert receiver.state == "CURRENT"
    receiver.close()


def test_asleep_the_others_go_on(broker):
    values = random_values(SHAPES, 1)
    (module, sleeper), (other, awake) = make(broker), make(broker, replica=1)
    sleeper.register()
    awake.register()
    with trainer_of(broker, values) as trainer:
        assert update(trainer, 1, sleeper, awake).committed
        old = {name: tensor.clone() for name, tensor in values.items()}
        sleeper.sleep()
        assert sleeper.state == "asleep"
        with pytest.raises(strew.InvalidArgument, match="asleep"):
            sleeper.prepare()
        with pytest.raises(strew.InvalidArgument, match="asleep"):
            sleeper.receive(2, 1.0)
        change(values, 2)
        report = update(trainer, 2, awake)
        assert report.committed and len(report.groups) == 1
        assert has(other, values) and has(module, old)  # nothing was written meanwhile
        sleeper.wake()
        assert sleeper.state == "STALE"
        change(values, 3)
        assert len(update(trainer, 3, sleeper, awake).groups) == 2
        assert has(module, values) and has(other, values)
    sleeper.close()
    awake.close()


@pytest.mark.parametrize("apply", ["staged", "direct"])
def test_awake_it_catches_up(broker, apply):
    """In memory that the broker maps, as a GPU's is: what it has missed a sibling gives it."""
    values = random_values(SHAPES, 1)
    (module, sleeper), (other, awake) = [
        make(broker, replica=i, zeros=strew.host_empty, apply=apply) for i in range(2)]
    sleeper.register()
    awake.register()
    with trainer_of(broker, values) as trainer:
        assert update(trainer, 1, sleeper, awake).committed
        sleeper.sleep()
        change(values, 2)
        assert update(trainer, 2, awake).committed
        sleeper.wake()
        assert sleeper.state in ("STALE", "PENDING") and not has(module, values)
        sleeper.receive(2, 10.0)  # nobody publishes it again
        sleeper.finish()
        assert sleeper.version == 2 and has(module, values)
        # Its gate is asked for when an update comes: that one is what it waits for.
        sleeper.sleep()
        change(values, 3)
        assert update(trainer, 3, awake).committed
        sleeper.wake()
        change(values, 4)
        sleeper.prepare()
        handle = trainer.publish_async(4, timeout=20.0)
        time.sleep(0.5)  # it has begun, and what it has ended is in the sleeper's queue
        in_threads([functools.partial(one.receive, 4, 20.0) for one in (sleeper, awake)])
        assert handle.report(30).committed
        assert has(module, values) and has(other, values)
    sleeper.close()
    awake.close()


@pytest.mark.parametrize("when", ["between updates", "before the gate"])
def test_a_broker_that_is_another_one_now(tmp_path, when):
    first = Broker(tmp_path)
    values = random_values(SHAPES, 1)
    module, receiver = make(first)
    receiver.register()
    trainer = trainer_of(first, values)
    assert update(trainer, 1, receiver).committed
    if when == "before the gate":
        receiver.prepare()
    first.stop()
    second = Broker(tmp_path)
    try:
        change(values, 2)
        trainer.reconnect(20)
        if when == "before the gate":
            # It finds out in its gate, registers with the next one, and takes part after that.
            with pytest.raises(strew.Error, match="version 2|did not come"):
                receiver.receive(2, 0.2)
        assert update(trainer, 2, receiver).committed and has(module, values)
    finally:
        receiver.close()
        trainer.close()
        second.stop()


def test_a_broker_that_goes_in_an_update(tmp_path):
    first = Broker(tmp_path)
    values = random_values(SHAPES, 1)
    module, receiver = make(first)
    receiver.register()
    trainer = trainer_of(first, values)
    assert update(trainer, 1, receiver).committed
    old = {name: tensor.clone() for name, tensor in values.items()}
    receiver.prepare()
    second = []

    def successor():
        first.stop()
        second.append(Broker(tmp_path))
    waits = threading.Timer(0.3, successor)  # the receiver is in its gate by then, or soon after
    waits.start()
    try:
        with pytest.raises(strew.Error, match="keeps version 1"):
            receiver.receive(2, 5.0)
        waits.join()
        assert has(module, old) and receiver.version == 1 and receiver.state == "CURRENT"
        trainer.reconnect(20)
        change(values, 3)
        assert update(trainer, 2, receiver).committed and has(module, values)
    finally:
        receiver.close()
        trainer.close()
        second[0].stop()


BIG = 32 << 20  # of int64: 256 MiB, which takes a broker long enough to be killed in the middle


class Torn:
    """A group whose broker was killed while it wrote to the memory of its first worker."""

    def __init__(self, folder, apply, size=1):
        self.folder, self.apply, self.size = folder, apply, size
        self.memory = [strew.host_empty((BIG,), torch.int64) for _ in range(size)]
        self.values = {"w": strew.host_empty((BIG,), torch.int64)}
        for one in self.memory:
            one.zero_()
        self.version, end = 0, time.monotonic() + 60
        while not self.begin():  # until the kill has hit the middle
            assert time.monotonic() < end
            self.close()

    def receiver(self, rank):
        memory, all_of_it = self.memory[rank], (BIG,)
        piece = Piece("w", torch.int64, all_of_it, all_of_it, (0,), all_of_it, 0, (1,))
        layout = strew.Layout({"w": LayoutParameter(memory, [piece], ("w",),
                                                    address=memory.data_ptr())})
        return Receiver(layout, lambda: strew.Agent(
            "m", rank=rank, size=self.size, socket=self.broker.socket, apply=self.apply),
            lambda: None, 0.2)

    def begin(self):
        self.broker = Broker(self.folder)
        self.receivers = [self.receiver(rank) for rank in range(self.size)]
        in_threads([one.register for one in self.receivers])
        self.trainer = trainer_of(self.broker, self.values)
        self.version += 1
        self.values["w"].fill_(self.version)
        self.raised = [None] * self.size

        def receive(rank):
            try:
                self.receivers[rank].receive(self.version, 20.0)
            except strew.Error as failure:
                self.raised[rank] = failure
        gates = [threading.Thread(target=receive, args=(r,)) for r in range(self.size)]
        for one in self.receivers:
            one.prepare()
        for gate in gates:
            gate.start()
        self.trainer.publish_async(self.version, timeout=20.0)
        seen = self.memory[0][::BIG // 64]
        while gates[0].is_alive() and not (seen == self.version).any():
            pass
        self.kill()
        for gate in gates:
            gate.join(30)
            assert not gate.is_alive()
        return 0 < int((self.memory[0] == self.version).sum()) < BIG

    def kill(self):
        self.broker.process.kill()
        self.broker.process.wait()

    def close(self):
        for one in self.receivers:
            one.close()
        self.trainer.close()
        self.kill()

    def heal(self):
        """The next version, and finish() of all."""
        self.trainer.reconnect(20)
        self.values["w"].fill_(self.version + 1)
        assert update(self.trainer, self.version + 1, *self.receivers).committed
        assert all((one == self.version + 1).all() for one in self.memory)
        for one in self.receivers:
            one.prepare()
            one.finish()
            assert one.state == "CURRENT"


@pytest.mark.parametrize("apply, state", [("direct", "DIRTY"), ("staged", "IN_DOUBT")])
def test_a_broker_that_is_killed_while_it_writes(tmp_path, apply, state):
    """No step runs on half-written weights, whether another broker comes or not."""
    torn = Torn(tmp_path, apply)
    receiver, = torn.receivers
    try:
        assert isinstance(torn.raised[0], strew.Dirty), torn.raised
        assert receiver.state == state
        for _ in range(2):
            with pytest.raises(strew.Dirty):
                receiver.finish()
            with pytest.raises(strew.BrokerMissing):
                receiver.prepare()
        torn.broker = Broker(tmp_path)
        for _ in range(2):
            receiver.prepare()  # an update is what heals
            assert receiver.state == "DIRTY"
            with pytest.raises(strew.Dirty):
                receiver.finish()
        with pytest.raises(strew.Dirty):
            receiver.receive(torn.version, 0.2)  # nobody publishes it
        with pytest.raises(strew.Dirty):
            receiver.finish()
        receiver.sleep()  # what was saved and comes back is torn, and new to the broker
        receiver.wake()
        receiver.prepare()
        with pytest.raises(strew.Dirty):
            receiver.finish()
        with pytest.raises(strew.Dirty):
            receiver.receive(torn.version, 0.2)
        torn.heal()
    finally:
        torn.close()


def test_a_torn_member_of_a_group_that_is_forming(tmp_path):
    """Its state is no answer before the others are there: the broker's grant is one."""
    torn = Torn(tmp_path, "direct", size=2)
    first, second = torn.receivers
    try:
        assert all(isinstance(one, strew.Dirty) for one in torn.raised), torn.raised
        torn.broker = Broker(tmp_path)
        first.prepare()
        assert first.state == "FORMING"
        with pytest.raises(strew.Dirty):
            first.receive(torn.version, 0.2)
        with pytest.raises(strew.Dirty):
            first.finish()
        second.prepare()
        for one in torn.receivers:
            with pytest.raises(strew.Dirty):
                one.finish()
        torn.heal()
    finally:
        torn.close()


def test_a_broker_that_goes_before_it_has_begun_to_write(tmp_path):
    """The gate was open, and nobody knows; the next broker does: steps may run."""
    broker = Broker(tmp_path)
    values = random_values(SHAPES, 1)
    (module, receiver), (_, late) = [make(broker, rank=r, size=2, timeout=0.2, apply="direct")
                                     for r in range(2)]
    in_threads([receiver.register, late.register])
    trainer = trainer_of(broker, values)
    old = {name: getattr(module, name).data.clone() for name in SHAPES}
    try:
        receiver.prepare()
        trainer.publish_async(1, timeout=20.0)  # the other never pauses: nothing is written
        kill = threading.Timer(0.5, broker.process.kill)
        kill.start()
        with pytest.raises(strew.Dirty, match="may have been, written"):
            receiver.receive(1, 20.0)
        with pytest.raises(strew.Dirty):
            receiver.finish()
        broker.process.wait()
        broker = Broker(tmp_path)
        receiver.prepare()
        receiver.finish()
        assert has(module, old)
        late.prepare()
        trainer.reconnect(20)
        assert update(trainer, 1, receiver, late).committed and has(module, values)
    finally:
        receiver.close()
        late.close()
        trainer.close()
        broker.process.kill()
        broker.process.wait()


def test_no_broker(tmp_path):
    class Nobody:
        socket = tmp_path / "nobody"
    _, receiver = make(Nobody)
    with pytest.raises(strew.BrokerMissing, match="nobody"):
        receiver.register()
    with pytest.raises(strew.BrokerMissing):
        receiver.wake()
    assert receiver.state == "not registered" and receiver.version == 0
    with pytest.raises(strew.InvalidArgument, match="not registered"):
        receiver.receive(1, 1.0)


class Doubling(Worker):
    """An engine that scales one parameter after loading."""

    fails = False

    def reload(self, weights):
        if self.fails:
            raise RuntimeError("no scales")
        self.load_weights(weights)
        self.b.data.mul_(2)


def test_a_loader_that_fails_stops_the_engine_and_heals(broker):
    values = random_values(SHAPES, 1)
    module = Doubling()
    module.reload(values.items())
    layout = strew.record_layout(module, module.load_weights, SHAPES, prove=values,
                                 reload=module.reload)
    assert layout.loader == ["b"] and "a" in layout.parameters
    receiver = Receiver(layout, lambda: strew.Agent("m", socket=broker.socket), lambda: None)
    receiver.register()
    with trainer_of(broker, values) as trainer:
        module.fails = True
        change(values, 2)
        receiver.prepare()
        handle = trainer.publish_async(1)
        with pytest.raises(strew.LoaderFailed, match="no scales"):
            receiver.receive(1, 20.0)
        assert handle.report().committed
        with pytest.raises(strew.LoaderFailed, match="no scales"):
            receiver.finish()  # no step may run
        module.fails = False
        receiver.prepare()
        receiver.receive(1, 1.0)  # tries again: the tensors are there
        receiver.finish()
        assert same_bits(module.b.data, values["b"] * 2) and same_bits(module.a.data, values["a"])
    receiver.close()


@pytest.mark.parametrize("route", ["loader", "raw"])
def test_a_broker_that_goes_between_the_commit_and_the_grant(tmp_path, monkeypatch, route):
    """All is there, but for what the engine's own loader makes of it."""
    broker = Broker(tmp_path)
    values = random_values(SHAPES, 1)
    module = Doubling()
    module.reload(values.items()) if route == "loader" else module.load_weights(values.items())
    layout = strew.record_layout(module, module.load_weights, SHAPES, prove=values,
                                 reload=module.reload if route == "loader" else None)
    receiver = Receiver(layout, lambda: strew.Agent("m", socket=broker.socket), lambda: None, 0.2)
    receiver.register()
    trainer = trainer_of(broker, values)
    change(values, 2)
    try:
        receiver.prepare()
        running = trainer.publish_async(1)
        resume = receiver._agent.resume

        def late(timeout):
            assert running.report().committed
            monkeypatch.undo()
            broker.process.kill()
            broker.process.wait()
            resume(timeout)
        monkeypatch.setattr(receiver._agent, "resume", late)
        if route == "loader":
            with pytest.raises(strew.Dirty, match="before the engine's loader has run"):
                receiver.receive(1, 20.0)
            with pytest.raises(strew.Dirty):
                receiver.finish()
            broker = Broker(tmp_path)
            receiver.prepare()
        else:
            receiver.receive(1, 20.0)
        receiver.finish()
        factor = 2 if route == "loader" else 1
        assert same_bits(module.b.data, values["b"] * factor)
        assert same_bits(module.a.data, values["a"])
    finally:
        receiver.close()
        trainer.close()
        broker.process.kill()
        broker.process.wait()


def test_a_gate_that_is_not_given_back(broker, monkeypatch):
    """In time, or at all as Ctrl-C came: no step may run before the broker has answered."""
    values = random_values(SHAPES, 1)
    module, receiver = make(broker, timeout=0.2)
    receiver.register()
    for reason in (strew.Timeout(110, "late"), KeyboardInterrupt()):
        def resume(_, reason=reason):
            raise reason
        monkeypatch.setattr(receiver._agent, "resume", resume)
        with pytest.raises((strew.Dirty, KeyboardInterrupt)):
            receiver.receive(1, 0.2)
        with pytest.raises(strew.Dirty, match="not given"):
            receiver.finish()
        monkeypatch.undo()
        receiver.prepare()
        receiver.finish()
    with trainer_of(broker, values) as trainer:
        assert update(trainer, 1, receiver).committed and has(module, values)
    receiver.close()


def test_an_engine_that_repacks_what_it_has_loaded(broker):
    """Its loader does not load any more into what it has put there; its reload does."""
    class Packed(Worker):
        def reload(self, weights):
            self.a = nn.Parameter(torch.zeros(6, 5), requires_grad=False)
            self.load_weights(weights)
            self.packed = self.a.data.t().contiguous()
            self.a = nn.Parameter(torch.empty(0), requires_grad=False)

    values = random_values(SHAPES, 1)
    module = Packed()
    module.reload(values.items())
    with pytest.raises(strew.NotShareable, match="at tensor a"):
        strew.record_layout(module, module.load_weights, SHAPES, prove=values)
    layout = strew.record_layout(module, module.load_weights, SHAPES, prove=values,
                                 reload=module.reload)
    assert layout.loader == ["b", "packed"] and not layout.refused and not layout.parameters
    before = module.packed.data_ptr()
    receiver = Receiver(layout, lambda: strew.Agent("m", socket=broker.socket), lambda: None)
    receiver.register()
    with trainer_of(broker, values) as trainer:
        change(values, 2)
        assert update(trainer, 1, receiver).committed
    assert same_bits(module.packed, values["a"].t()) and same_bits(module.b.data, values["b"])
    assert module.packed.data_ptr() == before
    receiver.close()


class World:
    """What an engine's group of workers is to find_place()."""

    def __init__(self, rank, size):
        self.rank_in_group, self.world_size, self.cpu_group = rank, size, None


def test_places(monkeypatch):
    """Four workers: two copies in two stages, the last worker at another broker."""
    monkeypatch.delenv("STREW_REPLICA", raising=False)
    said = []
    where = [(0, 0, "/s"), (0, 0, "/s"), (1, 0, "/s"), (1, 0, "/t"), (0, 1, "/s")]

    def gather(out, mine, group):
        if len(said) < len(where):
            said.append(mine)
        out[:] = said + [None] * (len(where) - len(said))
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank, (copy, part, socket) in enumerate(where):  # collects; the last knows all
        try:
            find_place(World(rank, len(where)), copy, part, socket)
        except TypeError:
            assert rank < len(where) - 1
    places = [find_place(World(rank, len(where)), copy, part, socket)
              for rank, (copy, part, socket) in enumerate(where)]
    assert [(p.part, p.rank, p.size) for p in places] == [
        (0, 0, 2), (0, 1, 2), (0, 0, 1), (0, 0, 1), (1, 0, 1)]
    replicas = [p.replica for p in places]
    assert replicas[0] == replicas[1] == replicas[4] and replicas[2] == replicas[3]
    assert replicas[0] != replicas[2]
    monkeypatch.setenv("STREW_REPLICA", "7")
    assert find_place(World(0, 1), 2, 1, None) == (9, 1, 0, 1)


def test_values_in_the_trainers_dtypes():
    described = read_described(write_described({"a": torch.zeros(2, 3), "b": torch.zeros(
        4, dtype=torch.bfloat16)}))
    assert described == {"a": (torch.float32, (2, 3)), "b": (torch.bfloat16, (4,))}
    half = {"a": torch.ones(2, 3, dtype=torch.bfloat16), "other": torch.zeros(1)}
    values = Values(half, described)
    assert list(values) == ["a"] and values["a"].dtype == torch.float32 and "b" not in values
    made = MadeUp(described)
    assert same_bits(made["b"], made["b"]) and made["b"].dtype == torch.bfloat16
    assert not torch.equal(made["a"][0], made["a"][1])


class OldSource:
    """As vLLM's WeightSource is until 0.32."""

    def __init__(self, tensors):
        self.tensors = tensors

    def metadata(self):
        return [type("Meta", (), {"name": n, "dtype": t.dtype, "shape": tuple(t.shape)})
                for n, t in self.tensors.items()]

    def __iter__(self):
        return iter((n, t.clone()) for n, t in self.tensors.items())


class NewSource(OldSource):
    """... and from 0.33 on."""

    metadata = property(OldSource.metadata)

    def iter_full(self):
        return OldSource.__iter__(self)

    __iter__ = None


@pytest.mark.parametrize("kind", [OldSource, NewSource])
def test_a_source_that_makes_its_tensors(broker, kind):
    values = random_values(SHAPES, 1)
    module, receiver = make(broker)
    receiver.register()
    source = Source(kind(values), 0, 2)
    assert source.ranks == 1 and source.publishes and not source.in_place
    assert not Source(kind(values), 1, 2).publishes
    source.fill()
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        source.declare(trainer)
        for version in (1, 2):
            change(values, version)
            source.fill()
            assert update(trainer, version, receiver).committed and has(module, values)
    receiver.close()
    short = kind(dict(values))
    source = Source(short, 0, 1)
    del short.tensors["b"]
    with pytest.raises(strew.InvalidArgument, match="made 1 tensors, its metadata name 2"):
        source.fill()


def test_a_modules_own_memory(broker):
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for given in (module, dict(module.named_parameters()),
                  type("ModuleSource", (), {"_module": module})()):
        source = Source(given, 1, 2)
        assert source.in_place and source.ranks == 2 and source.publishes
        assert [row[0] for row in source.described] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    parts = OldSource(random_values(SHAPES, 1))
    parts.held_names = lambda: ["a"]
    with pytest.raises(strew.InvalidArgument, match="another part"):
        Source(parts, 0, 2)


def test_strew_is_imported_without_engines():
    import subprocess
    import sys
    code = ("import sys, strew; strew.vllm.register, strew.sglang.load; "
            "assert not {'vllm', 'sglang', 'torch'} & set(sys.modules), 'imported'")
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_calls_that_vllms_clients_have_not(monkeypatch, caplog):
    """Pausing and resetting the cache: by HTTP, by Ray's actors, by methods, or not at all."""
    import http.server
    import sys
    import types

    from strew.vllm._client import Control
    asked, reset = [], [True]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            if "reset" in self.path:
                self.wfile.write(b'{"success": %s}' % (b"true" if reset[0] else b"false"))

        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        one = Control(types.SimpleNamespace(base_url=f"http://127.0.0.1:{server.server_port}"))
        one.pause("keep")
        one.reset_prefix_cache()
        one.resume()
        assert asked == ["/pause?mode=keep", "/reset_prefix_cache?reset_running_requests=true",
                         "/resume"]
        reset[0] = False
        with pytest.raises(strew.Error, match="did not reset its prefix cache"):
            one.reset_prefix_cache()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    class Method:
        def __init__(self, name):
            self.name = name

        def remote(self, **options):
            asked.append((self.name, options))
            return True
    handle = types.SimpleNamespace(**{name: Method(name) for name in (
        "pause_generation", "resume_generation", "reset_prefix_cache")})
    patience = []
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(
        get=lambda answers, timeout: patience.append(timeout) or answers))
    del asked[:]
    one = Control(types.SimpleNamespace(handles=[handle, handle]))
    one.pause("wait")
    one.reset_prefix_cache()
    assert asked == [("pause_generation", {"mode": "wait"})] * 2 + [
        ("reset_prefix_cache", {"reset_running_requests": True})] * 2
    Control(types.SimpleNamespace(handles=[handle], timeout=7)).resume()
    assert patience == [300, 300, 7]  # seconds: an actor that hangs is no reason to

    finished = []
    assert not caplog.records
    one = Control(types.SimpleNamespace(finish_weight_update=lambda: finished.append("old")))
    assert "call vLLM's around send_weights() yourself" in caplog.text
    one.pause("keep")
    one.finish(3)
    Control(types.SimpleNamespace(finish_weight_update=lambda weight_version=None:
                                  finished.append(weight_version))).finish(3)
    assert finished == ["old", "3"]


def test_workers_of_an_engine_fail_together(monkeypatch):
    """In the last one alone: what is behind a failure vLLM takes for the answer to a later call."""
    import sys
    import types

    from strew.vllm._core import answer_together
    mine, meets, said = threading.local(), threading.Barrier(2, timeout=20), [None, None]
    world = types.SimpleNamespace(world_size=2, cpu_group=None)
    monkeypatch.setitem(sys.modules, "vllm.distributed.parallel_state",
                        types.SimpleNamespace(get_world_group=lambda: world))
    for name in ("vllm", "vllm.distributed"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def gather(out, one, group):
        said[mine.rank] = one
        meets.wait()
        out[:] = said
        meets.wait()
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)

    class Worker:
        core = types.SimpleNamespace(config=types.SimpleNamespace(
            parallel_config=types.SimpleNamespace(world_size=2)))

        def __init__(self, rank):
            self.rank, self.failure = rank, None

        def finish(self):
            if self.failure is not None:
                raise self.failure
            return self.rank
    answer_together(Worker, lambda worker: worker.core, ("finish", "what an older one has not"))
    workers = [Worker(0), Worker(1)]

    def both():
        answers = [None, None]

        def run(rank):
            mine.rank = rank
            try:
                answers[rank] = workers[rank].finish()
            except Exception as failure:
                answers[rank] = failure
        in_threads([lambda r=r: run(r) for r in range(2)])
        return answers
    assert both() == [0, 1]
    workers[0].failure = strew.Dirty(117, "written in part")
    first, last = both()
    assert first is None and "worker 0: written in part" in str(last)
    workers[1].failure = RuntimeError()
    assert both() == [None, workers[1].failure]
    world.world_size = 4  # data-parallel copies
    assert both() == [workers[0].failure, workers[1].failure]
