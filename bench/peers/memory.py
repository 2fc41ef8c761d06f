"""GPU memory of trainer and workers: one allocation each, tensors as views of it, shared with
other processes by CUDA IPC (or, for CPU tensors, as a file that several map).

Contents are a pure function of a seed and a tensor's number: a worker makes the trainer's tensor
again by itself, and compares what it has by address arithmetic, without the loader's views.
"""

import base64
import gc
import pickle

import torch

DTYPES = {"f64": torch.float64, "i64": torch.int64, "f32": torch.float32, "i32": torch.int32,
          "f16": torch.float16, "bf16": torch.bfloat16, "i16": torch.int16,
          "f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2, "i8": torch.int8,
          "u8": torch.uint8}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
POISON = 0xA5
STORAGE_DEVICE = 6  # among the arguments of torch's rebuild_cuda_tensor
COMPARE_ELEMENTS = 1 << 24  # at a time: two tables of indices of 128 MiB


def allocate(nbytes, device, path):
    """path: the file behind CPU memory."""
    if device.type == "cuda":
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    return torch.from_file(str(path), shared=True, size=nbytes, dtype=torch.uint8)


def export(flat, path):
    """A text that map_exported takes in another process while `flat` lives."""
    if flat.device.type != "cuda":
        return f"{path} {flat.numel()}"
    from torch.multiprocessing.reductions import reduce_tensor
    return base64.b64encode(pickle.dumps(reduce_tensor(flat))).decode()


def map_exported(text, device):
    if device.type != "cuda":
        path, nbytes = text.rsplit(" ", 1)
        return torch.from_file(path, shared=True, size=int(nbytes), dtype=torch.uint8)
    rebuild, args = pickle.loads(base64.b64decode(text))
    # Mapped for this process's GPU, wherever it lies: a kernel of one GPU cannot write to what was
    # mapped for another.
    assert isinstance(args[STORAGE_DEVICE], int), args
    return rebuild(*args[:STORAGE_DEVICE], device.index, *args[STORAGE_DEVICE + 1:])


def views(flat, tensors):
    """A view of each tensor, in its dtype and shape."""
    return [flat[t.offset:t.offset + t.nbytes].view(DTYPES[t.dtype]).view(t.shape)
            for t in tensors]


def fill(tensor, seed, number):
    """Random bits, the same in every process for a seed and a tensor's number."""
    generator = torch.Generator(device=tensor.device)
    generator.manual_seed((seed * 1_000_003 + number) & (2 ** 63 - 1))
    if tensor.element_size() == 1:
        tensor.view(torch.uint8).random_(0, 256, generator=generator)
    else:
        tensor.view(torch.int16).random_(-2 ** 15, 2 ** 15, generator=generator)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()


def compare(flat, shapes, rank, seed):
    """Compares a worker's parameters with the trainer's tensors, made again from the seed.
    Returns (bytes looked at, wrong elements, a text on the first wrong one)."""
    looked, wrong, first = 0, 0, ""
    parameters = shapes.ranks[rank].parameters
    for number, pieces in sorted(shapes.ranks[rank].of_tensor().items()):
        tensor = shapes.tensors[number]
        source = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype], device=flat.device)
        fill(source, seed, number)
        bits = BITS[source.element_size()]
        source = source.view(-1).view(bits)
        for piece in pieces:
            to = parameters[piece.parameter]
            target = flat[to.offset:to.offset + to.nbytes].view(bits)
            for begin in range(0, piece.numel, COMPARE_ELEMENTS):
                index = torch.arange(begin, min(begin + COMPARE_ELEMENTS, piece.numel),
                                     device=flat.device)
                at, into = piece.expected_at(tensor, index)
                unequal = source[at] != target[into]
                count = int(unequal.sum())
                if count and not wrong:
                    bad = int(unequal.nonzero()[0])
                    first = f"{to.name} element {int(into[bad])}, of {tensor.name}"
                looked, wrong = looked + index.numel() * source.element_size(), wrong + count
    return looked, wrong, first
