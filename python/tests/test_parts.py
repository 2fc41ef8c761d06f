"""Tensors that are made one after another, and published as one version."""

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

torch = pytest.importorskip("torch")

from conftest import Broker  # noqa: E402
from test_package import follow, in_thread, whole  # noqa: E402

import strew  # noqa: E402
from loaders import in_threads, same_bits  # noqa: E402
from strew import _parts  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def draw_specs(count=12):
    """{name: (dtype, shape)}: of all sorts, empty and single elements among them."""
    specs = {f"t{i}": (random.choice(DTYPES),
                       tuple(random.randint(1, 40) for _ in range(random.randint(0, 3))))
             for i in range(count)}
    specs["empty"] = (torch.float32, (3, 0))
    return dict(random.sample(list(specs.items()), len(specs)))


def draw(dtype, shape):
    bits = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return bits.bool()[..., 0] if dtype == torch.bool else bits.view(dtype)[..., 0]


def draw_values(specs):
    return {name: draw(*spec) for name, spec in specs.items()}


class Engine:
    """An agent whose parameters are the whole tensors, poisoned."""

    def __init__(self, broker, specs, **options):
        self.targets = {name: strew.host_empty(shape, dtype)
                        for name, (dtype, shape) in specs.items() if 0 not in shape}
        self.before = {name: target.clone() for name, target in self.targets.items()}
        self.agent = strew.Agent("m", socket=broker.socket, **{"gate": "live", **options})
        for name, target in self.targets.items():
            self.agent.piece(self.agent.declare(name, target), whole(name, target))
        self.agent.register()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.agent.close()

    def has(self, values, version):
        assert self.agent.version == version
        for name, target in self.targets.items():
            assert same_bits(target.reshape(-1), values[name].reshape(-1)), name

    def untouched(self):
        self.has(self.before, 0)


def trainer_of(broker, specs, rank=0, size=1, **options):
    trainer = strew.Trainer("m", rank=rank, size=size, socket=broker.socket)
    trainer.declare_parts(specs, **options)
    return trainer


def total(specs):
    """The bytes of all tensors, as they lie in one area behind one another."""
    return sum(_parts._aligned(torch.empty(shape, dtype=dtype, device="meta").nbytes)
               for dtype, shape in specs.values())


@pytest.mark.parametrize("gate", ["held", "live"])
@pytest.mark.parametrize("apply", ["staged", "direct"])
def test_versions_arrive(broker, gate, apply):
    """Every bit, out of a third of the memory, or the largest tensor's; one is alive at a time."""
    specs = draw_specs(20)
    bound = max(total(specs) // 3, total({0: max(specs.values(), key=lambda s: total({0: s}))}))
    with Engine(broker, specs, gate=gate, apply=apply) as engine, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        taken = trainer.declare_parts(specs, buffer_bytes=bound)
        assert taken <= bound and trainer._parts.count >= 2
        for version in (1, 2, 5):
            values, alive = draw_values(specs), []

            def source():
                for name, value in values.items():
                    assert not any(made() is not None for made in alive), name
                    tensor = value.clone()
                    if tensor.is_floating_point():
                        tensor.requires_grad_()
                    alive.append(weakref.ref(tensor))
                    yield "module." + name, tensor
                    del tensor

            join = in_thread(follow, engine.agent, version) if gate == "held" else lambda: None
            report = trainer.publish(version, source=source())
            join()
            assert report.committed and report.version == version
            engine.has(values, version)


def test_views_and_arrays(broker):
    """What is yielded may be strided, NumPy's, or of another library's class."""
    values = {"a": torch.randn(6, 4), "b": torch.randn(5, 8), "c": torch.randn(3),
              "d": torch.randn(2)}
    with Engine(broker, {n: (v.dtype, tuple(v.shape)) for n, v in values.items()}) as engine, \
            trainer_of(broker, values) as trainer:
        trainer.publish(1, source=[
            ("a", values["a"].t().contiguous().t()), ("b", values["b"].repeat(1, 2)[:, :8]),
            ("c", values["c"].numpy()), ("d", torch.nn.Parameter(values["d"]))])
        engine.has(values, 1)


def test_without_torch(broker):
    """Plain NumPy, in a process that has not imported torch."""
    specs = {"a": (torch.float32, (50, 4)), "b": (torch.int64, (7,))}
    script = ("import numpy, strew, sys\n"
              "made = {'a': numpy.full((50, 4), 2.5, 'float32'), 'b': numpy.arange(7)}\n"
              "with strew.Trainer('m', rank=0, size=1, socket=sys.argv[1]) as trainer:\n"
              "    trainer.declare_parts(made, buffer_bytes=1024)\n"
              "    assert trainer.publish(1, source=made.items()).committed\n"
              "assert 'torch' not in sys.modules\n")
    with Engine(broker, specs) as engine:
        run = subprocess.run([sys.executable, "-c", script, broker.socket], timeout=120,
                             capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        engine.has({"a": torch.full((50, 4), 2.5), "b": torch.arange(7)}, 1)


def test_ways_to_declare(broker):
    """A module, meta tensors, tuples and a generator come to the same; 64 parts are no limit."""
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False))
    state = module.state_dict()
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    values = draw_values(specs)
    with Engine(broker, specs) as engine:
        for version, tensors in enumerate((
                module, state, specs, {n: ("float32", s) for n, (_, s) in specs.items()},
                ((n, torch.zeros(s)) for n, (_, s) in specs.items())), 1):
            with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
                assert trainer.declare_parts(tensors) == 3 * 256 and trainer._parts.count == 1
                trainer.publish(version, source=values.items())
            engine.has(values, version)
    specs = {f"{i}": (torch.float32, (random.randint(1, 300),)) for i in range(200)}
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        with pytest.raises(strew.InvalidArgument, match="64 parts") as refused:
            trainer.declare_parts(specs, buffer_bytes=max(total({0: s}) for s in specs.values()))
        needed = int(str(refused.value).split("at least ")[1].split(":")[0])
        assert total(specs) / 64 <= needed < total(specs) / 20
        assert trainer.declare_parts(specs, buffer_bytes=needed) <= needed
        assert trainer._parts.count <= 64
        values = draw_values(specs)
        with Engine(broker, specs) as engine:
            trainer.publish(9, source=values.items())
            engine.has(values, 9)


@pytest.mark.parametrize("sizes", [[256], [0, 512, 0], [256] * 70, [0, 0, 256, 1024, 256, 0]])
def test_cutting(sizes):
    for count in range(1, 5):
        limit = _parts.least(sizes, count)
        assert _parts.cut(sizes, limit)[-1] < count
        assert limit == max(sizes) or _parts.cut(sizes, limit - 1)[-1] >= count
        taken = [0] * count
        for size, part in zip(sizes, _parts.cut(sizes, limit)):
            taken[part] += size
        assert max(taken) <= limit


def test_what_cannot_be_declared(broker):
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        for tensors, words in (
                ({}, "there is no tensor"),
                ({"a": (torch.float32, (0, 4))}, "no tensor with elements"),
                ([("a", torch.zeros(2)), ("module.a", torch.zeros(2))], "a is declared twice"),
                ({"a": [1, 2]}, "tensor a: a list is neither"),
                ({"a": (torch.float32,)}, "tensor a: .dtype, shape. or"),
                ({"a": (torch.float32, (4, 4), (0,), (4, 4))}, "tensor a: a box"),
                ({"a": torch.zeros(1, 1, 1, 1, 1, 1, 1)}, "tensor a: a box .*at most 6"),
        ):
            with pytest.raises(strew.InvalidArgument, match=words):
                trainer.declare_parts(tensors)
        with pytest.raises(strew.NotShareable, match="tensor a: dtype .*complex64"):
            trainer.declare_parts({"a": torch.zeros(2, dtype=torch.complex64)})
        with pytest.raises(strew.InvalidArgument, match="at least 4096: tensor b alone needs that"):
            trainer.declare_parts({"a": torch.zeros(4), "b": torch.zeros(1024)}, buffer_bytes=4095)
        with pytest.raises(strew.InvalidArgument, match="publish: source= is for what"):
            trainer.publish(1, source=[])
        trainer.declare_parts({"a": torch.zeros(4)})
        for call in (lambda: trainer.declare_parts({"b": torch.zeros(4)}),
                     lambda: trainer.declare({"b": torch.zeros(4)}),
                     lambda: trainer.declare_box("b", torch.zeros(4), shape=(8,), start=(0,))):
            with pytest.raises(strew.InvalidArgument, match=r"declare_parts\(\) has declared"):
                call()
        with pytest.raises(strew.InvalidArgument, match="published with source="):
            trainer.publish(1)
        with pytest.raises(strew.InvalidArgument, match="no only="):
            trainer.publish(1, source=[], only=["a"])
        with pytest.raises(strew.InvalidArgument, match="versions? 0"):
            trainer.publish(0, source=[])
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"a": torch.zeros(4)})
        with pytest.raises(strew.InvalidArgument, match="other tensors are declared"):
            trainer.declare_parts({"b": torch.zeros(4)})


class Counting:
    """An iterable of those pairs that knows how far it was run through."""

    def __init__(self, pairs):
        self.pairs, self.taken, self.ended = list(pairs), 0, False

    def __iter__(self):
        for pair in self.pairs:
            self.taken += 1
            yield pair
        self.ended = True


SPECS = {name: (torch.float32, (8, 8)) for name in "abcdef"}


def spoilt(values):
    """(what comes, words of the sentence) for each way to get it wrong."""
    def but(**new):
        return [(name, new.get(name, value)) for name, value in values.items()]
    pairs = but()
    yield [*pairs[:3], ("x", torch.zeros(2)), *pairs[3:]], "tensor x was not declared"
    yield [*pairs[:4], pairs[1], *pairs[4:]], "tensor b comes twice"
    yield [*pairs, pairs[5]], "tensor f comes twice"
    yield [*pairs[:2], *pairs[3:]], "tensor d comes where c is due"
    yield pairs[1:], "tensor b comes where a is due"
    yield pairs[:4], r"ended without tensor e \(2 in all\)"
    yield [], r"ended without tensor a \(6 in all\)"
    yield but(d=values["d"].double()), "tensor d: torch.float64, declared was float32"
    yield but(d=values["d"].view(torch.int32).numpy()), "tensor d: int32, declared was float32"
    yield but(e=values["e"][:7]), r"tensor e: shape \(7, 8\), declared was \(8, 8\)"
    yield but(a=values["a"].flatten()), r"tensor a: shape \(64,\), declared was \(8, 8\)"
    yield but(f=3.5), "tensor f: a float is neither"


def test_bad_sources(broker):
    """Named, whatever has been put by then; nobody's memory changes, and the version can be put."""
    values = draw_values(SPECS)
    with Engine(broker, SPECS, apply="staged") as engine, \
            trainer_of(broker, SPECS, buffer_bytes=512) as trainer:
        assert trainer._parts.count == 3
        for pairs, words in spoilt(values):
            source = Counting(pairs)
            with pytest.raises(strew.InvalidArgument, match=words):
                trainer.publish(1, source=source)
            assert source.ended and source.taken == len(pairs)
        engine.untouched()
        assert trainer.publish(1, source=values.items()).committed
        engine.has(values, 1)
        with pytest.raises(strew.Error, match="version 1 is not above the committed") as refused:
            trainer.publish(1, source=(again := Counting(values.items())))
        assert refused.value.code == errno.ESTALE and again.ended
        with pytest.raises(strew.NotShareable, match="publish: tensor a: dtype .*complex64"):
            trainer.publish(2, source=[("a", values["a"].to(torch.complex64))])
        for source in ([("a",)], [3]):
            with pytest.raises((ValueError, TypeError)):
                trainer.publish(2, source=source)
        with pytest.raises(TypeError):
            trainer.publish(2, source=3)
        engine.has(values, 1)


def failing(values, at, failure):
    for i, pair in enumerate(values.items()):
        if i == at:
            raise failure
        yield pair


@pytest.mark.parametrize("failure", [RuntimeError("out\nof luck"), KeyboardInterrupt(),
                                     SystemExit(3)])
def test_a_source_that_fails(broker, failure):
    """It is raised as it is, at once; engines keep what they have, and the next version comes."""
    values = draw_values(SPECS)
    with Engine(broker, SPECS, apply="staged") as engine, \
            trainer_of(broker, SPECS, buffer_bytes=512) as trainer:
        for at in range(len(SPECS)):
            begin = time.monotonic()
            with pytest.raises(type(failure)) as raised:
                trainer.publish(1, source=failing(values, at, failure))
            assert raised.value is failure and time.monotonic() - begin < 10
            engine.untouched()
        assert trainer.publish(1, source=values.items()).committed
        engine.has(values, 1)
    if isinstance(failure, RuntimeError):
        assert "gave it up: RuntimeError: out of luck" in broker.log.read_text()


def test_ctrl_c(broker):
    """While the source works, and in a wait for another rank, which hears of it at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    specs = {name: (torch.float32, (8, 8), (4, 0), (4, 8)) for name in "abcd"}
    values = {name: torch.randn(4, 8) for name in "abcd"}
    ready = threading.Event()
    outcome = []

    def other():
        tops = {name: (torch.float32, (8, 8), (0, 0), (4, 8)) for name in "abcd"}
        with strew.Trainer("m", rank=0, size=2, socket=broker.socket) as first:
            first.declare_parts(tops, buffer_bytes=512)

            def source():
                for name in "ab":
                    yield name, values[name]
                ready.set()
                time.sleep(2)  # it is late, and the rank that waits for it is interrupted
                for name in "cd":
                    yield name, values[name]

            begin = time.monotonic()
            with pytest.raises(strew.NotCommitted) as failed:
                first.publish(1, source=source(), timeout=60)
            outcome.extend((str(failed.value), time.monotonic() - begin))

    with Engine(broker, {name: (torch.float32, (8, 8)) for name in "abcd"}, apply="staged") as \
            engine, strew.Trainer("m", rank=1, size=2, socket=broker.socket) as trainer:
        trainer.declare_parts(specs, buffer_bytes=512)
        join = in_thread(other)

        def interrupt():
            ready.wait(30)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

        stop = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.publish(1, source=values.items(), timeout=60)
        stop()
        join()
        assert "trainer rank 1 gave it up: KeyboardInterrupt" in outcome[0] and outcome[1] < 20
        engine.untouched()


def test_one_at_a_time(broker):
    """A publish inside another's source is Busy, and what it was given is run through."""
    values = draw_values(SPECS)
    with Engine(broker, SPECS) as engine, \
            trainer_of(broker, SPECS, buffer_bytes=512) as trainer:
        def source():
            for name, value in values.items():
                if name in "ad":
                    inner = Counting(values.items())
                    with pytest.raises(strew.Busy):
                        trainer.publish(2, source=inner)
                    assert inner.ended
                yield name, value
        assert trainer.publish(1, source=source()).committed
        engine.has(values, 1)


def rank_process(socket, pipe, names):
    """Rank 1: publishes version 1, then stops in the middle of version 2 for ever."""
    specs = {name: (torch.float32, (8, 8), (4, 0), (4, 8)) for name in names}
    with strew.Trainer("m", rank=1, size=2, socket=socket) as trainer:
        trainer.declare_parts(specs, buffer_bytes=512)
        trainer.publish(1, source=((name, torch.ones(4, 8)) for name in names))

        def source():
            for name in names[:3]:
                yield name, torch.ones(4, 8)
            pipe.send("putting")
            pipe.recv()

        trainer.publish(2, source=source())


def test_a_rank_that_dies(broker):
    """The others hear which, at once; a source that would wait for it is left alone; what engines
    hold stays whole."""
    names = "abcdef"
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    other = context.Process(target=rank_process, args=(broker.socket, theirs, names), daemon=True)
    other.start()
    specs = {name: (torch.float32, (8, 8), (0, 0), (4, 8)) for name in names}
    with Engine(broker, {name: (torch.float32, (8, 8)) for name in names}, apply="staged") as \
            engine, strew.Trainer("m", rank=0, size=2, socket=broker.socket, timeout=60) as trainer:
        trainer.declare_parts(specs, buffer_bytes=512)
        trainer.publish(1, source=((name, torch.ones(4, 8)) for name in names))
        ones = {name: torch.ones(8, 8) for name in names}
        engine.has(ones, 1)

        def source():
            for name in names:
                if name == "d":
                    assert pipe.recv() == "putting"
                    os.kill(other.pid, signal.SIGKILL)
                    other.join(20)
                yield name, torch.zeros(4, 8)

        pairs = Counting(())
        pairs.pairs = source()
        begin = time.monotonic()
        with pytest.raises(strew.NotCommitted, match="trainer rank 1 was lost") as failed:
            trainer.publish(2, source=pairs, timeout=60)
        assert time.monotonic() - begin < 20
        assert failed.value.report.outcome == "aborted" and not pairs.ended
        engine.has(ones, 1)


def test_a_source_that_fails_while_it_is_run_through(broker):
    """What is told is why that was, not what came of it."""
    def source():
        yield "nobody", torch.zeros(1)
        raise RuntimeError("a collective has failed")

    with trainer_of(broker, SPECS) as trainer:
        with pytest.raises(strew.InvalidArgument, match="nobody was not declared"):
            trainer.publish(1, source=source())


@pytest.mark.parametrize("buffer_bytes", [768, 1536])
def test_ranks_with_boxes(broker, buffer_bytes):
    """Rows of two ranks, tensors and whole parts of one alone; both run through one source that
    they make together, a tensor at a time, and neither waits for the other in a circle."""
    names = [f"t{i}" for i in range(20)]
    rows = {name: random.randint(9, 12) for name in names}  # 768 bytes each, padded
    cuts = {name: random.choice((0, rows[name], random.randint(0, rows[name]))) for name in names}
    cuts.update({f"t{i}": 0 for i in range(3, 8)})
    cuts.update({f"t{i}": rows[f"t{i}"] for i in range(11, 16)})
    specs = {name: (torch.float32, (rows[name], 16)) for name in names}
    together = threading.Barrier(2)  # a collective
    values = {}

    def rank(number):
        boxes = {}
        for name in names:
            start = cuts[name] if number else 0
            length = rows[name] - cuts[name] if number else cuts[name]
            boxes[name] = (torch.float32, (rows[name], 16), (start, 0), (length, 16))
        with strew.Trainer("m", rank=number, size=2, socket=broker.socket) as trainer:
            assert 0 < trainer.declare_parts(boxes, buffer_bytes=buffer_bytes) <= buffer_bytes
            assert trainer._parts.count == len(names) * 768 // buffer_bytes
            for version in (1, 2):
                def source():
                    for name in names:
                        together.wait(20)
                        start, length = boxes[name][2][0], boxes[name][3][0]
                        yield name, values[version][name][start:start + length]

                assert trainer.publish(version, source=source(), timeout=30).committed
                together.wait(20)

    with Engine(broker, specs, apply="staged") as engine:
        for version in (1, 2):
            values[version] = draw_values(specs)
        in_threads([lambda: rank(0), lambda: rank(1)])
        engine.has(values[2], 2)


def test_a_broker_that_dies(tmp_path):
    """Not left waiting; the next broker gets the same declaration, and the version."""
    values = draw_values(SPECS)
    broker = Broker(tmp_path)
    with Engine(broker, SPECS, apply="staged") as engine, \
            trainer_of(broker, SPECS, buffer_bytes=512) as trainer:
        def source():
            for name, value in values.items():
                if name == "d":
                    broker.process.kill()
                    broker.process.wait()
                yield name, value

        pairs = Counting(())
        pairs.pairs = source()
        with pytest.raises(strew.BrokerLost):
            trainer.publish(1, source=pairs)
        assert pairs.ended
        broker = Broker(tmp_path)
        in_threads([engine.agent.reconnect, trainer.reconnect])
        assert trainer.publish(1, source=values.items()).committed
        engine.has(values, 1)
    broker.stop()


class Stream:
    """Stands for one of torch's; knows for which others it waits."""

    def __init__(self, address):
        self.cuda_stream, self.waits = address, []

    def wait_stream(self, other):
        self.waits.append(other)


class OnAGpu(torch.Tensor):
    """A host tensor that says it is on one."""

    is_cuda = True


def test_streams(broker, monkeypatch):
    """A source may change streams: each copy is behind the one before, the put behind the last."""
    streams = [Stream(0x100), Stream(0x200)]
    current, puts = [streams[0]], []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[0])
    with Engine(broker, SPECS) as engine, \
            trainer_of(broker, SPECS, buffer_bytes=512) as trainer:
        for slot in trainer._parts._slots:
            slot.view = slot.view.as_subclass(OnAGpu)
        call = trainer._handle.call

        def spy(function, *arguments):
            if function is _parts.lib.strew_trainer_put:
                puts.append(arguments)
                arguments = arguments[:1] + (None,)  # for this memory has no stream
            return call(function, *arguments)

        monkeypatch.setattr(trainer._handle, "call", spy)
        values = draw_values(SPECS)

        def source():
            for name, value in values.items():
                current[0] = streams[name in "bcf"]
                yield name, value

        assert trainer.publish(1, source=source()).committed
        engine.has(values, 1)
    assert puts == [(1, 0x200), (2, 0x100), (3, 0x200)]
    assert streams[1].waits == [streams[0], streams[0]] and streams[0].waits == [streams[1]]


def test_ctrl_c_while_other_ranks_are_awaited(broker):
    """Before anything is open: the parts are named once, whoever was interrupted in that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    boxes = [{name: (torch.float32, (8, 8), (start, 0), (4, 8)) for name in SPECS}
             for start in (0, 4)]
    values = draw_values(SPECS)
    rows = [[(name, value[start:start + 4]) for name, value in values.items()] for start in (0, 4)]
    with Engine(broker, SPECS) as engine, \
            strew.Trainer("m", rank=0, size=2, socket=broker.socket) as first, \
            strew.Trainer("m", rank=1, size=2, socket=broker.socket) as second:
        for trainer, box in zip((first, second), boxes):
            trainer.declare_parts(box, buffer_bytes=512)
        in_threads([first.seal, second.seal])
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            first.publish(1, source=rows[0])
        join = in_thread(lambda: second.publish(1, source=rows[1]))
        first._handle.settle(20)
        call, = first._handle._outcomes.values()
        assert call.result() == 1
        first.publish(1, source=rows[0])
        join()
        assert first._parts._subsets == second._parts._subsets == [1, 2, 3]
        engine.has(values, 1)
