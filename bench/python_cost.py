#!/usr/bin/env python3
"""What Python adds to the C calls of a trainer with many tensors: declaring them, and publishing.

    bench/python_cost.py --bin build/bin
    bench/python_cost.py --bin build/bin --device cuda --samples 30

Starts a broker of its own, declares parameters of torch that are 16 bytes each and publishes them
again and again to one worker, which takes the last of them. The C call is timed by itself within
the same publish, and what is left of the time is Python's. For declaring, the same records go
through the C call once more, without Python's part. At the end the last tensor is compared with
what was published, and one that was given other memory must be refused by its name.

Needs torch and the package strew; --bin names the programs and the library of a build, without it
they are the wheel's. Exit codes: 0 in order (a figure that misses what is wanted is marked, and is
no failure), 1 a wrong byte or a check that is gone, 2 usage, 3 no GPU.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXIT_DEVICE = 3
NUMBERS = 8  # of a tensor, in bfloat16


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", maxsplit=1)[0],
        epilog="Exit codes: 0 in order, 1 a wrong byte or a check that is gone, 2 usage, 3 no GPU.")
    parser.add_argument("--bin", type=pathlib.Path, help="where strewd is; the library is its "
                        "../lib/libstrew.so.0 (default: the wheel's, else as $STREW_LIBRARY says)")
    parser.add_argument("--device", default="cpu", help="of the tensors: cpu (default), cuda, "
                        "cuda:N")
    parser.add_argument("--tensors", type=int, default=10000, help="(default 10000)")
    parser.add_argument("--samples", type=int, default=15, help="publishes, after three that are "
                        "not counted; a third as many times all is declared (default 15)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args()
    if options.tensors < 1 or options.samples < 1:
        parser.error("at least one tensor and one sample")
    if options.device.split(":")[0] not in ("cpu", "cuda"):
        parser.error("--device cpu, cuda or cuda:N")
    return options


@contextlib.contextmanager
def broker(strew, folder, backend):
    """A strewd; gives its socket."""
    read, write = os.pipe()
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([strew.program("strewd"), "--socket", folder / "s", "--backend",
                                    backend, "--slot", "1M", "--ready-fd", str(write)],
                                   pass_fds=(write,), stderr=log)
    os.close(write)
    try:
        with os.fdopen(read) as pipe:
            if pipe.read() != "READY=1\n":
                sys.exit(f"the broker did not start: {(folder / 'log').read_text()}")
        yield folder / "s"
    finally:
        process.terminate()
        process.wait(20)


def make_tensors(torch, strew, device, count):
    """{name: parameter}: on a GPU by torch's allocator, else in memory that a broker can map."""
    names = [f"model.layers.{i}.mlp.experts.up_proj.weight" for i in range(count)]
    if device.type == "cuda":
        memory = [torch.empty(NUMBERS, dtype=torch.bfloat16, device=device) for _ in names]
    else:
        memory = strew.host_empty((count, NUMBERS), torch.bfloat16)
    return {name: torch.nn.Parameter(one, requires_grad=False)
            for name, one in zip(names, memory)}


class Instead:
    """The library, but for some calls."""

    def __init__(self, lib, calls):
        self._lib = lib
        vars(self).update(calls)

    def __getattr__(self, name):
        return getattr(self._lib, name)


@contextlib.contextmanager
def instead(strew, **calls):
    """The trainer's module makes those calls instead of the library's."""
    module = strew._trainer
    real, module.lib = module.lib, Instead(module.lib, calls)
    try:
        yield
    finally:
        module.lib = real


def declare_once(strew, socket, tensors, kept):
    """Seconds: all of declare(), and the C calls in it, which are made again by themselves."""
    kind, address_of = strew._lib.Tensor, strew._lib.ctypes.addressof
    with strew.Trainer("all", rank=0, size=1, socket=socket) as trainer:
        begin = time.perf_counter()
        trainer.declare(tensors)
        whole = time.perf_counter() - begin
    with strew.Trainer("bare", rank=0, size=1, socket=socket) as trainer:
        def keep(_, address):
            kept.append(kind.from_buffer_copy(kind.from_address(address)))
            kept[-1].name = trainer._record.name
            return 0
        if not kept:
            with instead(strew, strew_trainer_declare=keep):
                trainer.declare(tensors)
        addresses = list(map(address_of, kept))
        at, declare = trainer._handle.address, strew._lib.lib.strew_trainer_declare
        begin = time.perf_counter()
        for address in addresses:
            declare(at, address)
        return whole, time.perf_counter() - begin


def publish_many(strew, trainer, samples):
    """Seconds: lists of Python's part, the C call, and publish() to the report."""
    publish = strew._lib.lib.strew_trainer_publish
    python_s, call_s, whole_s, spent = [], [], [], []

    def timed(*arguments):
        begin = time.perf_counter()
        code = publish(*arguments)
        spent.append(time.perf_counter() - begin)
        return code
    with instead(strew, strew_trainer_publish=timed):
        for version in range(1, samples + 4):
            begin = time.perf_counter()
            running = trainer.publish_async(version)
            back = time.perf_counter()
            running.report()
            if version > 3:
                whole_s.append(time.perf_counter() - begin)
                call_s.append(spent[-1])
                python_s.append(back - begin - spent[-1])
    return python_s, call_s, whole_s


def check(torch, strew, trainer, tensors, target, version):
    """The last tensor has arrived, and one that has moved is found. Says what is wrong."""
    name = list(tensors)[len(tensors) // 2]
    last = list(tensors.values())[-1]
    last.copy_(torch.arange(NUMBERS))
    trainer.publish(version)
    if not torch.equal(last, target):
        return "the worker has other values"
    tensors[name].data = tensors[name].data.clone()
    try:
        trainer.publish(version + 1)
    except strew.Moved as reason:
        return "" if name in str(reason) else f"not named: {reason}"
    return f"{name} was given other memory, and nobody has noticed"


def measure(options, torch, strew):
    device = torch.device("cuda:0" if options.device == "cuda" else options.device)
    tensors = make_tensors(torch, strew, device, options.tensors)
    # Long enough for an allocation of its own: a worker's memory is not the trainer's.
    target = (torch.empty(32 << 20, dtype=torch.bfloat16, device=device)[:NUMBERS]
              if device.type == "cuda" else strew.host_empty((NUMBERS,), torch.bfloat16))
    with tempfile.TemporaryDirectory(prefix="strew-cost-") as folder, \
            broker(strew, pathlib.Path(folder), "cuda" if device.type == "cuda" else "host") as at:
        kept = []
        declared = [declare_once(strew, at, tensors, kept)
                    for _ in range(1 + max(3, options.samples // 3))][1:]
        with strew.Trainer("m", rank=0, size=1, socket=at, timeout=120) as trainer, \
                strew.Agent("m", gate="live", apply="direct", socket=at) as agent:
            shape = (NUMBERS,)
            agent.piece(agent.declare("p", target), strew.Piece(
                list(tensors)[-1], torch.bfloat16, shape, shape, (0,), shape, 0, (1,)))
            agent.register()
            trainer.declare(tensors)
            begin = time.perf_counter()
            trainer.seal()
            seal_s = time.perf_counter() - begin
            python_s, call_s, whole_s = publish_many(strew, trainer, options.samples)
            wrong = check(torch, strew, trainer, tensors, target, options.samples + 4)
    n = options.tensors
    rows = [("declare, a tensor", [whole / n for whole, _ in declared], 10e-6),
            ("... Python's part", [(whole - call) / n for whole, call in declared], None),
            ("... strew_trainer_declare()", [call / n for _, call in declared], None),
            ("seal, once", [seal_s], None),
            ("publish, Python's part", python_s, 1e-3),
            ("... strew_trainer_publish()", call_s, None),
            ("... to the report in hand", whole_s, None)]
    return rows, wrong


def seconds(value):
    return f"{value * 1e6:.2f} us" if value < 1e-4 else f"{value * 1e3:.3f} ms"


def show(rows):
    line = "{:<28} {:>11} {:>11} {:>11}  {}"
    print(line.format("", "median", "least", "most", "wanted"))
    for name, values, limit in rows:
        middle = statistics.median(values)
        wanted = "" if limit is None else \
            f"under {seconds(limit)}" + ("" if middle < limit else "  MISSED")
        print(line.format(name, *map(seconds, (middle, min(values), max(values))), wanted).rstrip())


def main():
    options = read_options()
    if options.bin:
        os.environ["STREW_LIBRARY"] = str(options.bin.resolve().parent / "lib" / "libstrew.so.0")
    try:
        import strew
    except ImportError:
        sys.path.insert(0, str(ROOT / "python"))
        import strew
    import torch

    import strew._trainer
    if options.device != "cpu" and not torch.cuda.is_available():
        print("no GPU", file=sys.stderr)
        sys.exit(EXIT_DEVICE)
    rows, wrong = measure(options, torch, strew)
    about = {"tensors": options.tensors, "samples": options.samples, "device": options.device,
             "python": platform.python_version(), "torch": torch.__version__}
    if options.device != "cpu":
        about["gpu"] = torch.cuda.get_device_name(options.device)
    if options.json:
        print(json.dumps({**about, "wrong": wrong, "rows": [
            {"name": name, "median": statistics.median(values), "min": min(values),
             "max": max(values), "wanted": limit} for name, values, limit in rows]}))
    else:
        print(*(f"{name} {value}" for name, value in about.items()), sep=", ")
        show(rows)
    if wrong:
        sys.exit(wrong)


if __name__ == "__main__":
    main()
