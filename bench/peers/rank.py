"""One process of a comparison: trainer, worker, receiver or a server of checkpoint-engine.

Started by children.py with a socket's number. Takes commands, lines of JSON, one at a time, and
answers each; an error is an answer too. A thread reads the socket, so that the process ends with
its parent even while it waits inside NCCL.
"""

import contextlib
import datetime
import json
import os
import pathlib
import queue
import socket
import sys
import threading
import time
import traceback

import torch
import torch.distributed as dist

import ckpt_engine
import memory
import place
import shapes
from index_then_tensor import IndexThenTensor
from loader import Loader
from packed import Packed
from raw import Raw
from tensor_by_tensor import TensorByTensor

MECHANISMS = {"index": IndexThenTensor, "tensor": TensorByTensor, "packed": Packed, "raw": Raw}


class HostStream(contextlib.nullcontext):
    """A stream for CPU tensors, where everything is done when a call returns."""

    def synchronize(self):
        pass


class DeviceStream:
    def __init__(self):
        self.stream = torch.cuda.Stream()
        self.context = torch.cuda.stream(self.stream)

    def __enter__(self):
        return self.context.__enter__()

    def __exit__(self, *error):
        return self.context.__exit__(*error)

    def synchronize(self):
        self.stream.synchronize()


class Rank:
    def __init__(self, channel):
        self.channel = channel
        self.lock = threading.Lock()
        self.mechanisms = {}
        self.groups = {}
        self.loader = None          # into what this process feeds
        self.sibling_loader = None  # checkpoint-engine: into all workers of this GPU
        self.tensors = None         # the trainer's, own or mapped
        self.flat = None
        self.mapped = {}

    def reply(self, **message):
        with self.lock:
            self.channel.sendall(json.dumps(message).encode() + b"\n")

    # What the mechanisms use.

    def broadcast(self, tensor, group):
        """From the trainer. Gloo knows fewer dtypes than NCCL: it gets bytes."""
        if self.device.type != "cuda":
            tensor = tensor.view(torch.uint8)
        dist.broadcast(tensor, src=0, group=self.groups[group])

    def stream(self):
        return DeviceStream() if self.device.type == "cuda" else HostStream()

    def synchronize(self):
        memory.synchronize(self.device)

    def device_uuid(self):
        """As checkpoint-engine names a device."""
        if self.device.type == "cuda":
            return f"GPU-{torch.cuda.get_device_properties(self.device).uuid!s}"
        return f"CPU-{self.process.gpu}"

    # Commands.

    def start(self, process, settings):
        """Everything that does not need another process."""
        self.settings = settings
        self.shapes = shapes.parse(pathlib.Path(settings["shapes"]).read_text(encoding="utf-8"))
        self.place = place.place(settings["gpus"], settings["tp"], settings["servers"])
        self.process = self.place.named(process)
        if settings["backend"] == "nccl":
            self.device = torch.device("cuda", self.process.gpu)
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
            torch.set_num_threads(1)
        self.path = pathlib.Path(settings["directory"]) / f"{process}.memory"
        if self.process.role == "trainer":
            self.flat = memory.allocate(self.shapes.memory_bytes, self.device, self.path)
            self.tensors = memory.views(self.flat, self.shapes.tensors)
        elif self.process.role == "worker":
            own = self.shapes.ranks[self.process.index]
            self.flat = memory.allocate(own.memory_bytes, self.device, self.path)
            self.loader = Loader(self.shapes, {self.process.index: self.flat})
        return {"machine": self.machine(), "exported":
                memory.export(self.flat, self.path) if self.flat is not None else None}

    def machine(self):
        found = {"torch": torch.__version__}
        if self.device.type == "cuda":
            found["device"] = torch.cuda.get_device_name(self.device)
            found["cuda"] = str(torch.version.cuda)
            found["nccl"] = ".".join(str(n) for n in torch.cuda.nccl.version())
            found["free_bytes"] = torch.cuda.mem_get_info(self.device)[0]
        return found

    def map(self, exported):
        """Memory of other processes that this one reads or writes."""
        for name, text in exported.items():
            self.mapped[name] = memory.map_exported(text, self.device)
        if "trainer" in self.mapped:
            self.tensors = memory.views(self.mapped["trainer"], self.shapes.tensors)
        flats = {self.place.named(name).index: flat for name, flat in self.mapped.items()
                 if name != "trainer"}
        if self.process.role == "receiver":
            self.loader = Loader(self.shapes, flats)
        elif self.process.role == "worker":
            flats[self.process.index] = self.flat
            self.sibling_loader = Loader(self.shapes, flats)
        return {}

    def join(self, port):
        """Process groups; NCCL's communicators are made at first use."""
        if self.process.role == "server":
            world = len(self.place.of("server"))
            self.mechanisms["checkpoint-engine"] = ckpt_engine.Server(self, world, port)
            return {}
        names = self.place.world
        dist.init_process_group(
            "gloo", init_method=f"file://{self.settings['directory']}/store",
            rank=names.index(self.process.name), world_size=len(names),
            timeout=datetime.timedelta(seconds=self.settings["deadline"]))
        for group, members in self.place.groups.items():
            self.groups[group] = dist.new_group(
                [names.index(name) for name in members], backend=self.settings["backend"],
                timeout=datetime.timedelta(seconds=self.settings["deadline"]))
        return {}

    def fill(self, seed):
        for number, tensor in enumerate(self.tensors):
            memory.fill(tensor, seed, number)
        self.synchronize()
        return {}

    def poison(self):
        self.flat.fill_(memory.POISON)
        self.synchronize()
        return {}

    def verify(self, seed):
        looked, wrong, first = memory.compare(self.flat, self.shapes, self.process.index, seed)
        return {"looked": looked, "wrong": wrong, "first": first}

    def run(self, mechanism, armed=False, **options):
        """armed: says so before it begins to wait for the trainer."""
        work = self._work(mechanism, options)
        self.synchronize()
        if armed:
            self.reply(armed=True)
        begin = time.monotonic_ns()
        more = work() or {}
        self.synchronize()
        return {"begin": begin, "end": time.monotonic_ns(), **more}

    def _work(self, name, options):
        if name == "checkpoint-engine":
            if self.process.role == "server":
                return self.mechanisms[name].serve
            if name not in self.mechanisms:
                self.mechanisms[name] = ckpt_engine.Engine(self)
            return lambda: self.mechanisms[name].answer(**options)
        if self.process.name in self.place.colocated:
            return self._copy_from_trainer
        if name not in self.mechanisms:
            self.mechanisms[name] = MECHANISMS[name](self)
        mechanism = self.mechanisms[name]
        if self.process.role == "trainer":
            return lambda: mechanism.send(**options)
        if name == "raw":
            mechanism.prepare(**options)
        return lambda: mechanism.receive(**options)

    def _copy_from_trainer(self):
        for number, tensor in enumerate(self.tensors):
            self.loader.load(number, tensor)

    def release(self):
        """Gives cached memory back before a mechanism that measures what is free."""
        if "raw" in self.mechanisms:
            self.mechanisms["raw"].buffers = []
        memory.release(self.device)
        return {}


def read(channel, commands):
    """The socket's thread."""
    with channel.makefile("rb") as lines:
        for line in lines:
            commands.put(json.loads(line))
    os._exit(3)  # pylint: disable=protected-access


def main():
    channel = socket.socket(fileno=int(sys.argv[1]))
    commands = queue.SimpleQueue()
    rank = Rank(channel)
    threading.Thread(target=read, args=(channel, commands), daemon=True).start()
    with torch.no_grad():
        while True:
            message = commands.get()
            try:
                rank.reply(**getattr(rank, message.pop("do"))(**message))
            except Exception as error:  # pylint: disable=broad-except
                traceback.print_exc()
                text = (str(error).strip() or repr(error)).splitlines()[0]
                rank.reply(error=f"{type(error).__name__}: {text[:300]}")


if __name__ == "__main__":
    main()
