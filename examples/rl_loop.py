#!/usr/bin/env python3
"""A reinforcement-learning loop on one machine: a trainer, two tensor-parallel workers, one broker.

    python3 examples/rl_loop.py --steps 5
    python3 examples/rl_loop.py --steps 50 --device cuda --memory expandable
    python3 examples/rl_loop.py --steps 50 --device cuda:0 --worker-devices 0,1

The trainer takes optimizer steps on a small Llama of transformers. Two workers hold a half of each
matrix, generate together, and pause between tokens while an update is written into their memory.
Nothing of a worker knows strew's layouts: its own loader, run once without data, tells them. After
each commit the workers' logits are compared, bit for bit, with those of a second pair that the
same loader has filled from the trainer's state_dict, and how long generation stood still is
compared with what the trainer's report says.

Needs torch and transformers, and the package strew (its wheel has the broker in it). Without the
wheel: STREW_LIBRARY=BUILD/lib/libstrew.so.0 PYTHONPATH=python, and the broker is BUILD/bin/strewd.
"""

import argparse
import contextlib
import ctypes
import json
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
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


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
        if self.rows:
            return y
        part = y.float().cpu()  # gloo adds in host memory; both workers may be on one GPU
        distributed.all_reduce(part)
        return part.to(y)


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
        x = self.embed(ids)
        rotary = angles.cos().to(x), angles.sin().to(x)
        for layer in self.layers:
            x = layer(x, rotary)
        return self.norm(x) @ self.head.T


def private_cuda(device, length):
    """Bytes of a GPU that no other process can map, zeroed: cuMemCreate without a handle type.

    So allocate vLLM's sleep mode and torch_memory_saver. They live as long as this process.
    """
    torch.zeros(1, device=device)  # makes the context that torch uses, and makes it current
    driver = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        code = getattr(driver, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} failed with error {code}")
    u64, size_t = ctypes.c_uint64, ctypes.c_size_t
    # CUmemAllocationProp: type PINNED, no handle types, location (DEVICE, index), no flags.
    properties = (ctypes.c_int * 8)(1, 0, 1, device.index)
    access = (ctypes.c_int * 3)(1, device.index, 3)  # CUmemAccessDesc: that device, READWRITE
    step, address, handle = size_t(), u64(), u64()
    call("cuMemGetAllocationGranularity", ctypes.byref(step), properties, ctypes.c_int(0))
    length = -(-length // step.value) * step.value
    call("cuMemAddressReserve", ctypes.byref(address), size_t(length), size_t(0), u64(0), u64(0))
    call("cuMemCreate", ctypes.byref(handle), size_t(length), properties, u64(0))
    call("cuMemMap", address, size_t(length), size_t(0), handle, u64(0))
    call("cuMemSetAccess", address, size_t(length), access, size_t(1))

    class Memory:
        __cuda_array_interface__ = {"shape": (length,), "typestr": "|u1", "version": 3,
                                    "strides": None, "data": (address.value, False)}
    return torch.as_tensor(Memory(), device=device).zero_()


def placed(module, device, memory):
    """The module on that device; its parameters in memory of that kind (see --help)."""
    module = module.to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(DTYPES[device.type])
    parameters = list(module.parameters())
    if device.type == "cuda" and memory == "private":
        sizes = [-(-p.nbytes // 512) * 512 for p in parameters]
        parts = private_cuda(device, sum(sizes))[:sum(sizes)].split(sizes)
        new = [part[:p.nbytes].view(p.dtype).view(p.shape) for p, part in zip(parameters, parts)]
    elif device.type == "cpu" and memory == "default":
        new = [strew.host_empty(tuple(p.shape), p.dtype) for p in parameters]
    else:  # as torch itself has placed them
        if memory == "expandable" and not all(
                segment["is_expandable"] for segment in torch.cuda.memory_snapshot()):
            raise RuntimeError(f"torch has not taken expandable segments from {ALLOCATOR}")
        return module
    for parameter, tensor in zip(parameters, new):
        parameter.data = tensor.copy_(parameter.data)
    return module


def worker(rank, folder, pipe, options):
    torch.set_num_threads(1)  # three processes: with a pool each they would take turns on the cores
    device = options.worker_devices[rank]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank,
                                   world_size=SIZE)
    config = transformers.LlamaConfig(**CONFIG)
    engine = placed(Engine(rank, config), device, options.memory)
    agent = strew.Agent("policy", rank=rank, size=SIZE, socket=folder / "s")
    names = torch.load(folder / "names")
    layout = strew.record_layout(engine, engine.load_weights, names)
    agent.register(layout)
    pipe.send(("ready", rank, layout.status()))
    ids, version = torch.tensor([1, 2, 3], device=device), 0
    longest = 0.0
    while version < options.steps:
        # Between two tokens. Both ranks must pause at the same one: any rank's news is everyone's.
        event = agent.poll()
        asked = torch.tensor([float(event is not None and event.kind == "hold")])
        distributed.all_reduce(asked)
        if asked.item():
            begin = time.monotonic()
            with agent.paused():
                agent.wait_version(version + 1)
            pause, version = time.monotonic() - begin, agent.version
            check(rank, engine, config, folder, version, ids)
            pipe.send(("version", rank, pause))
            longest = max(longest, pause)
        logits = engine(ids[-100:])[-1]
        ids = torch.cat([ids, logits.argmax()[None]])
    pipe.send(("done", rank, f"{len(ids)} tokens, longest pause {longest * 1e3:.1f} ms"))
    agent.close()
    distributed.destroy_process_group()


def check(rank, engine, config, folder, version, ids):
    """A second engine, filled by the ordinary loader from the trainer's state_dict."""
    twin = placed(Engine(rank, config), engine.head.device, "torch's own")
    twin.load_weights(torch.load(folder / f"state{version}").items())
    if not torch.equal(engine(ids[-100:]), twin(ids[-100:])):
        raise AssertionError(f"worker {rank}: other logits than the loader's at {version}")


def check_pauses(report, said, allowance):
    """Generation stood still for no longer than the report says; returns the longest pause.

    What the report cannot see is the way of the last message to the worker, and the worker's
    return from its wait: `allowance` seconds.
    """
    for _, rank, pause in said:
        if pause > report.pause_s + allowance:
            sys.exit(f"worker {rank} stood still for {pause * 1e3:.1f} ms at version "
                     f"{report.version}; the report says {report.pause_s * 1e3:.1f}, "
                     f"{allowance * 1e3:.0f} are allowed")
    return max(pause for _, _, pause in said)


def train(model, optimizer):
    """One step on random tokens, which is what this model is worth."""
    ids = torch.randint(0, CONFIG["vocab_size"], (4, 32), device=model.device)
    loss = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@contextlib.contextmanager
def broker(folder, backend):
    read, write = os.pipe()
    with open(folder / "strewd.log", "wb") as log:
        process = subprocess.Popen([strew.program("strewd"), "--socket", folder / "s", "--backend",
                                    backend, "--slot", "1M", "--ready-fd", str(write)],
                                   pass_fds=(write,), stderr=log)
    os.close(write)
    try:
        with os.fdopen(read) as pipe:
            if pipe.read() != "READY=1\n":
                sys.exit("the broker did not start")
        yield
    except BaseException:
        sys.stderr.write((folder / "strewd.log").read_text())
        raise
    finally:
        process.terminate()
        process.wait(20)


def show_routes(folder):
    """How the bytes get into the workers, as the broker has it."""
    run = subprocess.run([strew.program("strew"), "status", "--json", "--socket", folder / "s"],
                         check=True, capture_output=True, text=True)
    for group in json.loads(run.stdout)["groups"]:
        print(f"broker: raw {group['raw']}, pull {group['pull']}")


def take(pipes, kind, processes):
    """The next message of each worker, which is of that kind."""
    said = []
    for pipe, process in zip(pipes, processes):
        # Any worker's end is an end: the other one waits for it in gloo.
        while not pipe.poll(1):
            if any(p.exitcode for p in processes):
                sys.exit("a worker failed")
        said.append(pipe.recv())
        if said[-1][0] != kind:
            sys.exit(f"{process.name} says {said[-1]}, where {kind} was due")
    return said


def read_device(name):
    """cuda:1 of "cuda:1" and "1"; "cuda" alone is cuda:0."""
    return torch.device(f"cuda:{name}" if name.isdigit() else "cuda:0" if name == "cuda" else name)


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="the trainer's: cpu, cuda, cuda:N or N")
    parser.add_argument("--worker-devices", help="the two workers', with a comma: 0,1 is one on "
                        "each of two GPUs;\ndefault: the trainer's")
    parser.add_argument("--memory", choices=("default", "expandable", "private"),
                        default="default", help="of the parameters:\n"
                        "default     on a GPU PyTorch's allocator, else memory that is shared\n"
                        "expandable  PyTorch's with expandable segments (GPU)\n"
                        "private     what a broker cannot map: cuMemCreate without a handle\n"
                        "            type; on the CPU PyTorch's own memory")
    parser.add_argument("--allowance-ms", type=float, default=20, help="a worker may stand still "
                        "for that much longer\nthan the report says (default 20)")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: one step at least, or nothing is compared")
    names = (options.worker_devices or f"{options.device},{options.device}").split(",")
    try:
        options.device, *options.worker_devices = map(read_device, [options.device, *names])
    except RuntimeError as reason:
        parser.error(str(reason).splitlines()[0])
    kinds = {device.type for device in [options.device, *options.worker_devices]}
    if len(names) != SIZE or kinds not in ({"cpu"}, {"cuda"}):
        parser.error("two workers, all on GPUs or all on the CPU")
    if options.memory == "expandable":
        if kinds == {"cpu"}:
            parser.error("--memory expandable is for GPUs")
        if "expandable_segments:True" not in os.environ.get(ALLOCATOR, ""):
            # torch reads it once: start again with it, for the workers too.
            os.environ[ALLOCATOR] = "expandable_segments:True"
            os.execv(sys.executable, sys.orig_argv)
    return options


def main():
    options = read_options()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, trainer on "
          f"{options.device}, workers on {' and '.join(map(str, options.worker_devices))}, "
          f"memory {options.memory}", flush=True)
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="strew-rl-") as name:
        folder = pathlib.Path(name)
        # A pipe each: of one queue a worker's last words could come before the other's first.
        pipes, ends = zip(*(context.Pipe(duplex=False) for _ in range(SIZE)))
        if options.device.type == "cuda":
            torch.cuda.set_device(options.device)
        model = placed(transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)),
                       options.device, options.memory)
        torch.save({n: (t.dtype, tuple(t.shape)) for n, t in model.state_dict().items()},
                   folder / "names")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with broker(folder, "cuda" if options.device.type == "cuda" else "host"):
            workers = [context.Process(target=worker, args=(r, folder, ends[r], options),
                                       daemon=True) for r in range(SIZE)]
            for one in workers:
                one.start()
            for said in take(pipes, "ready", workers):
                print(f"worker {said[1]}: {said[2]}")
            show_routes(folder)
            with strew.Trainer("policy", rank=0, size=1, socket=folder / "s") as trainer:
                trainer.declare(model)
                for version in range(1, options.steps + 1):
                    loss = train(model, optimizer)
                    torch.save({n: t.cpu() for n, t in model.state_dict().items()},
                               folder / f"state{version}")
                    report = trainer.publish(version)
                    pause = check_pauses(report, take(pipes, "version", workers),
                                         options.allowance_ms / 1e3)
                    (folder / f"state{version}").unlink()
                    print(f"version {version}: loss {loss:.3f}, {report.outcome} in "
                          f"{report.total_s * 1e3:.1f} ms, pause {pause * 1e3:.1f} ms of "
                          f"{report.pause_s * 1e3:.1f} stated, logits equal", flush=True)
            for said in take(pipes, "done", workers):
                print(f"worker {said[1]}: {said[2]}")
            for one in workers:
                one.join(20)
    for rank, one in enumerate(workers):
        if one.exitcode != 0:
            sys.exit(f"worker {rank}: exit code {one.exitcode} (None: it has not ended in 20 s)")


if __name__ == "__main__":
    main()
