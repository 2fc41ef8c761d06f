"""index-then-tensor: the daemon that strew replaces.

Follows the receiving loop of the weight updater that NousResearch/atropos had beside each vLLM
process (weight_updater.py of its vllm_patching folder, the version with direct broadcasts; removed
from that project since): for each tensor a broadcast of its index among the sorted names, which the
daemon reads on the host (.item(), a wait for the GPU); memory full of zeros for the tensor; a
broadcast of the tensor into it; a copy into the engine's memory, mapped by CUDA IPC.

Done better than there: the copy goes into fused tensor-parallel parameters, which the daemon never
managed, names agree on both sides, and one daemon a GPU serves all workers of it, so that bytes
cross once. Its print for every fiftieth tensor is left out.
"""

import torch

from memory import DTYPES


class IndexThenTensor:
    def __init__(self, rank):
        self.rank = rank
        names = [tensor.name for tensor in rank.shapes.tensors]
        self.by_name = sorted(range(len(names)), key=names.__getitem__)

    def send(self):
        rank = self.rank
        for position, number in enumerate(self.by_name):
            rank.broadcast(torch.full((1,), position, dtype=torch.long, device=rank.device),
                           "receivers")
            rank.broadcast(rank.tensors[number], "receivers")

    def receive(self):
        rank = self.rank
        for _ in self.by_name:
            position = torch.zeros(1, dtype=torch.long, device=rank.device)
            rank.broadcast(position, "receivers")
            number = self.by_name[position.item()]
            tensor = rank.shapes.tensors[number]
            received = torch.zeros(tensor.shape, dtype=DTYPES[tensor.dtype], device=rank.device)
            rank.broadcast(received, "receivers")
            rank.loader.load(number, received)
