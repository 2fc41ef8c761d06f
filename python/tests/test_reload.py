"""The loader route: what an engine derives or repacks is right after an update, or is refused."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import strew  # noqa: E402
from loaders import Latent, in_threads, poisoned_twin, random_values, same_bits, to_host  # noqa: E402

F32 = torch.float32
NAMES = ("q", "kv_a", "kv_b", "o")


class Absorbed(Latent):
    """The same, as engines have it: derived anew each time, computed, and one matrix repacked."""

    def post_load(self):
        both = self.kv_b.data.view(self.HEADS, self.NOPE + self.VALUE, self.RANK)
        # New memory each time, as engines do it: one parameter, one plain tensor.
        self.w_uk_t = nn.Parameter(both[:, : self.NOPE] * 0.125, requires_grad=False)
        self.values = both[:, self.NOPE:].transpose(1, 2).contiguous()
        self.w_uv.data.copy_(self.values)
        self.o.data.copy_(self.o.data.flip(0))
        self.steps = torch.zeros(3)

    def reload(self, weights):
        self.load_weights(weights)
        self.post_load()


def loaded(make, values):
    module = make()
    module.load_weights(iter(values.items()))
    module.post_load()
    return module


def in_host_memory(module):
    return poisoned_twin(lambda: module)


def described_by(make):
    module = make()
    return {name: (F32, tuple(getattr(module, name).shape)) for name in NAMES}


def engine(values, make=Absorbed):
    """In memory that a broker can map; its derived tensors stay torch's own."""
    module = in_host_memory(make())
    module.load_weights(iter(values.items()))
    module.post_load()
    return module


def test_an_absorbed_latent_attention(broker):
    described = described_by(Absorbed)
    versions = [random_values(described) for _ in range(4)]
    got = engine(versions[0])
    # Without the hook the proof finds all four, whatever the loader wrote, and a plain tensor too.
    plain = strew.record_layout(got, got.load_weights, described, prove=versions[0])
    assert sorted(plain.refused) == ["o", "values", "w_uk_t", "w_uv"] and plain.kept == ["steps"]
    unproved = strew.record_layout(got, got.load_weights, described)
    assert unproved.status() == "raw 4, loader 0, refused 0, unproved; unfilled 2, kept 2"
    state = {n: (t, t.data_ptr(), t.detach().clone()) for n, t in
             [*got.named_parameters(), ("values", got.values)]}
    layout = strew.record_layout(got, got.load_weights, described, prove=versions[0],
                                 reload=got.reload)
    assert layout.loader == ["o", "values", "w_uk_t", "w_uv"] and not layout.refused
    assert layout.status() == "raw 3, loader 4, refused 0, proved; kept 1"
    assert list(layout.reloader.feed) == ["o"]  # all else is derived from what is written raw

    def unchanged_addresses():
        now = {**dict(got.named_parameters()), "values": got.values}
        return all(now[n] is t and t.data_ptr() == at for n, (t, at, _) in state.items())
    assert unchanged_addresses()  # and the rehearsal has left the values
    assert all(same_bits(t.detach(), was) for t, _, was in state.values())
    x = torch.randn(7, Latent.HIDDEN)
    sources = to_host(versions[0])
    with strew.Agent("m", socket=broker.socket) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        agent.register(layout)
        group, = broker.groups()
        assert group["raw"] + group["pull"] == 3 and group["loader"] == 4, group
        assert group["refused"] == 0 and group["proof"] == "proved", group
        trainer.declare(sources)
        for version, only in ((1, ["kv_b", "q"]), (2, None), (3, ["o"])):
            held = {n: t.clone() for n, t in sources.items()}
            for name in only or NAMES:
                held[name] = versions[version][name]
                sources[name].copy_(held[name])

            def follow(version=version):
                with agent.paused(timeout=20):
                    agent.wait_version(version, timeout=20)
            in_threads([follow, lambda v=version, o=only: trainer.publish(v, only=o)])
            want = loaded(Absorbed, held)
            assert unchanged_addresses() and torch.equal(got(x), want(x)), version
            assert all(same_bits(getattr(got, n).data, getattr(want, n).data)
                       for n in (*NAMES, "w_uk_t", "w_uv", "values")), version


class Broken(Absorbed):
    """Its loader fails, or moves what it must not, when told so."""

    how = ""

    def post_load(self):
        super().post_load()
        if self.how == "raises":
            raise RuntimeError("no more luck")
        if self.how == "another shape":
            self.w_uk_t = nn.Parameter(torch.zeros(2, 3))
        if self.how == "gone":
            del self.values


@pytest.mark.parametrize("how, words", [("raises", "no more luck"), ("gone", "values is gone"),
                                        ("another shape", r"w_uk_t is torch.float32 of shape \(2")])
def test_a_loader_that_fails(broker, how, words):
    described = described_by(Broken)
    first, second = random_values(described), random_values(described)
    got = engine(first, Broken)
    addresses = {n: t.data_ptr() for n, t in got.named_parameters()}
    layout = strew.record_layout(got, got.load_weights, described, prove=first, reload=got.reload)
    with strew.Agent("m", socket=broker.socket) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        agent.register(layout)
        trainer.declare(to_host(second))
        got.how = how
        running = trainer.publish_async(1)
        with pytest.raises(strew.LoaderFailed, match=words):
            with agent.paused(timeout=20):
                agent.wait_version(1, timeout=20)
        assert running.report(20).committed
        assert {n: t.data_ptr() for n, t in got.named_parameters()} == addresses
        with pytest.raises(strew.LoaderFailed, match=words):
            agent.resume(20)
        got.how = ""
        agent.resume(20)
        x = torch.randn(5, Latent.HIDDEN)
        assert torch.equal(got(x), loaded(Broken, second)(x))


@pytest.mark.parametrize("reason", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_the_loader(broker, monkeypatch, reason):
    """Parameters are at their addresses again; the next resume() loads what was cut short."""
    described = described_by(Broken)
    first, second = random_values(described), random_values(described)
    got = engine(first, Broken)
    before = {n: (t, t.data_ptr()) for n, t in [*got.named_parameters(), ("values", got.values)]}
    layout = strew.record_layout(got, got.load_weights, described, prove=first, reload=got.reload)

    def post_load():
        Absorbed.post_load(got)
        raise reason
    with strew.Agent("m", socket=broker.socket) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        agent.register(layout)
        trainer.declare(to_host(second))
        running = trainer.publish_async(1)
        monkeypatch.setattr(got, "post_load", post_load)
        with pytest.raises(reason):
            with agent.paused(timeout=20):
                agent.wait_version(1, timeout=20)
        assert running.report(20).committed
        monkeypatch.undo()
        now = {**dict(got.named_parameters()), "values": got.values}
        assert all(now[n] is t and t.data_ptr() == at for n, (t, at) in before.items())
        agent.resume(20)
        x = torch.randn(5, Latent.HIDDEN)
        assert torch.equal(got(x), loaded(Broken, second)(x))


def test_memory_that_runs_out_behind_the_loader(monkeypatch):
    """While what it has made is put back: LoaderFailed says so, and addresses stay."""
    described = described_by(Absorbed)
    values = random_values(described)
    got = engine(values)
    before = {n: (t, t.data_ptr()) for n, t in [*got.named_parameters(), ("values", got.values)]}
    layout = strew.record_layout(got, got.load_weights, described, prove=values, reload=got.reload)

    def now(_):
        raise torch.OutOfMemoryError("no more of it")
    monkeypatch.setattr("strew._slots.Slot.now", now)
    with pytest.raises(strew.LoaderFailed, match="OutOfMemoryError: no more of it"):
        layout.reloader.run()
    now = {**dict(got.named_parameters()), "values": got.values}
    assert all(now[n] is t and t.data_ptr() == at for n, (t, at) in before.items())


class Spoilt(Absorbed):
    """Its hook works once only, or changes what is written raw, or forgets something."""

    how, times = "", 0

    def post_load(self):
        super().post_load()
        Spoilt.times += 1
        if self.how == "once":
            self.w_uv.data.add_(Spoilt.times)
        if self.how == "raw":
            self.q.data.mul_(0.5)
        if self.how == "raises":
            raise RuntimeError("not again")

    def reload(self, weights):
        if self.how == "nothing":
            return
        self.load_weights(weights)
        self.post_load()


@pytest.mark.parametrize("how, refused, words", [
    ("once", ["w_uv"], "does not give the values"),
    ("nothing", ["o", "w_uk_t", "w_uv"], "leaves it as it is"),
    ("raw", ["o", "values", "w_uk_t", "w_uv"], "changes q"),
    ("raises", ["o", "values", "w_uk_t", "w_uv"], "not again")])
def test_the_rehearsal_finds_loaders_that_do_not_do(how, refused, words):
    described = described_by(Spoilt)
    values = random_values(described)
    got = engine(values, Spoilt)
    Spoilt.times, got.how = 1, how
    before = {n: (t, t.detach().clone()) for n, t in got.named_parameters()}
    layout = strew.record_layout(got, got.load_weights, described, prove=values, reload=got.reload)
    assert sorted(layout.refused) == refused
    assert words in layout.refused[refused[0]]
    for name, tensor in got.named_parameters():
        assert tensor is before[name][0] and same_bits(tensor.detach(), before[name][1]), name


def test_a_computed_parameter_by_the_loader():
    """What the loader itself computes: its tensors alone are fed."""
    described = {"weight": (F32, (4, 6)), "other": (F32, (3,))}
    values = random_values(described)
    module = nn.Linear(6, 4, bias=False)
    module.scale = nn.Parameter(torch.ones(4), requires_grad=False)
    module.extra = nn.Parameter(torch.ones(3), requires_grad=False)

    def load_weights(weights):
        for name, tensor in weights:
            if name == "other":
                module.extra.data.copy_(tensor)
            else:
                module.weight.data.copy_(tensor)
                module.scale.data.copy_(tensor.abs().amax(1))
    load_weights(values.items())
    layout = strew.record_layout(module, load_weights, described, prove=values,
                                 reload=load_weights)
    assert layout.loader == ["scale"] and sorted(layout.parameters) == ["extra", "weight"]
    assert list(layout.reloader.feed) == ["weight"]


def test_tied_names_keep_their_address():
    """What the loader makes anew and ties again lies where it lay, by every name."""
    described = {"weight": (F32, (4, 6))}
    values = random_values(described)
    module = nn.ModuleDict({"a": nn.Linear(6, 4, bias=False), "b": nn.Linear(4, 6, bias=False)})

    def load_weights(weights):
        for _, tensor in weights:
            module["a"].weight.data.copy_(tensor)
            module["b"].weight = nn.Parameter(tensor.t() * 0.5, requires_grad=False)
            module["b"].twin = module["b"].weight
    load_weights(values.items())
    own, at = module["b"].weight, module["b"].weight.data_ptr()
    layout = strew.record_layout(module, load_weights, described, prove=values,
                                 reload=load_weights)
    assert layout.loader == ["b.weight"] and not layout.refused
    layout.reloader.feed["weight"].mul_(3)
    layout.reloader.run()
    assert module["b"].weight is own and module["b"].twin is own and own.data_ptr() == at
    assert torch.equal(own.data, values["weight"].t() * 3 * 0.5)


def test_a_hook_that_transposes_in_place():
    """Its parameter lies in memory as captured graphs know it, behind the rehearsal and a load."""
    described = {name: (F32, (4, 4)) for name in ("w", "s")}
    values = random_values(described)
    module = nn.Module()
    for name in described:
        setattr(module, name, nn.Parameter(torch.zeros(4, 4), requires_grad=False))

    def load_weights(weights):
        for name, tensor in weights:
            getattr(module, name).data.copy_(tensor)

    def reload(weights):
        load_weights(weights)
        module.w.data = module.w.data.t()
        module.s.data.mul_(2)
    reload(values.items())
    before = {name: (p.stride(), p.data_ptr(), p.detach().clone())
              for name, p in module.named_parameters()}
    layout = strew.record_layout(module, reload, values, prove=values, reload=reload)
    assert list(layout.parameters) == ["w"] and layout.loader == ["s"] and not layout.refused
    for _ in range(2):
        for name, p in module.named_parameters():
            stride, address, was = before[name]
            assert p.stride() == stride and p.data_ptr() == address and torch.equal(p, was), name
        layout.reloader.run()


def test_ctrl_c_in_the_rehearsal():
    """The engine has its own memory with its own values again."""
    described = described_by(Absorbed)
    values = random_values(described)
    got = engine(values)
    before = {n: (t, t.detach().clone()) for n, t in got.named_parameters()}

    def reload(weights):
        got.reload(weights)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        strew.record_layout(got, got.load_weights, described, prove=values, reload=reload)
    for name, tensor in got.named_parameters():
        assert tensor is before[name][0] and same_bits(tensor.detach(), before[name][1]), name


def test_what_the_loader_route_needs(broker):
    described = described_by(Absorbed)
    values = random_values(described)
    got = engine(values)
    with pytest.raises(strew.InvalidArgument, match="needs prove"):
        strew.record_layout(got, got.load_weights, described, reload=got.reload)
    layout = strew.record_layout(got, got.load_weights, described, prove=values, reload=got.reload)
    with strew.Agent("m", gate="live", socket=broker.socket) as agent:
        with pytest.raises(strew.InvalidArgument, match="held gate"):
            agent.register(layout)
    got.w_uv.data = got.w_uv.data.clone()
    assert list(layout.moved()) == ["w_uv"]
