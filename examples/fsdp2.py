#!/usr/bin/env python3
"""A plain PyTorch loop with FSDP2: two trainer ranks, each of which publishes the shards it holds.

    python3 examples/fsdp2.py --steps 3
    python3 examples/fsdp2.py --steps 3 --gather

Nothing is gathered: a DTensor's local shard is declared as the box that it is, and the broker puts
the boxes of both ranks together in the memory of two workers, which hold half of each matrix and
wait between two steps. For the comparison, and for that alone, the trainer saves a gathered
state_dict, with which each worker's own loader fills a second module: both must be equal, bit for
bit.

With --gather rank 0 publishes whole tensors, which both ranks gather one after another: what a
trainer does that has to merge, convert or rename them first. It never holds more of them than one
tensor and the area of a part.

Needs torch, and the package strew (its wheel has the broker in it). No GPU is needed.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import strew

RANKS, WORKERS = 2, 2
WIDTH, INNER, CLASSES = 24, 50, 7  # 7 rows over two ranks: shards of 4 and 3
AREA = 6000  # bytes; of 11 KB in all, with --gather


def make_model():
    return nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH),
                         nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES, bias=False))


def gathered(model):
    """Whole tensors, one after another. To make one takes all ranks, so all run through them."""
    for name, shard in model.state_dict().items():
        yield name, shard.full_tensor()


def open_trainer(model, rank, gather):
    """Of each rank; with gather of rank 0 alone, the others have nothing to declare."""
    if not gather:
        trainer = strew.Trainer(model="policy")  # rank and size from the environment
        trainer.declare(model)
        return trainer
    if rank > 0:
        return None
    trainer = strew.Trainer(model="policy", rank=0, size=1)
    taken = trainer.declare_parts({name: (tensor.dtype, tuple(tensor.shape))  # a DTensor's: whole
                                   for name, tensor in model.state_dict().items()},
                                  buffer_bytes=AREA)
    print(f"gathering in {taken} bytes", flush=True)
    return trainer


def publish(trainer, model, step, gather):
    """None: of a rank that only helps to gather."""
    if not gather:
        return trainer.publish(version=step)
    if trainer:
        return trainer.publish(version=step, source=gathered(model))
    for _ in gathered(model):
        pass
    return None


def trainer_rank(rank, port, folder, arrived, steps, gather):
    """What torchrun would start, with the environment that it would set."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), STREW_SOCKET=str(folder / "s"))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")  # a machine with a GPU would take NCCL for barrier()
    mesh = init_device_mesh("cpu", (RANKS,))
    torch.manual_seed(0)
    model = make_model()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    trainer = open_trainer(model, rank, gather)
    with trainer or contextlib.nullcontext():
        torch.manual_seed(1 + rank)
        for step in range(1, steps + 1):
            x, y = torch.randn(16, WIDTH), torch.randint(0, CLASSES, (16,))
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            save_gathered(model, rank, folder / f"state{step}")
            report = publish(trainer, model, step, gather)
            if rank == 0:
                print(f"version {step}: loss {loss.item():.3f}, {report.outcome}, "
                      f"{report.bytes} bytes in {report.total_s * 1e3:.1f} ms", flush=True)
            arrived.wait(60)  # only so that this program can compare each version
    distributed.destroy_process_group()


def save_gathered(model, rank, path):
    """The reference of the comparison. A real loop does not need it."""
    whole = {name: shard.full_tensor() for name, shard in model.state_dict().items()}
    if rank == 0:
        torch.save(whole, path)
    distributed.barrier()


class Half(nn.Module):
    """A worker's parameters: half of the rows of each matrix, the last rank's padded; the rest
    whole. load_weights() is an engine's loader: it knows checkpoints and nothing of strew."""

    def __init__(self, rank):
        super().__init__()
        self.rank = rank
        for name, like in make_model().named_parameters():
            shape = list(like.shape)
            if like.dim() == 2:
                shape[0] = -(-shape[0] // WORKERS)
            self.register_parameter(name.replace(".", "_"),
                                    nn.Parameter(torch.zeros(shape), requires_grad=False))

    def load_weights(self, weights):
        for name, tensor in weights:
            target = self.get_parameter(name.replace(".", "_")).data
            if tensor.dim() == 2:
                mine = tensor[self.rank * len(target):(self.rank + 1) * len(target)]
                target[:len(mine)].copy_(mine)
            else:
                target.copy_(tensor)


def worker(rank, folder, ready, arrived, steps):
    torch.set_num_threads(1)
    names = {name: (tensor.dtype, tuple(tensor.shape))
             for name, tensor in make_model().state_dict().items()}
    module, same = Half(rank), 0
    for parameter in module.parameters():
        parameter.data.fill_(float("nan"))  # what does not arrive is seen
    with strew.Agent(model="policy", rank=rank, size=WORKERS, socket=folder / "s",
                     partial=True) as agent:  # partial: the padding is nobody's
        agent.register(strew.record_layout(module, module.load_weights, names))
        ready.wait(60)
        for version in range(1, steps + 1):
            with agent.paused():  # between two steps of an engine
                agent.wait_version(version)
            same += compare(module, rank, torch.load(folder / f"state{version}"))
            arrived.wait(60)
    print(f"worker {rank}: {same} parameters equal", flush=True)


def compare(module, rank, state):
    """How many parameters have the bits that the loader gives them; all must."""
    twin = Half(rank)
    for parameter in twin.parameters():
        parameter.data.fill_(float("nan"))
    twin.load_weights(state.items())
    for name, want in twin.named_parameters():
        got = module.get_parameter(name).data
        if not torch.equal(got.view(torch.int32), want.data.view(torch.int32)):
            raise AssertionError(f"worker {rank}: {name} is not what the loader gives")
    return sum(1 for _ in twin.parameters())


@contextlib.contextmanager
def broker(folder):
    read, write = os.pipe()
    with open(folder / "strewd.log", "wb") as log:
        process = subprocess.Popen([strew.program("strewd"), "--socket", folder / "s", "--backend",
                                    "host", "--slot", "1M", "--ready-fd", str(write)],
                                   pass_fds=(write,), stderr=log)
    os.close(write)
    with os.fdopen(read) as pipe:
        if pipe.read() != "READY=1\n":
            sys.exit((folder / "strewd.log").read_text())
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--gather", action="store_true", help="whole tensors, from rank 0")
    options = parser.parse_args()
    steps = options.steps
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="strew-fsdp2-") as name:
        folder = pathlib.Path(name)
        ready, arrived = context.Barrier(WORKERS + 1), context.Barrier(RANKS + WORKERS)
        with broker(folder):
            processes = [context.Process(target=worker, args=(r, folder, ready, arrived, steps))
                         for r in range(WORKERS)]
            for one in processes:
                one.start()
            ready.wait(60)
            port = free_port()
            trainers = [context.Process(target=trainer_rank,
                                        args=(r, port, folder, arrived, steps,
                                              options.gather))
                        for r in range(RANKS)]
            for one in trainers:
                one.start()
            for one in processes + trainers:
                one.join(120)
                if one.exitcode is None:
                    one.kill()
    if any(one.exitcode for one in processes + trainers):
        sys.exit(1)


if __name__ == "__main__":
    main()
