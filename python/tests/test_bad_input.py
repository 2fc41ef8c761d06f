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
