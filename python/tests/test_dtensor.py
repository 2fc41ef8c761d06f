"""Shards of DTensors are declared as the boxes that they are, by two ranks; the engine has all."""

import multiprocessing
import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed.tensor")

from test_package import whole
from torch import nn

import strew
from loaders import free_port, in_threads, poisoned_twin, random_values, same_bits

SHAPES = {"0.weight": (7, 6), "0.bias": (7,), "1.weight": (5, 7)}


def make():
    return nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 5, bias=False))


def trainer_rank(rank, port, socket, values, parts, queue):
    """Shards dimension 0, dimension 1 or nothing of each tensor, and publishes its boxes."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo")  # not NCCL where there is a GPU
    try:
        mesh = init_device_mesh("cpu", (2,))
        state, keep = {}, []
        for (name, value), how in zip(values.items(), (Shard(0), Replicate(), Shard(1))):
            whole = distribute_tensor(value, mesh, [how])
            local = whole.to_local()
            memory = strew.host_empty(tuple(local.shape), local.dtype)
            memory.copy_(local)
            keep.append(memory)
            whole._local_tensor = memory
            state["module." + name] = whole
        with strew.Trainer("m", socket=socket) as trainer:  # rank and size from the environment
            if parts:  # made one after another in memory for the largest
                trainer.declare_parts(state, buffer_bytes=256)
                wrong = {**state, "1.weight": state["module.0.weight"]}
                try:
                    trainer.publish(1, source=wrong.items())
                except strew.Error as failure:  # both ranks have it, and one has heard the other
                    assert "1.weight" in str(failure), failure
                # A rank that is sooner would have its second try given up with the other's first.
                torch.distributed.barrier()
            else:
                trainer.declare(state)
            report = trainer.publish(1, source=state.items() if parts else None)
            queue.put(report.outcome)
    except BaseException as failure:  # pylint: disable=broad-except
        queue.put(repr(failure))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("parts", [False, True])
def test_shards_of_two_ranks(broker, parts):
    values = random_values({n: (torch.float32, s) for n, s in SHAPES.items()})
    module = poisoned_twin(make)
    layout = strew.record_layout(module, lambda w: module.load_state_dict(dict(w)), values)
    context = multiprocessing.get_context("spawn")
    queue, port = context.Queue(), free_port()
    with strew.Agent("m", gate="live", socket=broker.socket) as agent:
        agent.register(layout)
        ranks = [context.Process(target=trainer_rank,
                                 args=(r, port, broker.socket, values, parts, queue))
                 for r in range(2)]
        for one in ranks:
            one.start()
        assert [queue.get(timeout=90) for _ in ranks] == ["committed"] * 2
        for one in ranks:
            one.join(30)
    for name, parameter in module.named_parameters():
        assert same_bits(parameter.data, values[name]), name


def in_two_ranks(function, *arguments):
    """What function(rank, *arguments) says in two ranks of torch's: sentences, or an exception."""
    context = multiprocessing.get_context("spawn")
    queue, port = context.Queue(), free_port()
    ranks = [context.Process(target=run_rank, args=(r, port, queue, function, arguments))
             for r in range(2)]
    for one in ranks:
        one.start()
    said = dict(queue.get(timeout=90) for _ in ranks)
    for one in ranks:
        one.join(30)
    return [said[rank] for rank in range(2)]


def run_rank(rank, port, queue, function, arguments):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo")
    try:
        queue.put((rank, function(rank, *arguments)))
        torch.distributed.barrier()
    except BaseException as failure:  # pylint: disable=broad-except
        queue.put((rank, repr(failure)))
    finally:
        torch.distributed.destroy_process_group()


def declare_permuted(_, socket):
    """By FSDP2, by distribute_tensor(), and what has no order in it."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    mesh = DeviceMesh("cpu", [1, 0])
    module = nn.Linear(1, 4, bias=False)
    fully_shard(module, mesh=mesh)
    values = {"weight": module.weight,
              "one": distribute_tensor(torch.arange(4.), mesh, [Shard(0)]),
              "same": distribute_tensor(torch.arange(4.), mesh, [Replicate()])}
    said = []
    for name, value in values.items():
        with strew.Trainer("m", socket=socket) as trainer:
            try:
                trainer.declare({name: value})
                said.append("")
            except strew.NotShareable as failure:
                said.append(str(failure))
    return said


def test_a_mesh_whose_ranks_do_not_rise(broker):
    """torch's offsets are of other shards than its data then: rows would come swapped."""
    for said in in_two_ranks(declare_permuted, broker.socket):
        assert [s[:12] for s in said] == ["tensor weigh", "tensor one: ", ""], said
        assert "do not rise along dimension 0" in said[0] and "declare_box()" in said[1]


def publish_apart(rank, socket, parts):
    """Each tensor is on a mesh of one rank alone."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    meshes = [DeviceMesh("cpu", [0]), DeviceMesh("cpu", [1])]
    values = {"a": distribute_tensor(torch.arange(8.).view(4, 2), meshes[0], [Shard(0)]),
              "b": distribute_tensor(torch.arange(8., 16.).view(4, 2), meshes[1], [Shard(1)]),
              "c": distribute_tensor(torch.tensor(16.), meshes[1], [Replicate()])}
    with strew.Trainer("m", socket=socket) as trainer:
        if parts:
            trainer.declare_parts(values)
            return trainer.publish(1, source=values.items()).tensors
        trainer.declare(values)
        return trainer.publish(1).tensors


@pytest.mark.parametrize("parts", [False, True])
def test_a_mesh_that_a_rank_is_no_part_of(broker, parts):
    """It holds nothing of such a tensor; the other rank has it all."""
    shapes = {"a": (4, 2), "b": (4, 2), "c": ()}
    memory = {name: strew.host_empty(shape, torch.float32) for name, shape in shapes.items()}
    with strew.Agent("m", gate="live", socket=broker.socket) as agent:
        for name, tensor in memory.items():
            agent.piece(agent.declare(name, tensor), whole(name, tensor))
        agent.register()
        assert in_two_ranks(publish_apart, broker.socket, parts) == [3, 3]
        agent.wait_version(1, 20)
    assert torch.cat([t.flatten() for t in memory.values()]).tolist() == list(range(17))


def test_a_rank_that_never_publishes_is_named(broker):
    array = strew.host_empty((4,), torch.float32)
    module = poisoned_twin(lambda: nn.Linear(4, 1, bias=False))
    layout = strew.record_layout(module, lambda w: module.load_state_dict(dict(w)),
                                 {"weight": (torch.float32, (1, 4))})
    with strew.Agent("m", gate="live", socket=broker.socket) as agent:
        agent.register(layout)
        trainers = [strew.Trainer("m", rank=r, size=2, socket=broker.socket) for r in range(2)]
        for trainer in trainers:
            trainer.declare({"weight": array[None]})
        in_threads([t.seal for t in trainers])
        with pytest.raises(strew.Error, match="rank"):
            trainers[0].publish(1, timeout=1)
        for trainer in trainers:
            trainer.close()
