"""raw: the same bytes by NCCL and nothing else, in pieces of one length, to the receivers.

Not a mechanism: what all of them are measured against. The trainer's memory is sent as it lies;
a receiver takes it into two buffers in turn. Nothing waits before the last piece.
"""

import torch


class Raw:
    def __init__(self, rank):
        self.rank = rank
        self.buffers = []

    def _pieces(self, piece_bytes):
        """(begin, length) of what is sent: the payload, without the gaps between tensors."""
        total = self.rank.shapes.payload_bytes
        return [(at, min(piece_bytes, total - at)) for at in range(0, total, piece_bytes)]

    def send(self, piece_bytes):
        for begin, length in self._pieces(piece_bytes):
            self.rank.broadcast(self.rank.flat[begin:begin + length], "receivers")

    def receive(self, piece_bytes):
        for turn, (_, length) in enumerate(self._pieces(piece_bytes)):
            self.rank.broadcast(self.buffers[turn % 2][:length], "receivers")

    def prepare(self, piece_bytes):
        """Memory before time is taken; pieces of another length reuse it where it is enough."""
        length = min(piece_bytes, self.rank.shapes.payload_bytes)
        if not self.buffers or self.buffers[0].numel() < length:
            self.buffers = []
            self.buffers = [torch.empty(length, dtype=torch.uint8, device=self.rank.device)
                            for _ in range(2)]
