"""record_layout: what strew fills, through a real broker, is what the loader fills."""

import types

import numpy
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import strew  # noqa: E402
from loaders import (  # noqa: E402
    Experts,
    Fused,
    Latent,
    assert_filled,
    poisoned_twin,
    publish,
    random_values,
    same_bits,
    to_host,
)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_fused_module(broker, size, dtype):
    described = Fused.checkpoint(dtype)
    values = random_values(described)
    want, got, layouts = [], [], []
    for rank in range(size):
        want.append(Fused(rank, size))
        want[-1].load_weights(iter(values.items()))
        got.append(poisoned_twin(lambda r=rank: Fused(r, size)))
        before = got[-1].embed.clone()
        layouts.append(strew.record_layout(got[-1], got[-1].load_weights, described.items()))
        assert same_bits(got[-1].embed, before)  # recording writes nothing
    for rank, layout in enumerate(layouts):
        assert list(layout.refused) == ["derived"] and "mul" in layout.refused["derived"]
        rows = 64 // size
        real = max(0, min(rows, Fused.VOCAB - rank * rows))
        assert layout.unfilled == (["never"] if real else ["embed", "never"])
        assert layout.unused == ([] if real else ["embed.weight"]) + ["scaled", "extra"]
        if real:
            assert layout.parameters["embed"].names == ("embed", "head")
            assert layout.parameters["embed"].uncovered == (rows - real) * Fused.HIDDEN
        with pytest.raises(strew.Refused, match="derived"):
            with strew.Agent("m", socket=broker.socket) as agent:
                agent.register(layout)
    report = publish(broker, values, layouts, skip_refused=True)
    assert report.committed
    for rank in range(size):
        assert_filled(got[rank], want[rank], layouts[rank])
        assert got[rank].head is got[rank].embed


def one(load, shape, described, dtype=torch.float32):
    """A module with one parameter `p`, loaded by the same loader if it can, and its layout."""
    module = nn.Module()
    module.p = nn.Parameter(torch.full(shape, 7.0).to(dtype), requires_grad=False)

    def load_weights(weights):
        for name, tensor in weights:
            load(module.p, name, tensor)
    try:
        load_weights(random_values(described).items())
    except Exception:  # pylint: disable=broad-except
        pass
    before = module.p.clone()
    layout = strew.record_layout(module, load_weights, described)
    assert same_bits(module.p, before)
    return module, layout


def played(load, shape, described, dtype=torch.float32):
    """Fills by the pieces and by the loader; asserts that both are equal."""
    values = random_values(described)
    module, layout = one(load, shape, described, dtype)
    assert not layout.refused, layout.refused
    want = torch.full(shape, 7.0).to(dtype)
    with torch.no_grad():
        for name, tensor in values.items():
            load(nn.Parameter(want, requires_grad=False), name, tensor)
    from strew._prove import source_box, target_box
    for piece in layout.parameters["p"].pieces:
        target_box(piece, module.p.data).copy_(source_box(piece, values[piece.tensor]))
    assert same_bits(module.p.data, want)
    return layout


F32 = torch.float32
U8 = torch.uint8


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("load, shape, source", [
    (lambda p, n, t: p.data.copy_(t[::2].T), (5, 4), (8, 5)),
    (lambda p, n, t: p.data.view(-1).copy_(t.flatten()[3:15]), (3, 4), (4, 5)),
    (lambda p, n, t: p.data.copy_(t.reshape(6, 2).contiguous().view(3, 4)), (3, 4), (2, 6)),
    (lambda p, n, t: p.data.copy_(t.permute(2, 0, 1).reshape(4, 6)), (4, 6), (2, 3, 4)),
    (lambda p, n, t: p.data.copy_(t.expand(3, 5)), (3, 5), (1, 5)),
    (lambda p, n, t: p.data.copy_(t.repeat(2, 3)), (4, 9), (2, 3)),
    (lambda p, n, t: p.data.copy_(t.repeat_interleave(2, dim=0)), (8, 3), (4, 3)),
    (lambda p, n, t: p.data.copy_(nn.functional.pad(t, (0, 0, 0, 2))), (5, 4), (3, 4)),
    (lambda p, n, t: p.data.copy_(torch.stack(t.unbind(1))), (4, 3), (3, 4)),
    (lambda p, n, t: p.data.copy_(t.to(torch.float64).float()), (3, 4), (3, 4)),
    (lambda p, n, t: p.data.index_copy_(0, torch.tensor([2, 0]), t), (3, 4), (2, 4)),
    (lambda p, n, t: p.data.__setitem__(torch.tensor([1, 3]), t), (4, 2), (2, 2)),
    (lambda p, n, t: p.data.copy_(t[torch.tensor([True, False, True])]), (2, 4), (3, 4)),
    (lambda p, n, t: p.data.copy_(t[torch.ones(2, dtype=U8)]), (2, 4), (2, 4)),
    (lambda p, n, t: p.data.copy_(t[:, torch.tensor([1, 0, 1], dtype=U8)]), (4, 2), (4, 3)),
    (lambda p, n, t: p.data.copy_(t[numpy.array([0, 2, 1], "uint8")]), (2, 4), (3, 4)),
    (lambda p, n, t: p.data.__setitem__(torch.tensor([1, 0, 1], dtype=U8), t), (3, 4), (2, 4)),
    (lambda p, n, t: p.data.index_put_((torch.tensor([0, 1, 1], dtype=U8),), t), (3, 4), (2, 4)),
    (lambda p, n, t: p.data.copy_(t[torch.tensor([-1, 0], dtype=torch.int32)]), (2, 4), (3, 4)),
    (lambda p, n, t: p.data.copy_(t.unfold(0, 2, 2).flatten(1)), (2, 6), (4, 3)),
    (lambda p, n, t: p.data.t().copy_(t), (4, 3), (3, 4)),
    (lambda p, n, t: (p.data.zero_(), p.data[1:].copy_(t)), (4, 3), (3, 3)),
    (lambda p, n, t: (p.data.copy_(t), p.data.copy_(t.flip(0) if False else t)), (2, 2), (2, 2)),
    (lambda p, n, t: p.data.copy_(torch.empty(4, 4).copy_(t)[1:3]), (2, 4), (4, 4)),
    (lambda p, n, t: p.data.copy_(torch.cat([t[2:], t[:2]]).view(2, 2, 3).transpose(0, 1)),
     (2, 2, 3), (4, 3)),
])
def test_ways_to_load(load, shape, source):
    played(load, shape, {"t": (F32, source)})


@pytest.mark.parametrize("load, words", [
    (lambda p, n, t: p.data.copy_(t + 1), "add"),
    (lambda p, n, t: p.data.copy_(t).mul_(2), "mul"),
    (lambda p, n, t: p.data.copy_(torch.softmax(t, 0)), "softmax"),
    (lambda p, n, t: p.data.copy_(t.to(torch.bfloat16)), "bfloat16"),
    (lambda p, n, t: p.data.copy_(t.to(torch.int32)), "int32"),
    (lambda p, n, t: (p.data.copy_(t), p.data[1, 1:3].fill_(0)), "overwritten"),
    (lambda p, n, t: p.data.copy_(t.view(torch.int32).float()), "dtype"),
    (lambda p, n, t: p.data.view(torch.int32).copy_(t.view(torch.int32)), "dtype"),
    (lambda p, n, t: torch.add(t, 1, out=p.data), "add"),
    (lambda p, n, t: p.data.copy_(torch._neg_view(t)), "negates"),
    (lambda p, n, t: torch._neg_view(p.data).copy_(t), "negates"),
    (lambda p, n, t: p.data.copy_(torch._neg_view(t).clone()), "negates"),
    (lambda p, n, t: p.data.copy_(torch.cat([torch._neg_view(t)[:2], t[2:]])), "negates"),
])
def test_what_is_refused_by_name(load, words):
    _, layout = one(load, (4, 6), {"t": (F32, (4, 6))})
    assert not layout.parameters and words in layout.refused["p"]


def test_complex_conjugates_are_refused():
    """The memory of such a view has another sign than what the loader would write."""
    c64 = torch.complex64
    _, layout = one(lambda p, n, t: p.data.copy_(t.conj()), (4, 6), {"t": (c64, (4, 6))}, c64)
    assert not layout.parameters and "conjugates" in layout.refused["p"]


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("load", [
    lambda p, n, t: t[torch.ones(3, dtype=U8)],
    lambda p, n, t: t[torch.tensor([True, False])],
    lambda p, n, t: t[torch.tensor([0, 4])],
    lambda p, n, t: t[torch.tensor([0, 1], dtype=torch.int8)],
    lambda p, n, t: t.index_select(0, torch.ones(4, dtype=U8)),
    lambda p, n, t: t.index_select(0, torch.tensor([-1])),
    lambda p, n, t: p.data.__setitem__(torch.ones(2, dtype=U8), t[:2]),
    lambda p, n, t: p.data.index_copy_(0, torch.tensor([0, -1]), t[:2]),
    lambda p, n, t: p.data.index_copy_(0, torch.ones(2, dtype=U8), t[:2]),
])
def test_indices_that_torch_does_not_take(load):
    """Neither does a loader that runs on stand-ins."""
    with pytest.raises((IndexError, RuntimeError)):
        load(nn.Parameter(torch.zeros(4, 6), requires_grad=False), "t", torch.ones(4, 6))
    with pytest.raises(strew.NotShareable, match="tensor some.name"):
        one(load, (4, 6), {"some.name": (F32, (4, 6))})


@pytest.mark.parametrize("load", [
    lambda p, n, t: p.data.copy_(t * t.max().item()),
    lambda p, n, t: p.data.copy_(t) if t.sum() > 0 else None,
    lambda p, n, t: p.data.copy_(torch.from_numpy(t.numpy())),
    lambda p, n, t: p.data.copy_(t[t > 0]),
    lambda p, n, t: p.data.copy_(t.narrow(0, 2, 9)),
])
def test_loaders_that_look_at_values(load):
    with pytest.raises(strew.NotShareable, match="tensor some.name"):
        one(load, (4, 6), {"some.name": (F32, (4, 6))})


def test_the_last_write_counts():
    def load(p, name, tensor):
        p.data.copy_(tensor)
    layout = played(load, (3, 4), {"a": (F32, (3, 4)), "b": (F32, (3, 4))})
    assert [piece.tensor for piece in layout.parameters["p"].pieces] == ["b"]
    assert layout.unused == ["a"]


def test_a_module_whose_tensors_are_replaced():
    """load_state_dict(assign=True), and `.data =`; the module is given back its memory."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    state = {name: (t.dtype, tuple(t.shape)) for name, t in module.state_dict().items()}
    before = {name: (t, t.data_ptr()) for name, t in module.named_parameters()}
    layout = strew.record_layout(
        module, lambda weights: module.load_state_dict(dict(weights), assign=True), state)
    assert list(layout.parameters) == list(state) and not layout.refused
    for name, parameter in module.named_parameters():
        assert parameter is before[name][0] and parameter.data_ptr() == before[name][1]
    assert not layout.moved()
    module[1].weight.data = torch.zeros(2, 4)
    assert list(layout.moved()) == ["1.weight"]


def test_a_loader_that_swaps_tensors_between_names():
    """Double buffers: each name has what the other's memory was loaded with."""
    values = random_values({n: (F32, (4,)) for n in "abcd"})
    module = nn.Module()
    for name in values:
        setattr(module, name, nn.Parameter(torch.zeros(4), requires_grad=False))

    def load_weights(weights):
        for name, tensor in weights:
            getattr(module, name).data.copy_(tensor)
        module.a, module.b, module.c = module.c, module.a, module.b
    load_weights(values.items())
    layout = strew.record_layout(module, load_weights, values, prove=values)
    assert not layout.refused, layout.refused
    for name, parameter in layout.parameters.items():
        piece, = parameter.pieces
        assert torch.equal(parameter.tensor.data, values[piece.tensor]), name
    assert [layout.parameters[n].pieces[0].tensor for n in "abcd"] == ["c", "a", "b", "d"]


@pytest.mark.parametrize("shape, dtype, see", [
    ((4, 4), torch.float32, lambda data: data.t()), ((4, 6), torch.float32, lambda data: data.t()),
    ((4, 6), torch.float32, lambda data: data.view(6, 4)),
    ((4, 4), torch.uint8, lambda data: data.view(torch.int8))])
def test_a_hook_that_sees_the_same_memory_otherwise(shape, dtype, see):
    """Its shape, strides and dtype are those that the engine had."""
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(shape).to(dtype), requires_grad=False)
    module.tied = module.w

    def load_weights(weights):
        for _, tensor in weights:
            module.w.data.copy_(tensor)
        module.w.data = see(module.w.data)
    before = module.w.shape, module.w.stride(), module.w.dtype, module.w.data_ptr()
    layout = strew.record_layout(module, load_weights, {"w": (dtype, shape)})
    assert (module.w.shape, module.w.stride(), module.w.dtype, module.w.data_ptr()) == before
    assert module.tied is module.w and not layout.moved()
    if shape == (4, 4) and dtype == torch.float32:
        piece, = layout.parameters["w"].pieces
        assert piece.stride == (1, 4)  # the engine has it transposed
    else:
        assert "shape" in layout.refused["w"] or "dtype" in layout.refused["w"]


def test_a_tensor_that_goes_by_two_dtypes():
    """Each name keeps its own."""
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(4, dtype=torch.uint8), requires_grad=False)
    module.signed = module.w.data.view(torch.int8)

    def load_weights(weights):
        for _, tensor in weights:
            module.w.data.copy_(tensor)
        module.signed = module.w.data.clone()
    layout = strew.record_layout(module, load_weights, {"w": (torch.uint8, (4,))})
    assert module.w.dtype == torch.uint8 and module.signed.dtype == torch.int8
    assert module.signed.data_ptr() == module.w.data_ptr() and not layout.moved()


def test_prove_finds_what_the_engine_changed_after_loading(tmp_path, broker):
    safetensors = pytest.importorskip("safetensors.torch")
    described = Fused.checkpoint()
    values = random_values(described)
    safetensors.save_file(values, tmp_path / "model.safetensors")
    module = poisoned_twin(lambda: Fused(0, 2))
    module.load_weights(iter(values.items()))
    module.w2.data.copy_(module.w2.data.flip(0))  # a repack
    layout = strew.record_layout(module, module.load_weights, tmp_path, prove=tmp_path)
    assert sorted(layout.refused) == ["derived", "never", "w2"]
    assert "experts" in layout.refused["w2"] and layout.status().endswith("refused 3, proved")
    assert "w13" in layout.parameters
    # Values of the trainer that are not the checkpoint's, by name and by shape.
    other = strew.record_layout(module, module.load_weights, values,
                                prove={**values, "o.weight": values["o.weight"][:, :5]})
    assert "o" in other.refused


def test_an_agent_refuses_a_parameter_that_moved(broker):
    described = {"weight": (F32, (3, 4))}
    module = poisoned_twin(lambda: nn.Linear(4, 3, bias=False))

    def load_weights(weights):
        module.load_state_dict(dict(weights))
    layout = strew.record_layout(module, load_weights, described)
    with strew.Agent("m", socket=broker.socket) as agent:
        agent.register(layout)
        values = to_host(random_values(described))
        with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
            trainer.declare(values)
            running = trainer.publish_async(1, timeout=2)
            module.weight.data = torch.ones(3, 4)
            with pytest.raises(strew.Moved, match="parameter weight has moved"):
                while agent.between_steps() is None:
                    pass
            with pytest.raises(strew.NotCommitted):
                running.report(20)
        assert (module.weight == 1).all()


def test_where_a_layouts_parameters_are():
    """The same objects, at the same addresses, by all of their names; what is not is named."""
    def make():
        tied = nn.Linear(4, 4, bias=False)
        return nn.ModuleDict({"a": tied, "b": nn.Linear(4, 3), "c": tied})
    module = poisoned_twin(make)
    described = {"a.weight": (F32, (4, 4)), "b.weight": (F32, (3, 4)), "b.bias": (F32, (3,))}

    def load_weights(weights):
        module.load_state_dict(dict(weights), strict=False)
    layout = strew.record_layout(module, load_weights, described)
    weight, bias = module["a"].weight, module["b"].bias
    held = weight.data
    other = nn.Parameter(weight.detach().clone())
    elsewhere, gone = "has moved since it was registered", "is gone"

    def moved():
        return layout.moved()
    assert moved() == {}
    weight.data = held.clone()
    assert moved() == {"a.weight": elsewhere}
    weight.data = held
    assert moved() == {}
    module["c"].weight = other  # both names are of one module
    assert moved() == {"a.weight": elsewhere}
    module["c"].weight = weight
    del module["b"].bias
    assert moved() == {"b.bias": gone}
    module["b"].bias = nn.Parameter(bias.data)  # another object over the same memory
    assert moved() == {}
    module["b"].bias = bias
    assert moved() == {}
    # One that was made by hand is told one by one.
    by_hand = strew.Layout({"w": strew.LayoutParameter(weight, [])})
    assert by_hand.moved() == {}
    weight.data = held.clone()
    assert by_hand.moved() == {"w": elsewhere}


@pytest.mark.parametrize("names", [["weight"], ["weight", "layer.bias"]])
def test_a_layout_that_is_not_complete(broker, names):
    """A tensor that is missing, or called otherwise: what it should fill is refused by name."""
    module = poisoned_twin(lambda: nn.Linear(4, 3))

    def load_weights(weights):
        module.load_state_dict(dict(weights), strict=False)
    layout = strew.record_layout(module, load_weights,
                                 {n: (F32, (3, 4) if n == "weight" else (3,)) for n in names})
    assert layout.status() == "raw 1, loader 0, refused 0, unproved; unfilled 1"
    for skip in (False, True):
        with strew.Agent("m", socket=broker.socket) as agent:
            with pytest.raises(strew.Refused, match="bias: the loader never wrote it") as caught:
                agent.register(layout, skip_refused=skip)
            assert list(caught.value.names) == ["bias"]
    layout.refused["other"] = "for the test"
    with strew.Agent("m", socket=broker.socket, partial=True) as agent:
        agent.register(layout, skip_refused=True)
        group, = broker.groups()
        assert group["refused"] == 1 and group["proof"] == "unproved", group


def test_derived_tensors_of_a_latent_attention(broker):
    described = {n: (F32, tuple(getattr(Latent(), n).shape)) for n in ("q", "kv_a", "kv_b", "o")}
    first, second = random_values(described), random_values(described)
    got, want = poisoned_twin(Latent), Latent()
    for module, values in ((got, first), (want, second)):
        module.load_weights(values.items())
        module.post_load()
    # The loader alone does not write what is derived: it is named, and refused by the proof.
    plain = strew.record_layout(got, got.load_weights, described)
    assert plain.unfilled == ["w_uk_t", "w_uv"] and not plain.refused
    plain = strew.record_layout(got, got.load_weights, described, prove=first)
    assert sorted(plain.refused) == ["w_uk_t", "w_uv"] and not plain.unfilled
    assert all("derives" in why for why in plain.refused.values())
    # With the post-load hook they are copies of boxes too, here.

    def load_weights(weights):
        got.load_weights(weights)
        got.post_load()
    layout = strew.record_layout(got, load_weights, described, prove=first)
    assert not layout.refused and not layout.unfilled and layout.proved
    assert publish(broker, second, [layout]).committed
    x = torch.randn(7, Latent.HIDDEN)
    assert torch.equal(got(x), want(x))


def test_derived_tensors_that_are_no_copies_are_found():
    described = {"weight": (F32, (4, 6))}
    module = nn.Linear(6, 4, bias=False)
    module.scale = nn.Parameter(torch.ones(4))

    def load_weights(weights):
        for _, tensor in weights:
            module.weight.data.copy_(tensor)
            module.scale.data.copy_(tensor.abs().amax(1))
    layout = strew.record_layout(module, load_weights, described)
    assert list(layout.refused) == ["scale"] and "abs" in layout.refused["scale"]


def test_plain_attributes_that_a_post_load_hook_makes():
    """As engines keep what they derive: filled if it is a copy, else refused; never unnoticed."""
    described = {"weight": (F32, (4, 6))}
    module = nn.Linear(6, 4, bias=False)
    module.transposed = module.weight.data.t().contiguous()
    module.norm = module.weight.data.norm()

    def load_weights(weights):
        module.load_state_dict(dict(weights))

    def with_hook(weights):
        load_weights(weights)
        module.transposed = module.weight.data.t().contiguous()
        module.norm = module.weight.data.norm()
        module.late = module.weight.data.flatten()
    kept = module.transposed
    layout = strew.record_layout(module, load_weights, described)
    assert layout.kept == ["transposed", "norm"] and list(layout.parameters) == ["weight"]
    layout = strew.record_layout(module, load_weights, described,
                                 prove={"weight": module.weight.detach().clone()})
    assert list(layout.refused) == ["transposed"] and layout.kept == ["norm"]
    layout = strew.record_layout(module, with_hook, described)
    assert sorted(layout.parameters) == ["transposed", "weight"] and not layout.kept
    assert sorted(layout.refused) == ["late", "norm"] and "norm" in layout.refused["norm"]
    assert module.transposed is kept and not hasattr(module, "late")
    assert not any(t.is_meta for t in vars(module).values() if isinstance(t, torch.Tensor))


class Views(nn.Module):
    """Plain attributes that are views of a parameter, and parameters between each other's rows."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(6, 2), requires_grad=False)
        self.q, self.v, self.col = self.qkv.data[:2], self.qkv.data[4:], self.qkv.data[:, 1:]
        self.turned = self.qkv.data.t()
        self.wide = self.qkv.data[:, :1].expand(6, 3)
        both = torch.zeros(4, 8)
        self.left, self.right = (nn.Parameter(one, requires_grad=False) for one in both.chunk(2, 1))

    def load_weights(self, weights):
        for name, tensor in weights:
            if name.isdigit():
                self.right.data[int(name)].copy_(tensor)
            else:
                getattr(self, name).data.copy_(tensor)


def test_views_of_parameters(broker):
    described = {"qkv": (F32, (6, 2)), "left": (F32, (4, 4)),
                 **{str(i): (F32, (4,)) for i in range(4)}}
    first, second = random_values(described), random_values(described)
    got, want = Views(), Views()
    got.load_weights(first.items())
    want.load_weights(second.items())
    layout = strew.record_layout(got, got.load_weights, described, prove=first)
    assert layout.refused == {"wide": "it has elements more than once"} and not layout.unused
    assert {name: len(one.pieces) for name, one in layout.parameters.items()} == {
        "left": 1, "qkv": 1, "right": 4}
    assert sorted(layout.views) == ["col", "q", "turned", "v"] and not layout.moved()
    assert [piece.tensor for piece in layout.parameters["right"].pieces] == list("0123")
    assert layout.parameters["left"].uncovered == layout.parameters["right"].uncovered == 0
    assert publish(broker, second, [layout], skip_refused=True).committed
    for name in (*layout.parameters, *layout.views):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    got.q = got.q.clone()
    assert list(layout.moved()) == ["q"]


def test_views_beside_a_loader_route():
    """What is filled with a parameter is none of the loader's; memory that is shared in part is
    refused."""
    values = random_values({"qkv": (F32, (6, 2)), "left": (F32, (4, 4))})
    module = Views()
    del module.wide

    def reload(weights):
        module.load_weights(weights)
        module.left.data.mul_(2)
    reload(values.items())
    layout = strew.record_layout(module, module.load_weights, values, prove=values, reload=reload)
    assert layout.loader == ["left"] and list(layout.parameters) == ["qkv"], layout.refused
    assert sorted(layout.views) == ["col", "q", "turned", "v"] and layout.unfilled == ["right"]
    whole = torch.zeros(6)
    both = nn.Module()
    both.a, both.b = whole[:4], whole[2:]
    layout = strew.record_layout(both, lambda weights: [whole.copy_(t) for _, t in weights],
                                 {"t": (F32, (6,))})
    assert list(layout.parameters) == ["a"] and "part of its memory with a" in layout.refused["b"]


class Outside(nn.Module):
    """What engines keep beside modules' own tensors: in helper objects, lists and dictionaries."""

    def __init__(self):
        super().__init__()
        self.kv = nn.Parameter(torch.zeros(4, 2), requires_grad=False)
        self.impl = types.SimpleNamespace(w_uk=torch.ones(2, 2))
        self.parts, self.again = [torch.ones(2, 2)], [torch.ones(1)]
        self.rows = {"x": torch.full((6,), 3.0), "deep": [[torch.full((2,), 3.0)]]}

    def load_weights(self, weights):
        for name, tensor in weights:
            if name == "kv":
                self.kv.data.copy_(tensor)
            elif name == "x":
                self.rows["x"].zero_()
                self.rows["x"][:4].copy_(tensor)
            else:
                self.rows["deep"][0][0].fill_(1).mul_(2).copy_(tensor)

    def hook(self):
        self.impl.w_uk = self.kv.data[:2].t().contiguous()
        self.impl.late = self.kv.data[:1].clone()
        self.parts[0] = self.kv.data[2:].clone()
        self.parts.append(self.kv.data[2:].clone())
        self.again = [self.kv.data * 2]

    def reload(self, weights):
        self.load_weights(weights)
        self.hook()

    def beside(self):
        return [self.impl.w_uk, *self.parts, *self.again, self.rows["x"], self.rows["deep"][0][0]]


@pytest.mark.parametrize("what", ["load_weights", "reload"])
def test_tensors_outside_of_modules(what):
    """They are named, not forgotten; they are the engine's own again, with what they had."""
    values = random_values({"kv": (F32, (4, 2)), "x": (F32, (4,)), "y": (F32, (2,))})
    module = Outside()
    before = module.beside()
    numbers = [t.clone() for t in before]
    layout = strew.record_layout(module, getattr(module, what), values)
    assert all(a is b and torch.equal(a, n) for a, b, n in zip(module.beside(), before, numbers))
    assert len(module.beside()) == len(before) and not hasattr(module.impl, "late")
    put = ["again.0", "impl.late", "impl.w_uk", "parts.0", "parts.1"] if what == "reload" else []
    assert sorted(layout.refused) == [*put, "rows.x", "what is made of y"]
    assert "outside" in layout.refused["rows.x"] and list(layout.parameters) == ["kv"]
    # An engine's own loader makes them again, from all that they are made of.
    module.reload(values.items())
    layout = strew.record_layout(module, getattr(module, what), values, prove=values,
                                 reload=module.reload)
    assert not layout.refused and set("xy") <= layout.reloader.feed.keys()
    assert not any(t.is_meta for t in module.beside())


def test_a_loader_that_fails_leaves_nothing_outside():
    module = Outside()
    before = module.beside()

    def load_weights(weights):
        module.reload(weights)
        raise RuntimeError("no more luck")
    with pytest.raises(strew.NotShareable, match="no more luck"):
        strew.record_layout(module, load_weights, {"kv": (F32, (4, 2)), "x": (F32, (4,))})
    assert all(a is b and not a.is_meta for a, b in zip(module.beside(), before))
    assert (module.rows["x"] == 3).all()


def test_scratch_memory_of_a_loader():
    """It may write there, keep it, and come back to it."""
    scratch, count = torch.zeros(3, 4), torch.zeros(1, dtype=torch.int64)

    def load(p, name, tensor):
        rows = torch.zeros(3, dtype=torch.int64)
        rows[1:] += torch.arange(1, 3)
        scratch.fill_(4)
        count.add_(1)
        p.data.copy_(tensor[rows])
    _, layout = one(load, (3, 4), {"t": (F32, (3, 4))})
    assert list(layout.parameters) == ["p"] and not layout.refused
    assert (scratch == 4).all() and count == 1  # by the loader itself: not by the recording


def test_threads_of_a_loader_are_not_trusted():
    """What another thread does is not seen: that refuses the parameter."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Thread

    def pool(p, name, tensor):
        with ThreadPoolExecutor(2) as threads:
            p.data.copy_(threads.submit(lambda: tensor.t().contiguous()).result())

    def thread(p, name, tensor):
        result = []
        one = Thread(target=lambda: result.append(tensor.t().contiguous()))
        one.start()
        one.join()
        p.data.copy_(result[0])
    played(pool, (6, 4), {"t": (F32, (4, 6))})
    _, layout = one(thread, (6, 4), {"t": (F32, (4, 6))})
    assert not layout.parameters and "not seen" in layout.refused["p"]


def test_tied_names_that_the_loader_puts_anew():
    """The module has its own memory by both names again, and none of the loader's stand-ins."""
    module = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embed"].weight

    def load_weights(weights):
        for _, tensor in weights:
            module["embed"].weight = nn.Parameter(tensor, requires_grad=False)
            module["head"].weight = module["embed"].weight

    own = module["embed"].weight
    layout = strew.record_layout(module, load_weights, {"weight": (torch.float32, (5, 3))})
    assert module["embed"].weight is own and module["head"].weight is own
    assert list(layout.parameters) == ["embed.weight"] and not layout.refused and not layout.moved()
    module["head"].weight = nn.Parameter(own.detach().clone())
    assert list(layout.moved()) == ["embed.weight"]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_an_expert_map(broker, size, plain):
    """Each rank has its experts, where the map says; the map is no weight, proved or not."""
    described = Experts.checkpoint()
    first, second = random_values(described), random_values(described)
    got, want, layouts = [], [], []
    for rank in range(size):
        want.append(Experts(rank, size, plain))
        want[-1].load_weights(second.items())
        got.append(poisoned_twin(lambda r=rank: Experts(r, size, plain)))
        got[-1].load_weights(first.items())
        layout = strew.record_layout(got[-1], got[-1].load_weights, described)
        assert not layout.refused and layout.kept == ["expert_map"]
        layouts.append(strew.record_layout(got[-1], got[-1].load_weights, described, prove=first))
        assert not layouts[-1].refused and layouts[-1].proved
        assert layouts[-1].kept == ["expert_map"] and not layouts[-1].unfilled
        assert layouts[-1].unused == [name for name in described if name != "router"
                                      and int(name.split(".")[0]) % size != rank]
    assert publish(broker, second, layouts).committed
    for rank in range(size):
        assert_filled(got[rank], want[rank], layouts[rank])
        assert all(p.uncovered == 0 for p in layouts[rank].parameters.values())
        assert same_bits(got[rank].expert_map, want[rank].expert_map)


@pytest.mark.parametrize("look", [
    lambda m, e: int(m.expert_map[e]),
    lambda m, e: m.expert_map.tolist()[e],
    lambda m, e: m.expert_map.cpu().numpy()[e],
    lambda m, e: m.expert_map.clone().tolist()[e],
    lambda m, e: [int(one) for one in m.expert_map][e],
    lambda m, e: m.expert_map[e].item() if (m.expert_map >= 0)[e] else -1,
    lambda m, e: m.expert_map.to(torch.int64)[e].item(),
])
def test_ways_to_look_at_an_expert_map(look):
    described = Experts.checkpoint()
    values = random_values(described)
    module = Experts(1, 2, plain=True)
    module.local = lambda e: look(module, e)
    module.load_weights(values.items())
    layout = strew.record_layout(module, module.load_weights, described, prove=values)
    assert not layout.refused and layout.kept == ["expert_map"], layout.refused


def test_a_map_that_is_an_index():
    """From local to global: the loader picks its experts out of a stack by it."""
    values = random_values({"w": (F32, (8, 3, 4))})
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros(4, 3, 4), requires_grad=False)
    module.mine = torch.tensor([1, 3, 4, 6])

    def load_weights(weights):
        for _, tensor in weights:
            module.w.data.copy_(tensor[module.mine])
    load_weights(values.items())
    layout = strew.record_layout(module, load_weights, values, prove=values)
    assert not layout.refused and layout.kept == ["mine"] and list(layout.parameters) == ["w"]


class Ordered(nn.Module):
    """Beside its weight it keeps something plain, which its loader looks at or not, and makes."""

    def __init__(self, kept, look, make):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(6, 4), requires_grad=False)
        self.register_buffer("more", torch.cat([kept.flatten(), kept.flatten()]))
        self.kept = self.more[:kept.numel()].view(kept.shape)
        self.look, self.make = look, make

    def load_weights(self, weights):
        for _, tensor in weights:
            if self.look:
                assert self.kept.flatten()[0].item() < 1e9
            self.w.data.copy_(tensor)
        self.make(self)


PACKED = torch.tensor([[7, -3], [2, 0]], dtype=torch.int32)


@pytest.mark.parametrize("kept, look, make, words", [
    # Derived by a hook that is not the loader's: nobody looks at it.
    (torch.arange(6).flip(0), False, lambda m: None, "derives it"),
    # By the loader, from what it has loaded: anew, in place, element by element.
    (torch.arange(6).flip(0), True, lambda m: setattr(m, "kept", m.w.data[:, 0].argsort()), "sort"),
    (torch.arange(6).flip(0), True, lambda m: m.kept.copy_(m.w.data[:, 0].argsort()), "sort"),
    (torch.arange(6).flip(0), True,
     lambda m: torch.add(m.w.data[:, 0].long(), 1, out=m.kept), "add"),
    (torch.arange(6).flip(0), True, lambda m: m.kept[2:].copy_(m.w.data.argmax(0)), "argmax"),
    # Written to by the loader, with whatever.
    (torch.arange(6).flip(0), True, lambda m: m.kept.add_(0), "never writes"),
    (torch.arange(6).flip(0), True, lambda m: m.kept[:1].copy_(torch.tensor([5])), "never writes"),
    # Looked at, but no indices: floats, packed weights, quantized ones.
    (torch.tensor([0.5, 2.0]), True, lambda m: None, "derives it"),
    (PACKED * 1000, True, lambda m: None, "derives it"),
    (PACKED, True, lambda m: None, "derives it"),
    (PACKED.to(torch.int8), True, lambda m: None, "derives it"),
    (PACKED > 1, True, lambda m: None, "derives it"),
    # What is changed as part of another tensor is changed.
    (torch.arange(6).flip(0), True, lambda m: m.more[:1].zero_(), "never writes"),
])
def test_integers_that_are_derived(kept, look, make, words):
    """They may be other ones with other weights, and so are refused as floats are."""
    values = random_values({"w": (F32, (6, 4))})
    module = Ordered(kept, look, make)
    module.w.data.copy_(values["w"])
    layout = strew.record_layout(module, module.load_weights, values, prove=values)
    assert set(layout.refused) <= {"kept", "more"}, layout.refused
    assert words in layout.refused["kept"] and list(layout.parameters) == ["w"]
    assert same_bits(module.kept.to(torch.float64), kept.to(torch.float64))
