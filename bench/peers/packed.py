"""packed: tensors packed into buckets of 1 GiB, broadcast to every worker, unpacked, loaded.

Follows vLLM: packed_nccl_broadcast_producer and _consumer
(vllm/distributed/weight_transfer/packed_tensor.py at 00a9ccfb4cef; defaults 1 GiB and two buffers).
The producer concatenates on one of two streams and broadcasts there; the consumer allocates,
broadcasts, splits and loads on one of two; each waits for a stream only before it is used again, so
that packing, the wire and loading overlap. verl's NCCL checkpoint engine
(verl/checkpoint_engine/nccl_checkpoint_engine.py) works alike, with names sent beside each bucket.
"""

import torch

from memory import DTYPES
from shapes import buckets

STREAMS = 2


class Packed:
    def __init__(self, rank):
        self.rank = rank
        self.buckets = buckets([tensor.nbytes for tensor in rank.shapes.tensors],
                               rank.settings["bucket_bytes"])
        self.streams = [rank.stream() for _ in range(STREAMS)]

    def _turns(self):
        """(slot, its stream, a bucket): when it comes, the slot's last bucket is done with."""
        for turn, numbers in enumerate(self.buckets):
            slot = turn % STREAMS
            self.streams[slot].synchronize()
            yield slot, self.streams[slot], numbers

    def _drain(self):
        for stream in self.streams:
            stream.synchronize()

    def send(self):
        rank, in_flight = self.rank, [None] * STREAMS
        for slot, stream, numbers in self._turns():
            in_flight[slot] = None
            with stream:
                in_flight[slot] = torch.cat(
                    [rank.tensors[n].view(torch.uint8).view(-1) for n in numbers])
                rank.broadcast(in_flight[slot], "workers")
        self._drain()

    def receive(self):
        rank, in_flight = self.rank, [None] * STREAMS
        for slot, stream, numbers in self._turns():
            tensors = [rank.shapes.tensors[n] for n in numbers]
            sizes = [tensor.nbytes for tensor in tensors]
            with stream:
                in_flight[slot] = torch.empty(sum(sizes), dtype=torch.uint8, device=rank.device)
                rank.broadcast(in_flight[slot], "workers")
                for number, tensor, part in zip(numbers, tensors, in_flight[slot].split(sizes)):
                    rank.loader.load(number, part.view(DTYPES[tensor.dtype]).view(tensor.shape))
        self._drain()
