"""What a user may do wrong: refused by name, with a sentence, and nothing else is harmed."""

import errno
import multiprocessing
import os
import signal

import numpy
import pytest

torch = pytest.importorskip("torch")

from test_package import host_copy, live_agent, whole  # noqa: E402
from torch import nn  # noqa: E402

import strew  # noqa: E402
from loaders import in_threads  # noqa: E402


def random_array(*shape):
    return host_copy(numpy.random.default_rng().standard_normal(shape, "float32"))


def test_a_wrong_device(broker):
    tensor = torch.zeros(3, device="meta")
    with strew.Agent("m", socket=broker.socket) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        for declare in (lambda: agent.declare("the.name", tensor),
                        lambda: trainer.declare({"the.name": tensor})):
            with pytest.raises(strew.NotShareable, match="tensor the.name: it is on meta"):
                declare()


@pytest.mark.parametrize("face", ["agent", "trainer"])
def test_a_tensor_that_overlaps_itself(broker, face):
    tensor = torch.zeros(6).as_strided((4, 3), (1, 1))
    with strew.Agent("m", socket=broker.socket) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        with pytest.raises(strew.NotShareable, match="tensor the.name: .* overlaps itself"):
            if face == "agent":
                agent.declare("the.name", tensor)
            else:
                trainer.declare({"the.name": tensor})


def test_memory_that_two_parameters_share(broker):
    array = random_array(4, 4)
    with strew.Agent("m", socket=broker.socket) as agent:
        for name, part in (("w", array), ("v", array[1:])):
            agent.piece(agent.declare(name, part), whole(name, part))
        with pytest.raises(strew.InvalidArgument, match="parameters w and v share memory"):
            agent.register()
    with strew.Agent("m", socket=broker.socket) as agent:
        number = agent.declare("w", array)
        for name in ("a", "b"):
            agent.piece(number, whole(name, array))
        with pytest.raises(strew.InvalidArgument, match="tensors a and b would write the same"):
            agent.register()


def test_a_name_twice(broker, tmp_path):
    """Of a parameter, of a tensor, among the names of a layout, in the files of a checkpoint."""
    safetensors = pytest.importorskip("safetensors.torch")
    array = random_array(4, 4)
    with strew.Agent("m", socket=broker.socket) as agent:
        agent.declare("w", array)
        with pytest.raises(strew.InvalidArgument, match="parameter w: the name is declared") as got:
            agent.declare("w", random_array(2))
        assert got.value.code == errno.EEXIST
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        with pytest.raises(strew.InvalidArgument, match="tensor w is declared twice"):
            trainer.declare([("w", array), ("_orig_mod.w", array)])
    module = nn.Linear(4, 4, bias=False)
    with pytest.raises(strew.InvalidArgument, match="tensor weight is named twice"):
        strew.record_layout(module, lambda weights: module.load_state_dict(dict(weights)),
                            [("weight", (torch.float32, (4, 4)))] * 2)
    for i in range(2):
        safetensors.save_file({"w": torch.zeros(3)}, tmp_path / f"{i}.safetensors")
    with pytest.raises(strew.InvalidArgument, match="1.safetensors: tensor w is there twice"):
        strew.open_checkpoint(tmp_path)


def test_a_worker_and_a_rank_that_are_there_already(broker):
    array = random_array(4)
    with live_agent(broker, "w", array), \
            strew.Agent("m", gate="live", socket=broker.socket) as second:
        second.piece(second.declare("w", random_array(4)), whole("w", array))
        with pytest.raises(strew.Error, match="member 0.*already"):
            second.register()
    trainers = [strew.Trainer("m", rank=0, size=1, socket=broker.socket) for _ in range(2)]
    with trainers[0], trainers[1]:
        for trainer in trainers:
            trainer.declare({"w": array})
        trainers[0].seal()
        with pytest.raises(strew.InvalidArgument, match="rank 0 is registered already"):
            trainers[1].seal()


def rank_one(socket, pipe):
    with strew.Trainer("m", rank=1, size=2, socket=socket) as trainer:
        trainer.declare_box("w", random_array(2, 4), shape=(4, 4), start=(2, 0))
        trainer.seal()
        pipe.send("sealed")
        pipe.recv()


def test_a_rank_that_died(broker):
    """The others are told which, at once, and the workers keep what they have."""
    target = host_copy(numpy.full((4, 4), 7, "float32"))
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    other = context.Process(target=rank_one, args=(broker.socket, theirs), daemon=True)
    other.start()
    with strew.Agent("m", gate="live", socket=broker.socket) as agent, \
            strew.Trainer("m", rank=0, size=2, socket=broker.socket) as trainer:
        agent.piece(agent.declare("w", target), whole("w", target))
        agent.register()
        trainer.declare_box("w", random_array(2, 4), shape=(4, 4), start=(0, 0))
        in_threads([trainer.seal, lambda: pipe.recv() == "sealed" or pytest.fail("no seal")])
        running = trainer.publish_async(1, timeout=60)
        os.kill(other.pid, signal.SIGKILL)
        other.join(20)
        with pytest.raises(strew.NotCommitted, match="trainer rank 1 was lost"):
            running.report(20)
        assert (target == 7).all() and agent.version == 0


@pytest.mark.parametrize("face, options", [
    ("Trainer", {"rank": 2**32, "size": 1}), ("Trainer", {"rank": -1, "size": 1}),
    ("Trainer", {"rank": 0, "size": 2**32 + 1}), ("Trainer", {"rank": 0, "size": 0}),
    ("Trainer", {"rank": 0.0, "size": 1}), ("Agent", {"size": 2**32 + 1}), ("Agent", {"size": 0}),
    ("Agent", {"part": 2**32 + 1}), ("Agent", {"replica": -1}), ("Agent", {"rank": 2**32})])
def test_numbers_that_would_be_cut(broker, face, options):
    with pytest.raises(strew.InvalidArgument, match=rf"{face}: \w+ .*are allowed"):
        getattr(strew, face)("m", socket=broker.socket, **options)


def test_names_that_would_be_cut(broker):
    array = random_array(4)
    for face in (strew.Trainer, strew.Agent):
        for model, socket in (("po\0licy", broker.socket), ("m", f"{broker.socket}\0x")):
            with pytest.raises(strew.InvalidArgument, match="a NUL is in it"):
                face(model, socket=socket)
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer, \
            strew.Agent("m", socket=broker.socket) as agent:
        for declare in (lambda: trainer.declare({"a\0b": array}),
                        lambda: trainer.declare_box("a\0b", array, shape=(4,), start=(0,)),
                        lambda: agent.declare("a\0b", array),
                        lambda: agent.piece(agent.declare("a", array), whole("a\0b", array))):
            with pytest.raises(strew.InvalidArgument, match="a NUL is in it"):
                declare()


def test_one_name_where_several_are_wanted(broker):
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"q.weight": random_array(4)})
        for publish in (trainer.publish, trainer.publish_async):
            with pytest.raises(strew.InvalidArgument, match="only='q.weight' is one string"):
                publish(1, only="q.weight")


@pytest.mark.parametrize("shape", [(2**62, 4), (2**61,), (-1,), (-1, -4), -1])
def test_memory_that_cannot_be(shape):
    with pytest.raises(strew.InvalidArgument, match="host_empty: shape .*-1|2305|4611"):
        strew.host_empty(shape, torch.float32)
