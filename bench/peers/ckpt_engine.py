"""checkpoint-engine itself, by its public API, where its package is importable.

Follows the README and tests/test_update.py of MoonshotAI/checkpoint-engine (release 0.4.2): one
ParameterServer a GPU, in a process of its own, colocated with the engine; rank 0 registers the
trainer's tensors (which it sees by CUDA IPC) into pinned host memory, kept from update to update by
use_shared_memory_pool where the release has it; gather_metas; update by broadcast with auto_pg, as
recommended; the engine answers with update_weights_from_ipc, whose `run` is the loader. Bucket size
and streams are its own. Two times come out: all of that, for fresh weights have to be registered,
and update() alone, which is what its authors publish.

Its protocol has one engine process a GPU: where several workers share a GPU, the first loads for
all of them through CUDA IPC.
"""

import importlib.util
import inspect
import os
import time

NAME = "strew-peers"


def missing():
    """Why it cannot run here; empty: it can."""
    if importlib.util.find_spec("checkpoint_engine") is None:
        return "not importable"
    return ""


class Server:
    """A rank of its parameter servers."""

    def __init__(self, rank, world, port):
        from checkpoint_engine.ps import ParameterServer
        os.environ.update(RANK=str(rank.process.index), WORLD_SIZE=str(world),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        self.rank = rank
        self.server = ParameterServer(auto_pg=True)
        known = inspect.signature(self.server.register_checkpoint).parameters
        self.register_options = (
            {"use_shared_memory_pool": True} if "use_shared_memory_pool" in known else {})

    def _request(self, paths):
        """Called in a thread of its own; the parent asks the engines."""
        self.rank.reply(paths=dict(paths))

    def serve(self):
        first = self.rank.process.index == 0
        if first:
            named = {tensor.name: view for tensor, view in
                     zip(self.rank.shapes.tensors, self.rank.tensors)}
            self.server.register_checkpoint(NAME, named_tensors=named, **self.register_options)
        self.server.gather_metas(NAME)
        registered_ns = time.monotonic_ns()
        self.server.update(NAME, self._request)
        end_ns = time.monotonic_ns()
        if first:
            self.server.unregister_checkpoint(NAME)
        return {"mid": registered_ns, "end": end_ns}


class Engine:
    """The engine's side on one GPU."""

    def __init__(self, rank):
        import zmq
        self.rank = rank
        self.context = zmq.Context()
        self.numbers = {tensor.name: number for number, tensor in enumerate(rank.shapes.tensors)}

    def _run(self, weights):
        if self.rank.sibling_loader:
            for name, tensor in weights:
                self.rank.sibling_loader.load(self.numbers[name], tensor)

    def answer(self, paths):
        from checkpoint_engine.worker import update_weights_from_ipc
        update_weights_from_ipc(self.context, paths[self.rank.device_uuid()],
                                device_id=self.rank.device.index, run=self._run,
                                post_hook=self.rank.synchronize)
