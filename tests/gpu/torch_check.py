#!/usr/bin/env python3
"""Weights from PyTorch to PyTorch: a trainer and TP = 2 workers, on one GPU or (where there are
two) with a worker and a broker's slots on each, whose memory comes from PyTorch's default
allocator or from expandable segments, over libstrew by ctypes.

Each tensor is a pure function of its name and the version, made on the GPU by PyTorch's own
generator. A worker makes the whole tensors again and compares its parameters with slices cut by
torch alone (narrow, cat): nothing of strew's plan is used. Destinations are poisoned first.

    tests/gpu/torch_check.py --bin build/bin --lib build/lib/libstrew.so \
        --config bench/models/llama-3.1-8b.json --alloc default expandable \
        --apply direct staged --brokers 1 2

prints a line per run, and at last `torch_check: ok runs=N failed=0`. Exit code 77: no GPU.
"""
import argparse
import ctypes as c
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib

DIMS = 6
BF16 = 3
U64x6 = c.c_uint64 * DIMS


class AgentOptions(c.Structure):
    _fields_ = [("socket", c.c_char_p), ("model", c.c_char_p), ("replica", c.c_uint32),
                ("part", c.c_uint32), ("member", c.c_uint32), ("members", c.c_uint32),
                ("gate", c.c_int), ("apply", c.c_int), ("partial", c.c_int),
                ("serve_thread", c.c_int), ("timeout_ms", c.c_int)]


class Parameter(c.Structure):
    _fields_ = [("name", c.c_char_p), ("data", c.c_void_p), ("dtype", c.c_int),
                ("ndim", c.c_int), ("shape", U64x6), ("stride", U64x6)]


class Piece(c.Structure):
    _fields_ = [("tensor", c.c_char_p), ("dtype", c.c_int), ("ndim", c.c_int),
                ("shape", U64x6), ("view_ndim", c.c_int), ("view", U64x6), ("start", U64x6),
                ("extent", U64x6), ("parameter", c.c_uint32), ("offset", c.c_uint64),
                ("stride", U64x6)]


class Event(c.Structure):
    _fields_ = [("type", c.c_int), ("version", c.c_uint64), ("outcome", c.c_int),
                ("state", c.c_int), ("text", c.c_char * 240)]


class TrainerOptions(c.Structure):
    _fields_ = [("socket", c.c_char_p), ("model", c.c_char_p), ("rank", c.c_uint32),
                ("ranks", c.c_uint32), ("timeout_ms", c.c_int)]


class Tensor(c.Structure):
    _fields_ = [("name", c.c_char_p), ("dtype", c.c_int), ("ndim", c.c_int), ("shape", U64x6),
                ("start", U64x6), ("extent", U64x6), ("stride", U64x6), ("data", c.c_void_p)]


class Report(c.Structure):
    _fields_ = [("version", c.c_uint64), ("outcome", c.c_int), ("text", c.c_char_p),
                ("tensors", c.c_uint64), ("unwanted", c.c_uint64), ("bytes", c.c_uint64),
                ("wire_bytes", c.c_uint64), ("wait_s", c.c_double), ("accept_s", c.c_double),
                ("move_s", c.c_double), ("commit_s", c.c_double), ("total_s", c.c_double),
                ("gather_s", c.c_double), ("local_s", c.c_double), ("wire_s", c.c_double),
                ("scatter_s", c.c_double),
                ("ngroups", c.c_size_t), ("groups", c.c_void_p)]


def load(path):
    lib = c.CDLL(path)
    lib.strew_error.restype = c.c_char_p

    def call(name, *args):
        code = getattr(lib, name)(*args)
        if code < 0:
            sys.exit(f"{name}: {code}: {lib.strew_error().decode()}")
        return code

    return call


def tensors(cfg):
    """Name → shape, as Hugging Face names a Llama."""
    h, i, v = cfg["hidden_size"], cfg["intermediate_size"], cfg["vocab_size"]
    d = cfg.get("head_dim") or h // cfg["num_attention_heads"]
    q, kv = cfg["num_attention_heads"] * d, cfg["num_key_value_heads"] * d
    out = {"model.embed_tokens.weight": (v, h)}
    for n in range(cfg["num_hidden_layers"]):
        p = f"model.layers.{n}."
        out.update({p + "input_layernorm.weight": (h,), p + "self_attn.q_proj.weight": (q, h),
                    p + "self_attn.k_proj.weight": (kv, h),
                    p + "self_attn.v_proj.weight": (kv, h),
                    p + "self_attn.o_proj.weight": (h, q),
                    p + "post_attention_layernorm.weight": (h,),
                    p + "mlp.gate_proj.weight": (i, h), p + "mlp.up_proj.weight": (i, h),
                    p + "mlp.down_proj.weight": (h, i)})
    out["model.norm.weight"] = (h,)
    out["lm_head.weight"] = (v, h)
    return out


def value(torch, name, shape, version):
    seed = zlib.crc32(name.encode()) * 1000 + version
    g = torch.Generator(device="cuda").manual_seed(seed)
    n = 1
    for s in shape:
        n *= s
    return torch.randint(-32768, 32768, (n,), dtype=torch.int16, device="cuda",
                         generator=g).reshape(shape)


def layout(cfg, rank, size):
    """Parameter name → (shape, [(tensor, dim it is split in or None)]): the parts are laid one
    under another."""
    shapes = tensors(cfg)
    out = {}

    def add(name, parts):
        rows = 0
        for tensor, dim in parts:
            shape = list(shapes[tensor])
            if dim is not None:
                shape[dim] //= size
            rows += shape[0]
        out[name] = ([rows] + shape[1:], parts)

    add("embed_tokens", [("model.embed_tokens.weight", 0)])
    for n in range(cfg["num_hidden_layers"]):
        p = f"model.layers.{n}."
        add(p + "input_layernorm", [(p + "input_layernorm.weight", None)])
        add(p + "qkv_proj", [(p + f"self_attn.{x}_proj.weight", 0) for x in "qkv"])
        add(p + "o_proj", [(p + "self_attn.o_proj.weight", 1)])
        add(p + "post_attention_layernorm", [(p + "post_attention_layernorm.weight", None)])
        add(p + "gate_up_proj", [(p + f"mlp.{x}_proj.weight", 0) for x in ("gate", "up")])
        add(p + "down_proj", [(p + "mlp.down_proj.weight", 1)])
    add("norm", [("model.norm.weight", None)])
    add("lm_head", [("lm_head.weight", 0)])
    return out


def worker(args):
    import torch
    torch.cuda.set_device(args.rank % torch.cuda.device_count())
    cfg = json.load(open(args.config[0]))
    call = load(args.lib)
    shapes, rank, size = tensors(cfg), args.rank, 2
    options = AgentOptions(model=b"torch", member=rank, members=size, gate=2,
                           apply={"direct": 1, "staged": 2}[args.apply[0]], timeout_ms=60000)
    agent = c.c_void_p()
    call("strew_agent_open", c.byref(options), c.byref(agent))
    live = {}
    for name, (shape, parts) in layout(cfg, rank, size).items():
        data = torch.full(shape, 0x5a5a, dtype=torch.int16, device="cuda")
        live[name] = (data, parts)
        index = c.c_uint32()
        parameter = Parameter(name=name.encode(), data=data.data_ptr(), dtype=BF16,
                              ndim=len(shape), shape=U64x6(*shape))
        call("strew_agent_declare", agent, c.byref(parameter), c.byref(index))
        offset = 0
        for tensor, dim in parts:
            full = shapes[tensor]
            start, extent = [0] * len(full), list(full)
            if dim is not None:
                extent[dim] //= size
                start[dim] = rank * extent[dim]
            piece = Piece(tensor=tensor.encode(), dtype=BF16, ndim=len(full),
                          shape=U64x6(*full), start=U64x6(*start), extent=U64x6(*extent),
                          parameter=index.value, offset=offset)
            call("strew_agent_piece", agent, c.byref(piece))
            n = 1
            for e in extent:
                n *= e
            offset += n
    torch.cuda.synchronize()
    call("strew_agent_register", agent)
    print("registered", flush=True)
    stream = c.c_void_p(torch.cuda.current_stream().cuda_stream)
    wrong = checked = 0
    event = Event()
    for version in range(1, args.versions + 1):
        while True:
            call("strew_agent_wait", agent, 120000, c.byref(event))
            if event.type == 1:
                call("strew_agent_ready", agent, stream)
            elif event.type == 2:
                break
            else:
                sys.exit(f"event {event.type}: {event.text.decode()}")
        if event.outcome != 1 or event.version != version:
            sys.exit(f"version {event.version} outcome {event.outcome}: {event.text.decode()}")
        for name, (data, parts) in live.items():
            cut = []
            for tensor, dim in parts:
                whole = value(torch, tensor, shapes[tensor], version)
                if dim is not None:
                    part = whole.shape[dim] // size
                    whole = whole.narrow(dim, rank * part, part)
                cut.append(whole)
            wanted = torch.cat(cut, 0)
            checked += data.numel() * 2
            if not torch.equal(data, wanted):
                wrong += 1
                print(f"{name}: differs", flush=True)
        call("strew_agent_resume", agent, 60000)
    print(f"checked {checked} bytes wrong {wrong}", flush=True)
    call("strew_agent_withdraw", agent)
    load(args.lib)
    sys.exit(1 if wrong else 0)


def trainer(args):
    import torch
    cfg = json.load(open(args.config[0]))
    call = load(args.lib)
    options = TrainerOptions(model=b"torch", ranks=1, timeout_ms=60000)
    handle = c.c_void_p()
    call("strew_trainer_open", c.byref(options), c.byref(handle))
    held = {}
    for name, shape in tensors(cfg).items():
        held[name] = torch.empty(shape, dtype=torch.int16, device="cuda")
        tensor = Tensor(name=name.encode(), dtype=BF16, ndim=len(shape), shape=U64x6(*shape),
                        data=held[name].data_ptr())
        call("strew_trainer_declare", handle, c.byref(tensor))
    call("strew_trainer_seal", handle)
    stream = c.c_void_p(torch.cuda.current_stream().cuda_stream)
    for version in range(1, args.versions + 1):
        for name, data in held.items():
            data.copy_(value(torch, name, tuple(data.shape), version))
        call("strew_trainer_publish", handle, c.c_uint64(version), stream, 0, 120000)
        call("strew_trainer_wait_released", handle, 120000)
        report = Report()
        call("strew_trainer_wait_report", handle, 120000, c.byref(report))
        print(f"version {version} outcome {report.outcome} bytes {report.bytes} "
              f"move {report.move_s * 1e3:.2f} ms commit {report.commit_s * 1e3:.2f} ms "
              f"{report.bytes / max(report.move_s, 1e-9) / 1e9:.1f} GB/s {report.text or b''}",
              flush=True)
        if report.outcome != 1:
            sys.exit(1)


def spawn(args, log, role, env, **options):
    command = [sys.executable, os.path.abspath(__file__), "--role", role, "--lib", args.lib,
               "--config", args.config[0], "--versions", str(args.versions)]
    for key, text in options.items():
        command += [f"--{key}", str(text)]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)


def wait_line(path, text, count, seconds=120):
    end = time.time() + seconds
    while time.time() < end:
        if open(path).read().count(text) >= count:
            return True
        time.sleep(0.1)
    return False


def broker(args, folder, name, extra, env):
    log = open(f"{folder}/{name}.log", "w")
    socket = f"{folder}/{name}/broker.sock"
    process = subprocess.Popen([f"{args.bin}/strewd", "--backend", "cuda", "--socket", socket,
                                *extra], stderr=log, env=env)
    if not wait_line(f"{folder}/{name}.log", "ready at", 1, 60):
        sys.exit(open(f"{folder}/{name}.log").read())
    return process, socket


def run(args, alloc, apply, brokers):
    folder = tempfile.mkdtemp(prefix="strew-torch-")
    env = dict(os.environ, NCCL_SOCKET_IFNAME=os.environ.get("NCCL_SOCKET_IFNAME", "lo"))
    env["PYTORCH_CUDA_ALLOC_CONF"] = f"expandable_segments:{alloc == 'expandable'}"
    started = []
    try:
        extra = ["--listen", "127.0.0.1:17710", "--device", "0"] if brokers == 2 else []
        # One GPU: two nodes by their host ids. Two: one host, and NCCL takes NVLink.
        hosts = [dict(env, NCCL_HOSTID=f"node{n}") for n in range(2)] if args.gpus == 1 \
            else [env, env]
        lead, socket = broker(args, folder, "lead", extra, hosts[0])
        started.append(lead)
        worker_socket = socket
        if brokers == 2:
            process, worker_socket = broker(args, folder, "joined",
                                            ["--join", "127.0.0.1:17710", "--device",
                                             str(args.gpus - 1)], hosts[1])
            started.append(process)
        log = open(f"{folder}/workers.log", "w")
        ranks = [spawn(args, log, "worker", dict(env, STREW_SOCKET=worker_socket), rank=r,
                       apply=apply) for r in range(2)]
        started += ranks
        registered = wait_line(f"{folder}/workers.log", "registered", 2)
        tlog = open(f"{folder}/trainer.log", "w")
        trainers = spawn(args, tlog, "trainer", dict(env, STREW_SOCKET=socket))
        started.append(trainers)
        codes = [p.wait(300) for p in (trainers, *ranks)] if registered else ["not registered"]
    finally:
        for process in reversed(started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
    ok = codes == [0, 0, 0]
    last = open(f"{folder}/trainer.log").read().strip().splitlines()[-1:]
    print(f"{'ok' if ok else 'FAILED'} alloc={alloc} apply={apply} brokers={brokers}: {last}",
          flush=True)
    if not ok:
        for name in sorted(os.listdir(folder)):
            if name.endswith(".log"):
                print(f"--- {name}\n" + open(f"{folder}/{name}").read()[-3000:], flush=True)
    for line in open(f"{folder}/lead.log"):
        if "mapped" in line:
            print("    " + line.strip(), flush=True)
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--lib", default="build/lib/libstrew.so")
    parser.add_argument("--config", nargs=1, required=True)
    parser.add_argument("--alloc", nargs="+", default=["default", "expandable"])
    parser.add_argument("--apply", nargs="+", default=["direct", "staged"])
    parser.add_argument("--brokers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--versions", type=int, default=3)
    parser.add_argument("--role")
    parser.add_argument("--rank", type=int, default=0)
    args = parser.parse_args()
    if args.role:
        return {"worker": worker, "trainer": trainer}[args.role](args)
    try:
        import torch
        gpu = torch.cuda.is_available()
        args.gpus = min(torch.cuda.device_count(), 2)
    except ImportError:
        gpu = False
    if not gpu:
        print("SKIP: PyTorch with a GPU is wanted")
        return 77
    print(args.gpus, "of", torch.cuda.get_device_name(0), torch.__version__, flush=True)
    results = [run(args, a, p, b) for b in args.brokers for p in args.apply for a in args.alloc]
    failed = results.count(False)
    print(f"torch_check: {'ok' if not failed else 'FAILED'} runs={len(results)} failed={failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
