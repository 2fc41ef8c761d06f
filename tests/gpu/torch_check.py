#!/usr/bin/env python3
"""Weights from PyTorch to PyTorch: a trainer and TP = 2 workers, on one GPU or (where there are
two) with a worker and a broker's slots on each, whose memory comes from PyTorch's default
allocator or from expandable segments.

Each tensor is a pure function of its name, the version and a seed, made on the device by PyTorch's
own generator. A worker makes the whole tensors again and compares its parameters with slices cut by
torch alone (narrow, cat): nothing of strew's plan is used. Destinations are poisoned first.

    tests/gpu/torch_check.py --config bench/models/llama-3.1-8b.json

prints a line or more per run, and at last `torch_check: ok runs=N failed=0 seed=S`. Exit code 77: no GPU. The
package strew is the one that is installed or in PYTHONPATH, with its own strewd (STREW_LIBRARY
names another library and the strewd beside it). --backend host is the same without a GPU.
"""
import argparse
import json
import math
import pathlib
import random
import sys
import zlib

import strew
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import scene  # noqa: E402  pylint: disable=wrong-import-position

POISON = 0x5a5a


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


def value(args, name, shape, version):
    """A tensor's bits, as int16: every pattern, NaN too."""
    generator = torch.Generator(device=args.device)
    generator.manual_seed(zlib.crc32(f"{args.seed} {version} {name}".encode()))
    return torch.randint(-32768, 32768, shape, dtype=torch.int16, device=args.device,
                         generator=generator)


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


def parameter(data, parts, shapes, rank, size):
    """Where the tensors' slices lie in it."""
    pieces, offset = [], 0
    for tensor, dim in parts:
        full = tuple(shapes[tensor])
        start, extent = [0] * len(full), list(full)
        if dim is not None:
            extent[dim] //= size
            start[dim] = rank * extent[dim]
        stride = [math.prod(extent[i + 1:]) for i in range(len(extent))]
        pieces.append(strew.Piece(tensor, torch.bfloat16, full, full, tuple(start), tuple(extent),
                                  offset, tuple(stride)))
        offset += math.prod(extent)
    return strew.LayoutParameter(data.view(torch.bfloat16), pieces)


def wanted(args, parts, shapes, size, version):
    """The parameter's bits by torch alone."""
    cut = []
    for tensor, dim in parts:
        whole = value(args, tensor, shapes[tensor], version)
        if dim is not None:
            part = whole.shape[dim] // size
            whole = whole.narrow(dim, args.rank * part, part)
        cut.append(whole)
    return torch.cat(cut, 0)


def worker(args):
    cfg = json.load(open(args.config))
    shapes, rank, size = tensors(cfg), args.rank, 2
    if args.device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    live = {name: (torch.full(shape, POISON, dtype=torch.int16, device=args.device), parts)
            for name, (shape, parts) in layout(cfg, rank, size).items()}
    agent = strew.Agent("torch", rank=rank, size=size, apply=args.apply[0], timeout=60)
    agent.register(strew.Layout({name: parameter(data, parts, shapes, rank, size)
                                 for name, (data, parts) in live.items()}))
    print("registered", flush=True)
    wrong = checked = version = 0
    while version < args.versions:
        event = agent.wait(120)
        if event.kind == "hold":
            with agent.paused():
                event = agent.wait(120)
        assert (event.kind, event.outcome) == ("done", "committed"), event
        # From here to the next ready() nothing is written. Before, the next one may have come.
        version = agent.version
        for name, (data, parts) in live.items():
            checked += data.numel() * 2
            if not torch.equal(data, wanted(args, parts, shapes, size, version)):
                wrong += 1
                print(f"{name}: differs", flush=True)
        print(f"version {version}: {checked} bytes checked, {wrong} parameters wrong", flush=True)
    agent.close()
    return 1 if wrong or not checked else 0


def trainer(args):
    held = {name: torch.empty(shape, dtype=torch.int16, device=args.device)
            for name, shape in tensors(json.load(open(args.config))).items()}
    with strew.Trainer("torch", rank=0, size=1, timeout=60) as one:
        one.declare({name: data.view(torch.bfloat16) for name, data in held.items()})
        for version in range(1, args.versions + 1):
            for name, data in held.items():
                data.copy_(value(args, name, data.shape, version))
            report = one.publish(version, timeout=120)
            print(f"version {version} {report.outcome} bytes {report.bytes} "
                  f"move {report.move_s * 1e3:.2f} ms commit {report.commit_s * 1e3:.2f} ms "
                  f"{report.bytes / max(report.move_s, 1e-9) / 1e9:.1f} GB/s {report.text}",
                  flush=True)
            if not report.committed:
                return 1
    return 0


def start_brokers(stage, args, brokers):
    """The trainer's and the workers', by name."""
    options = {"backend": args.backend, "slot": "256M"}
    if brokers == 1:
        stage.broker("lead", **options)
        return "lead", "lead"
    at = f"127.0.0.1:{scene.free_port()}"
    for name, how, gpu in (("lead", "--listen", 0), ("joined", "--join", args.gpus - 1)):
        stage.broker(name, how, at, *(("--device", gpu) if args.gpus else ()),
                     env=scene.hosts(name, range(args.gpus)), **options)
    scene.wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    return "lead", "joined"


def check(stage, args, alloc, apply, brokers):
    """Every version comes to both workers, bit for bit."""
    def start(name, role, broker, *options):
        return stage.start(
            name, sys.executable, __file__, "--role", role, "--config", args.config, "--versions",
            args.versions, "--seed", args.seed, "--device", args.device, *options,
            env={"STREW_SOCKET": str(stage.socket(broker)),
                 "PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:{alloc == 'expandable'}"})

    trainers, workers = start_brokers(stage, args, brokers)
    ranks = [start(f"worker{rank}", "worker", workers, "--rank", rank, "--apply", apply)
             for rank in range(2)]
    for rank in ranks:
        rank.says("registered", 120)
    one = start("trainer", "trainer", trainers)
    for process in (one, *ranks):
        process.end(seconds=300)
    mapped = [line for line in stage.processes[0].log.splitlines() if "mapped" in line]
    print(one.log.splitlines()[-1], *mapped, sep="\n    ")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config.json of a Llama")
    parser.add_argument("--backend", choices=("cuda", "host"), default="cuda")
    parser.add_argument("--alloc", nargs="+", choices=("default", "expandable"),
                        default=["default", "expandable"])
    parser.add_argument("--apply", nargs="+", choices=("direct", "staged"),
                        default=["direct", "staged"])
    parser.add_argument("--brokers", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--versions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31),
                        help="of the tensors' bits (a new one each time)")
    for own, kind in (("role", str), ("rank", int), ("device", str)):
        parser.add_argument(f"--{own}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        return {"worker": worker, "trainer": trainer}[args.role](args)
    args.device = {"cuda": "cuda", "host": "cpu"}[args.backend]
    args.gpus = min(torch.cuda.device_count(), 2) if args.backend == "cuda" else 0
    if args.backend == "cuda" and not args.gpus:
        print("SKIP: PyTorch with a GPU is wanted")
        return 77
    if args.gpus:
        print(args.gpus, "of", torch.cuda.get_device_name(0), torch.__version__, flush=True)
    programs = pathlib.Path(strew.program("strewd")).parent
    results = [scene.run_test(f"alloc={a} apply={p} brokers={b}",
                              lambda stage, ways=(a, p, b): check(stage, args, *ways), programs)
               for b in args.brokers for p in args.apply for a in args.alloc]
    failed = results.count("FAILED")
    print(f"torch_check: {'ok' if not failed else 'FAILED'} runs={len(results)} failed={failed} "
          f"seed={args.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
