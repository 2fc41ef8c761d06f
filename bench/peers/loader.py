"""The loader's copies: what an engine's load_weights does with a tensor that has arrived.

Follows vLLM's weight loaders (vllm/model_executor/layers/linear.py and fused_moe/layer.py, 0.11 and
later): narrow the loaded tensor to this rank's part, narrow the fused parameter to the part's
place, copy_. Here the targets are made once, so that each load costs a slice and a copy_, which is
less than vLLM's lookups by name.
"""

from memory import DTYPES


class Loader:
    """Copies into the parameters of one worker or of several whose memory is mapped here."""

    def __init__(self, shapes, flats):
        """flats: {tensor-parallel rank: its memory}."""
        self.copies = [[] for _ in shapes.tensors]
        for rank, flat in flats.items():
            for piece in shapes.ranks[rank].pieces:
                to = shapes.ranks[rank].parameters[piece.parameter]
                parameter = flat[to.offset:to.offset + to.nbytes].view(DTYPES[to.dtype])
                size, stride = piece.view
                target = parameter[piece.offset:].as_strided(size, stride)
                self.copies[piece.tensor].append((piece.slices, target))

    def load(self, number, tensor):
        for slices, target in self.copies[number]:
            target.copy_(tensor[slices])
