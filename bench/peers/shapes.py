"""A model's tensors, and the parameters and pieces of each tensor-parallel rank.

They are what `strew-bench shapes --json` prints, checked; nothing here needs PyTorch. A piece is
one of the loader's copies: a box of a tensor to rows of a parameter. `expected_at` says by address
arithmetic alone which element of a tensor belongs at which element of a parameter, so that what
the loader's views did can be compared with something that was made in another way.
"""

import dataclasses
import json
import math
import subprocess

ALIGN_BYTES = 512  # as PyTorch's allocator places tensors
DTYPE_BYTES = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2,
               "f8_e4m3": 1, "f8_e5m2": 1, "i8": 1, "u8": 1}


class ShapesError(Exception):
    """What strew-bench printed is not what is expected, or it printed nothing."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the trainer or a parameter of a worker; offset: where in its owner's memory."""
    name: str
    dtype: str
    shape: tuple
    offset: int

    @property
    def numel(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.numel * DTYPE_BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A box of a tensor and where its rows lie in a parameter, in elements of it."""
    tensor: int
    parameter: int
    start: tuple
    extent: tuple
    offset: int
    row_stride: int

    @property
    def numel(self):
        return math.prod(self.extent)

    @property
    def rows(self):
        return self.extent[0] if len(self.extent) > 1 else 1

    @property
    def slices(self):
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.extent))

    @property
    def view(self):
        """(size, stride) of the parameter's elements that it fills, for as_strided at offset."""
        inner = [1] * len(self.extent)
        for i in range(len(self.extent) - 2, 0, -1):
            inner[i] = inner[i + 1] * self.extent[i + 1]
        if len(self.extent) > 1:
            inner[0] = self.row_stride
        return self.extent, tuple(inner)

    def expected_at(self, tensor, index):
        """For element `index` of the piece, counted row by row: (element of the tensor, element of
        the parameter). index may be an integer or anything with its operators, as a tensor of
        integers."""
        row_elements = self.numel // self.rows
        row, rest = index // row_elements, index % row_elements
        to = self.offset + row * self.row_stride + rest
        if len(self.extent) == 1:
            return self.start[0] + rest, to
        source, stride = (self.start[0] + row) * math.prod(tensor.shape[1:]), 1
        for axis in range(len(self.extent) - 1, 0, -1):
            source = source + (self.start[axis] + rest % self.extent[axis]) * stride
            rest, stride = rest // self.extent[axis], stride * tensor.shape[axis]
        return source, to


@dataclasses.dataclass(frozen=True)
class Rank:
    parameters: tuple
    pieces: tuple
    memory_bytes: int

    def of_tensor(self):
        """{tensor's index: its pieces}."""
        found = {}
        for piece in self.pieces:
            found.setdefault(piece.tensor, []).append(piece)
        return found


@dataclasses.dataclass(frozen=True)
class Shapes:
    tensors: tuple
    ranks: tuple
    memory_bytes: int

    @property
    def payload_bytes(self):
        return sum(tensor.nbytes for tensor in self.tensors)


def _whole(value, what, least=0):
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ShapesError(f"{what} is {value!r}")
    return value


def _dims(value, what, least):
    if not isinstance(value, list) or not value:
        raise ShapesError(f"{what} is {value!r}")
    return tuple(_whole(dim, what, least) for dim in value)


def _place(entries, what):
    """Tensors side by side; returns them and the length of all."""
    placed, at = [], 0
    for entry in entries:
        name, dtype = entry["name"], entry["dtype"]
        if dtype not in DTYPE_BYTES:
            raise ShapesError(f"{what} {name}: no such dtype: {dtype}")
        placed.append(Tensor(name, dtype, _dims(entry["shape"], f"the shape of {name}", 1), at))
        at += -(-placed[-1].nbytes // ALIGN_BYTES) * ALIGN_BYTES
    return tuple(placed), at


def _piece(entry, tensors, parameters):
    numbers = {key: _whole(entry[key], f"{key} of a piece")
               for key in ("tensor", "parameter", "offset", "row_stride")}
    if numbers["tensor"] >= len(tensors) or numbers["parameter"] >= len(parameters):
        raise ShapesError(f"a piece of tensor {numbers['tensor']} and parameter "
                          f"{numbers['parameter']}, which do not exist")
    tensor, parameter = tensors[numbers["tensor"]], parameters[numbers["parameter"]]
    piece = Piece(start=_dims(entry["start"], f"a start in {tensor.name}", 0),
                  extent=_dims(entry["extent"], f"an extent in {tensor.name}", 1), **numbers)
    if not len(piece.start) == len(piece.extent) == len(tensor.shape) or any(
            a + n > size for a, n, size in zip(piece.start, piece.extent, tensor.shape)):
        raise ShapesError(f"a piece leaves {tensor.name}")
    if piece.rows > 1 and piece.row_stride < piece.numel // piece.rows:
        raise ShapesError(f"rows of a piece overlap in {parameter.name}")
    last = piece.offset + (piece.rows - 1) * piece.row_stride + piece.numel // piece.rows
    if last > parameter.numel:
        raise ShapesError(f"a piece leaves {parameter.name}")
    if tensor.dtype != parameter.dtype:
        raise ShapesError(f"{tensor.name} is {tensor.dtype}, {parameter.name} {parameter.dtype}")
    return piece


def parse(text):
    """Shapes from what strew-bench shapes --json printed."""
    try:
        data = json.loads(text)
        tensors, memory_bytes = _place(data["tensors"], "tensor")
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise ShapesError("two tensors have one name")
        ranks = []
        for entry in data["ranks"]:
            parameters, rank_bytes = _place(entry["parameters"], "parameter")
            pieces = tuple(_piece(one, tensors, parameters) for one in entry["pieces"])
            ranks.append(Rank(parameters, pieces, rank_bytes))
    except (ValueError, TypeError, KeyError) as error:
        raise ShapesError(f"not the shapes of a model: {error!r}") from error
    if not tensors or not ranks:
        raise ShapesError("no tensors, or no ranks")
    return Shapes(tensors, tuple(ranks), memory_bytes)


def load(programs, model, layers, tp, seconds=60):
    """Runs strew-bench shapes; returns its text, which parse() takes."""
    argv = [f"{programs}/strew-bench", "shapes", "--model", str(model), "--tp", str(tp), "--json"]
    if layers:
        argv += ["--layers", str(layers)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False,
                              stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ShapesError(f"{argv[0]} shapes: {error}") from error
    if done.returncode:
        raise ShapesError(done.stderr.strip() or f"{argv[0]} shapes: exit code {done.returncode}")
    return done.stdout


def buckets(sizes, limit_bytes):
    """Lists of indices: a bucket takes tensors in order until it exceeds the limit, the last one
    included, as both ends of vLLM's packed broadcast count them."""
    full, one, one_bytes = [], [], 0
    for index, size in enumerate(sizes):
        one.append(index)
        one_bytes += size
        if one_bytes > limit_bytes:
            full.append(one)
            one, one_bytes = [], 0
    return full + [one] if one else full
