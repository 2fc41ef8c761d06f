"""Loaders as engines have them, and ways to fill modules through a broker."""

import os
import socket
import threading

import torch
from torch import nn

import strew


def random_values(described, seed=None):
    """Fresh random bits of every dtype, no NaN."""
    generator = torch.Generator()
    generator.manual_seed(seed if seed is not None else int.from_bytes(os.urandom(6), "little"))
    values = {}
    for name, (dtype, shape) in described.items():
        if dtype.is_floating_point:
            values[name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            values[name] = torch.randint(-99, 99, shape, generator=generator).to(dtype)
    return values


def to_host(tensors):
    """The same values in memory that a broker can map."""
    result = {}
    for name, tensor in tensors.items():
        result[name] = strew.host_empty(tuple(tensor.shape), tensor.dtype)
        result[name].copy_(tensor)
    return result


def poisoned_twin(make):
    """A module made by make(), with its parameters and buffers in host memory, full of rubbish."""
    module = make()
    moved = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        storage = tensor.data.untyped_storage()
        if storage._cdata not in moved and storage.nbytes():
            memory = strew.host_empty(storage.nbytes(), torch.uint8)
            memory.random_(0, 127)
            if not isinstance(tensor, nn.Parameter):
                memory.copy_(torch.empty(0, dtype=torch.uint8).set_(storage))
            moved[storage._cdata] = (memory, storage)
        if storage.nbytes():
            memory = moved[storage._cdata][0]
            flat = memory[: memory.numel() // tensor.element_size() * tensor.element_size()]
            tensor.data = flat.view(tensor.dtype).as_strided(
                tensor.shape, tensor.stride(), tensor.data.storage_offset())
    return module


def publish(broker, values, layouts, model="m", version=1, **options):
    """Registers one agent for each layout, publishes the values once; returns the report."""
    agents = []
    try:
        for rank, layout in enumerate(layouts):
            agent = strew.Agent(model, rank=rank, size=len(layouts), gate="live",
                                socket=broker.socket, partial=True)
            agents.append(agent)
            agent.register(layout, **options)
        with strew.Trainer(model, rank=0, size=1, socket=broker.socket) as trainer:
            trainer.declare(to_host(values))
            return trainer.publish(version, partial=True)
    finally:
        for agent in agents:
            agent.close()


def same_bits(got, want):
    return got.shape == want.shape and got.dtype == want.dtype and torch.equal(
        got.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8))


def assert_filled(got, want, layout):
    """Every parameter of the layout is bit-equal to the loader's; padding is left out."""
    names = dict(want.named_parameters(remove_duplicate=False))
    names.update(want.named_buffers(remove_duplicate=False))
    for name, parameter in layout.parameters.items():
        if parameter.uncovered == 0:
            assert same_bits(parameter.tensor.data, names[name].data), name
        else:
            for piece in parameter.pieces:
                box = [t.as_strided(piece.extent, piece.stride, t.storage_offset() + piece.offset)
                       for t in (parameter.tensor.data, names[name].data)]
                assert same_bits(*box), name
    assert got is not want


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def in_threads(functions):
    """Runs them together; raises the first failure."""
    failures = []

    def guarded(function):
        try:
            function()
        except BaseException as failure:  # pylint: disable=broad-except
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failures:
        raise failures[0]


class Fused(nn.Module):
    """What a tensor-parallel engine does to checkpoints, in one module: `rank` of `size`."""

    HIDDEN, HEAD, HEADS, KV, INNER, EXPERTS, VOCAB = 24, 8, 4, 2, 40, 4, 37

    def __init__(self, rank, size, dtype=torch.bfloat16):
        super().__init__()
        self.rank, self.size = rank, size
        self.heads, self.kv = self.HEADS // size, max(1, self.KV // size)
        self.inner, self.rows = self.INNER // size, 64 // size  # vocabulary padded to 64

        def parameter(*shape):
            return nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)

        self.qkv = parameter((self.heads + 2 * self.kv) * self.HEAD, self.HIDDEN)
        self.qkv_bias = parameter((self.heads + 2 * self.kv) * self.HEAD)
        self.rotary = parameter(self.heads * self.HEAD, self.HIDDEN)
        self.o = parameter(self.HIDDEN, self.heads * self.HEAD)
        self.gate_up = parameter(2 * self.inner, self.HIDDEN)
        self.down_t = parameter(self.inner, self.HIDDEN)  # kept transposed
        self.w13 = parameter(self.EXPERTS, 2 * self.inner, self.HIDDEN)
        self.w2 = parameter(self.EXPERTS, self.HIDDEN, self.inner)
        self.stacked = parameter(2, self.HIDDEN, 3)
        self.embed = parameter(self.rows, self.HIDDEN)
        self.head = self.embed
        self.norm = nn.Parameter(torch.zeros(self.HIDDEN), requires_grad=False)  # float32
        self.register_buffer("mean", torch.zeros(5))
        self.derived = parameter(self.HIDDEN)
        self.never = parameter(3)

    @classmethod
    def checkpoint(cls, dtype=torch.bfloat16):
        h, d = cls.HIDDEN, cls.HEAD
        shapes = {"q.weight": (cls.HEADS * d, h), "k.weight": (cls.KV * d, h),
                  "v.weight": (cls.KV * d, h), "q.bias": (cls.HEADS * d,), "k.bias": (cls.KV * d,),
                  "v.bias": (cls.KV * d,), "rotary.weight": (cls.HEADS * d, h),
                  "o.weight": (h, cls.HEADS * d), "gate.weight": (cls.INNER, h),
                  "up.weight": (cls.INNER, h), "down.weight": (h, cls.INNER),
                  "embed.weight": (cls.VOCAB, h), "norm.weight": (h,), "mean": (5,),
                  "left": (h, 3), "right": (3, h), "scaled": (h,), "extra": (2, 2)}
        for e in range(cls.EXPERTS):
            shapes.update({f"experts.{e}.w1": (cls.INNER, h), f"experts.{e}.w3": (cls.INNER, h),
                           f"experts.{e}.w2": (h, cls.INNER)})
        return {name: (torch.float32 if name == "mean" else dtype, shape)
                for name, shape in shapes.items()}

    def _rows(self, tensor, rows, rank=None):
        return tensor.narrow(0, (self.rank if rank is None else rank) * rows, rows)

    def load_weights(self, weights):
        for name, tensor in weights:
            self.load(name, tensor)
        # The engine's own padding, as most do it: after the rows that exist.
        have = max(0, min(self.rows, self.VOCAB - self.rank * self.rows))
        self.embed.data[have:].fill_(0)

    def load(self, name, tensor):
        d, at = self.HEAD, {"q": 0, "k": self.heads, "v": self.heads + self.kv}
        head, _, kind = name.partition(".")
        if head in at:
            target = self.qkv if kind == "weight" else self.qkv_bias
            rows = (self.heads if head == "q" else self.kv) * d
            rank = self.rank if head == "q" else self.rank * self.KV // self.size
            shard = target.data.narrow(0, at[head] * d, rows)
            shard.copy_(self._rows(tensor, rows, rank))
        elif head == "rotary":
            mine = self._rows(tensor, self.heads * d)
            mine = mine.view(self.heads, d // 2, 2, -1).transpose(1, 2).reshape(mine.shape)
            self.rotary.data.copy_(mine)
        elif head == "o":
            self.o.data.copy_(tensor.chunk(self.size, dim=1)[self.rank])
        elif head in ("gate", "up"):
            half = self.gate_up.data.view(2, self.inner, -1)[int(head == "up")]
            half.copy_(tensor.split(self.inner)[self.rank])
        elif head == "down":
            self.down_t.data.copy_(tensor.t().contiguous().narrow(0, self.rank * self.inner,
                                                                  self.inner))
        elif head == "experts":
            expert, kind = kind.split(".")
            if kind == "w2":
                self.w2.data[int(expert)].copy_(
                    tensor[:, self.rank * self.inner:(self.rank + 1) * self.inner])
            else:
                part = self.w13.data[int(expert)].narrow(0, self.inner * (kind == "w3"), self.inner)
                part.copy_(self._rows(tensor, self.inner).to(part.dtype))
        elif head == "left":
            self.stacked.data[0] = tensor
        elif head == "right":
            index = torch.tensor([2, 1, 0])
            self.stacked.data[1].copy_(torch.cat([tensor[:1], tensor[1:]]).index_select(
                0, torch.arange(3))[index].t()[:, [2, 1, 0]])
        elif head == "embed":
            begin = self.rank * self.rows
            rows = tensor[begin:begin + self.rows]
            self.embed.data[:rows.shape[0]].copy_(rows)
        elif head in ("norm", "mean"):
            getattr(self, head).data.copy_(tensor)
        elif head == "scaled":
            self.derived.data.copy_(tensor * 2)


class Experts(nn.Module):
    """Expert parallelism: a rank has every size-th expert whole, and a map that says which.

    The map, -1 for experts of other ranks, is a buffer or a plain tensor of the module.
    """

    HIDDEN, INNER, EXPERTS = 12, 10, 8

    def __init__(self, rank, size, plain):
        super().__init__()
        local = self.EXPERTS // size
        expert_map = torch.full((self.EXPERTS,), -1, dtype=torch.int32)
        expert_map[rank::size] = torch.arange(local, dtype=torch.int32)
        if plain:
            self.expert_map = expert_map
        else:
            self.register_buffer("expert_map", expert_map)
        for name, shape in (("w13", (local, 2 * self.INNER, self.HIDDEN)),
                            ("w2", (local, self.HIDDEN, self.INNER)),
                            ("router", (self.EXPERTS, self.HIDDEN))):
            setattr(self, name, nn.Parameter(torch.zeros(shape), requires_grad=False))

    @classmethod
    def checkpoint(cls):
        shapes = {"router": (cls.EXPERTS, cls.HIDDEN)}
        for e in range(cls.EXPERTS):
            shapes.update({f"{e}.w1": (cls.INNER, cls.HIDDEN), f"{e}.w3": (cls.INNER, cls.HIDDEN),
                           f"{e}.w2": (cls.HIDDEN, cls.INNER)})
        return {name: (torch.float32, shape) for name, shape in shapes.items()}

    def local(self, expert):
        """The place of an expert here, -1 if it is elsewhere."""
        return self.expert_map[expert].item()

    def load_weights(self, weights):
        for name, tensor in weights:
            if name == "router":
                self.router.data.copy_(tensor)
                continue
            expert, kind = name.split(".")
            at = self.local(int(expert))
            if at == -1:
                continue
            if kind == "w2":
                self.w2.data[at].copy_(tensor)
            else:
                self.w13.data[at].narrow(0, self.INNER * (kind == "w3"), self.INNER).copy_(tensor)


class Latent(nn.Module):
    """A layer of the shape of DeepSeek's MLA: after loading, kv_b_proj is split and transposed."""

    HEADS, NOPE, VALUE, RANK, HIDDEN = 4, 6, 5, 8, 12

    def __init__(self):
        super().__init__()
        n = self.HEADS
        self.q = nn.Parameter(torch.zeros(n * self.NOPE, self.HIDDEN), requires_grad=False)
        self.kv_a = nn.Parameter(torch.zeros(self.RANK, self.HIDDEN), requires_grad=False)
        self.kv_b = nn.Parameter(torch.zeros(n * (self.NOPE + self.VALUE), self.RANK),
                                 requires_grad=False)
        self.o = nn.Parameter(torch.zeros(self.HIDDEN, n * self.VALUE), requires_grad=False)
        self.w_uk_t = nn.Parameter(torch.zeros(n, self.NOPE, self.RANK), requires_grad=False)
        self.w_uv = nn.Parameter(torch.zeros(n, self.RANK, self.VALUE), requires_grad=False)

    def load_weights(self, weights):
        for name, tensor in weights:
            getattr(self, name).data.copy_(tensor)

    def post_load(self):
        both = self.kv_b.data.view(self.HEADS, self.NOPE + self.VALUE, self.RANK)
        self.w_uk_t.data.copy_(both[:, : self.NOPE])
        self.w_uv.data.copy_(both[:, self.NOPE:].transpose(1, 2))

    def forward(self, x):
        q = (x @ self.q.T).view(-1, self.HEADS, self.NOPE)
        latent = x @ self.kv_a.T
        scores = torch.einsum("shd,hdr,tr->hst", q, self.w_uk_t, latent).softmax(-1)
        return torch.einsum("hst,tr,hrv->shv", scores, latent, self.w_uv).flatten(1) @ self.o.T
