"""tensor: one NCCL broadcast for each tensor, from the trainer to every worker, then the loader.

Follows vLLM: the unpacked path of NCCLWeightTransferEngine.receive_weights and
trainer_send_weights (vllm/distributed/weight_transfer/nccl_engine.py at 04b06efe2a8e), which is the
update_weight of its RLHF examples (examples/offline_inference/rlhf_utils.py, 0.8 to 0.11): an empty
tensor, a broadcast on the current stream, load_weights, and nobody waits between two tensors.
Names, dtypes and shapes are known beforehand; the examples' remote call for each of them, a
millisecond or so, is left out.
"""

import torch

from memory import DTYPES


class TensorByTensor:
    def __init__(self, rank):
        self.rank = rank

    def send(self):
        for tensor in self.rank.tensors:
            self.rank.broadcast(tensor, "workers")

    def receive(self):
        rank = self.rank
        for number, tensor in enumerate(rank.shapes.tensors):
            received = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype], device=rank.device)
            rank.broadcast(received, "workers")
            rank.loader.load(number, received)
            del received
