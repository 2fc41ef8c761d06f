#!/usr/bin/env python3
"""A reinforcement-learning loop on one machine: a trainer, two tensor-parallel workers, one broker.

    python3 examples/rl_loop.py --steps 5

The trainer takes optimizer steps on a small Llama of transformers. Two workers hold a half of each
matrix, generate together, and pause between tokens while an update is written into their memory.
Nothing of a worker knows strew's layouts: its own loader, run once without data, tells them. After
each commit the workers' logits are compared, bit for bit, with those of a second pair that the
same loader has filled from the trainer's state_dict.

Needs torch and transformers, and the package strew (its wheel has the broker in it).
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import torch
import transformers
from torch import distributed, nn

import strew

CONFIG = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 8,
          "num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 256,
          "max_position_embeddings": 128, "tie_word_embeddings": False}
SIZE = 2  # workers


class Linear(nn.Module):
    """A slice of fused matrices. rows: split by output, and each rank has its part of each."""

    def __init__(self, rank, parts, inner, rows=True):
        super().__init__()
        self.rank, self.rows = rank, rows
        self.parts = [n // SIZE for n in parts] if rows else parts
        shape = (sum(self.parts), inner) if rows else (parts[0], inner // SIZE)
        self.weight = nn.Parameter(torch.zeros(shape), requires_grad=False)

    def load(self, tensor, part=0):
        """Puts this rank's slice of a whole tensor where it belongs."""
        if self.rows:
            n = self.parts[part]
            target = self.weight.data.narrow(0, sum(self.parts[:part]), n)
            target.copy_(tensor.narrow(0, self.rank * n, n))
        else:
            self.weight.data.copy_(tensor.chunk(SIZE, 1)[self.rank])

    def forward(self, x):
        y = x @ self.weight.T
        if not self.rows:
            distributed.all_reduce(y)
        return y


class Layer(nn.Module):
    def __init__(self, rank, c):
        super().__init__()
        self.heads, self.kv = c.num_attention_heads // SIZE, c.num_key_value_heads // SIZE
        self.d = c.head_dim
        every = (c.num_attention_heads * self.d, c.num_key_value_heads * self.d)
        self.qkv = Linear(rank, [every[0], every[1], every[1]], c.hidden_size)
        self.o = Linear(rank, [c.hidden_size], every[0], rows=False)
        self.gate_up = Linear(rank, [c.intermediate_size] * 2, c.hidden_size)
        self.down = Linear(rank, [c.hidden_size], c.intermediate_size, rows=False)
        self.norm1 = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.norm2 = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)

    def forward(self, x, rotary):
        n = x.shape[0]
        q, k, v = self.qkv(self.norm1(x)).split(
            [self.heads * self.d, self.kv * self.d, self.kv * self.d], -1)
        q, k, v = (t.view(n, -1, self.d).transpose(0, 1) for t in (q, k, v))
        q, k = (t * rotary[0] + torch.cat([-t[..., self.d // 2:], t[..., :self.d // 2]], -1)
                * rotary[1] for t in (q, k))
        k, v = (t.repeat_interleave(self.heads // self.kv, 0) for t in (k, v))
        y = nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)
        x = x + self.o(y[0].transpose(0, 1).reshape(n, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


class Engine(nn.Module):
    """One rank of a small inference engine."""

    PARTS = {"q_proj": ("qkv", 0), "k_proj": ("qkv", 1), "v_proj": ("qkv", 2), "o_proj": ("o", 0),
             "gate_proj": ("gate_up", 0), "up_proj": ("gate_up", 1), "down_proj": ("down", 0)}

    def __init__(self, rank, c):
        super().__init__()
        self.embed = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(rank, c) for _ in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.head = nn.Parameter(torch.zeros(c.vocab_size, c.hidden_size), requires_grad=False)
        powers = torch.arange(0, c.head_dim, 2) / c.head_dim
        angles = torch.arange(c.max_position_embeddings)[:, None] / 10000.0 ** powers
        self.register_buffer("angles", torch.cat([angles, angles], -1), persistent=False)

    def load_weights(self, weights):
        """As engines have it: from the names of a checkpoint to slices of fused parameters."""
        whole = {"model.embed_tokens.weight": self.embed.weight, "model.norm.weight":
                 self.norm.weight, "lm_head.weight": self.head}
        for name, tensor in weights:
            words = name.split(".")
            if name in whole:
                whole[name].data.copy_(tensor)
            elif words[-2] in self.PARTS:
                module, part = self.PARTS[words[-2]]
                getattr(self.layers[int(words[2])], module).load(tensor, part)
            else:
                layer = self.layers[int(words[2])]
                norm = layer.norm1 if words[-2] == "input_layernorm" else layer.norm2
                norm.weight.data.copy_(tensor)

    @torch.no_grad()
    def forward(self, ids):
        angles = self.angles[:len(ids)]
        rotary, x = (angles.cos(), angles.sin()), self.embed(ids)
        for layer in self.layers:
            x = layer(x, rotary)
        return self.norm(x) @ self.head.T


def in_shared_memory(module):
    """Moves the parameters into memory that a broker can map: needed on a machine without GPU."""
    for parameter in module.parameters():
        memory = strew.host_empty(tuple(parameter.shape), parameter.dtype)
        parameter.data = memory.copy_(parameter.data)
    return module


def worker(rank, folder, queue, steps):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank,
                                   world_size=SIZE)
    config = transformers.LlamaConfig(**CONFIG)
    engine = in_shared_memory(Engine(rank, config))
    agent = strew.Agent("policy", rank=rank, size=SIZE, socket=folder / "s")
    names = torch.load(folder / "names")
    layout = strew.record_layout(engine, engine.load_weights, names)
    agent.register(layout)
    queue.put(("ready", rank, layout.status()))
    ids, version, longest = torch.tensor([1, 2, 3]), 0, 0.0
    while version < steps:
        # Between two tokens. Both ranks must pause at the same one: any rank's news is everyone's.
        asked = torch.tensor([float(agent.poll() is not None)])
        distributed.all_reduce(asked)
        if asked.item():
            begin = time.monotonic()
            with agent.paused():
                agent.wait_version(version + 1)
            longest, version = max(longest, time.monotonic() - begin), agent.version
            check(rank, engine, config, folder, version, ids)
            queue.put(("version", rank, version))
        logits = engine(ids[-100:])[-1]
        ids = torch.cat([ids, logits.argmax()[None]])
    queue.put(("done", rank, f"{len(ids)} tokens, longest pause {longest * 1e3:.1f} ms"))
    agent.close()
    distributed.destroy_process_group()


def check(rank, engine, config, folder, version, ids):
    """A second engine, filled by the ordinary loader from the trainer's state_dict."""
    twin = Engine(rank, config)
    twin.load_weights(torch.load(folder / f"state{version}").items())
    if not torch.equal(engine(ids[-100:]), twin(ids[-100:])):
        raise AssertionError(f"worker {rank}: other logits than the loader's at {version}")


def train(model, optimizer):
    """One step on random tokens, which is what this model is worth."""
    ids = torch.randint(0, CONFIG["vocab_size"], (4, 32))
    loss = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


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


def take(queue, kind, processes):
    """One message of that kind from each worker."""
    said = []
    while len(said) < SIZE:
        try:
            got = queue.get(timeout=1)
        except multiprocessing.queues.Empty:
            if any(p.exitcode for p in processes):
                sys.exit("a worker failed")
            continue
        if got[0] == kind:
            said.append(got)
    return said


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="strew-rl-") as name:
        folder, queue = pathlib.Path(name), context.Queue()
        model = in_shared_memory(transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)))
        torch.save({n: (t.dtype, tuple(t.shape)) for n, t in model.state_dict().items()},
                   folder / "names")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with broker(folder):
            workers = [context.Process(target=worker, args=(r, folder, queue, steps))
                       for r in range(SIZE)]
            for one in workers:
                one.start()
            for said in take(queue, "ready", workers):
                print(f"worker {said[1]}: {said[2]}")
            with strew.Trainer("policy", rank=0, size=1, socket=folder / "s") as trainer:
                trainer.declare(model)
                for version in range(1, steps + 1):
                    loss = train(model, optimizer)
                    torch.save(model.state_dict(), folder / f"state{version}")
                    report = trainer.publish(version)
                    take(queue, "version", workers)
                    print(f"version {version}: loss {loss:.3f}, {report.outcome} in "
                          f"{report.total_s * 1e3:.1f} ms, logits equal")
            for said in take(queue, "done", workers):
                print(f"worker {said[1]}: {said[2]}")
            for one in workers:
                one.join(20)
    if any(one.exitcode for one in workers):
        sys.exit(1)


if __name__ == "__main__":
    main()
