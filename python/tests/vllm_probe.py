"""What tests have in vLLM's workers, by worker_extension_cls."""

import errno
import hashlib

import torch
from vllm import _custom_ops

from strew import Dirty
from strew.vllm import WorkerExtension

# vLLM's CPU workers pack each matrix for oneDNN and drop it. Without, they compute with parameters
# as they were loaded, which is what an unquantized model has on a GPU.
_custom_ops._supports_onednn = False


class Raw:
    """Its import has turned packing off."""

    def probe_hash(self):
        """Of all parameters, by name."""
        return {name: hashlib.sha256(p.data.contiguous().view(torch.uint8).numpy().tobytes())
                .hexdigest() for name, p in self.model_runner.model.named_parameters()}

    def probe_status(self):
        """Of the layout by which the worker is registered."""
        return self.weight_transfer_engine.core.receiver._layout.status()

    def probe_dirty(self, rank):
        """From now on that worker says that no step may run; None: nobody does."""
        receiver = self.weight_transfer_engine.core.receiver
        receiver.__dict__.pop("finish", None)

        def finish():
            raise Dirty(errno.EUCLEAN, "written in part")
        if rank == self.rank:
            receiver.finish = finish


class RawExtension(WorkerExtension, Raw):
    """For vLLMs without an interface that strew knows."""
