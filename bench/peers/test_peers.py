"""Tests of what in the comparison needs no PyTorch: shapes, placement, children, rounds, table."""

import copy
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import time
from types import SimpleNamespace
from unittest import mock

import children
import compare
import place
import shapes
import strew_bench
import table
import world
from scene import CONFIG, DENSE, RANDOM, main, raises

MODELS = pathlib.Path(__file__).resolve().parent.parent / "models"


def loaded(model, rank):
    """A rank's parameters, as lists, after the loader's views and slices: (tensor, element) each,
    by walking both sides of every piece in Python."""
    own = model.ranks[rank]
    filled = [[None] * parameter.numel for parameter in own.parameters]
    for piece in own.pieces:
        tensor = model.tensors[piece.tensor]
        size, stride = piece.view
        for at in itertools.product(*map(range, size)):
            source = 0
            for axis, part in enumerate(piece.slices):
                source = source * tensor.shape[axis] + part.start + at[axis]
            to = piece.offset + sum(a * s for a, s in zip(at, stride))
            assert filled[piece.parameter][to] is None, "two pieces fill one element"
            filled[piece.parameter][to] = (tensor.name, source)
    return {parameter.name: values for parameter, values in zip(own.parameters, filled)}


def matrix(name, rows, cols):
    return [[(name, r * cols + c) for c in range(cols)] for r in range(rows)]


def flat(*matrices):
    return [value for one in matrices for row in one for value in row]


def part(rows, rank, size):
    step = len(rows) // size
    return rows[rank * step:(rank + 1) * step]


def columns(rows, rank, size):
    return [part(row, rank, size) for row in rows]


def test_models(scene):
    """The models of the bench: every element of every parameter is filled, none twice."""
    for name, tp in (("qwen2.5-0.5b", 2), ("llama-3.1-8b", 4), ("qwen3-30b-a3b", 2)):
        model = shapes.parse(shapes.load(scene.bin, MODELS / f"{name}.json", 1, tp))
        assert len(model.ranks) == tp and model.payload_bytes > 1e8
        for rank in model.ranks:
            count = [0] * len(rank.parameters)
            for piece in rank.pieces:
                count[piece.parameter] += piece.numel
            assert count == [parameter.numel for parameter in rank.parameters]
            ends = [(p.offset, p.offset + p.nbytes) for p in rank.parameters]
            assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:])) and ends[0][0] == 0
            assert ends[-1][1] <= rank.memory_bytes


def test_loaders_copies(scene):
    """What the pieces fill is what tensor-parallel layers hold, cut here from the config alone."""
    for config, size in ((CONFIG, 1), (CONFIG, 2), (DENSE, 2), (CONFIG, 4)):
        model = scene.shapes(config, size)
        hidden, head = config["hidden_size"], config["head_dim"]
        for rank in range(size):
            got, layer = loaded(model, rank), "model.layers.1."
            for kind, cols in (("weight", hidden), ("bias", 1)):
                name = f"{layer}self_attn.qkv_proj.{kind}"
                if name not in got:
                    assert kind == "bias" and config is CONFIG
                    continue
                q, k, v = (matrix(f"{layer}self_attn.{x}_proj.{kind}", rows, cols)
                           for x, rows in (("q", 8 * head), ("k", 2 * head), ("v", 2 * head)))
                at = rank * 2 // size if size > 2 else rank
                cut = 2 if size > 2 else size
                assert got[name] == flat(part(q, rank, size), part(k, at, cut), part(v, at, cut))
            o = matrix(f"{layer}self_attn.o_proj.weight", hidden, 8 * head)
            assert got[f"{layer}self_attn.o_proj.weight"] == flat(columns(o, rank, size))
            embed = matrix("model.embed_tokens.weight", 40, hidden)
            assert got["model.embed_tokens.weight"] == flat(part(embed, rank, size))
            assert got["model.norm.weight"] == flat(matrix("model.norm.weight", 1, hidden))
            if config is CONFIG:
                names = [f"{layer}mlp.experts.{e}." for e in range(4)]
                w13 = [matrix(f"{n}{x}_proj.weight", 8, hidden) for n in names
                       for x in ("gate", "up")]
                assert got[f"{layer}mlp.experts.w13_weight"] == flat(
                    *(part(one, rank, size) for one in w13))
                w2 = [matrix(f"{n}down_proj.weight", hidden, 8) for n in names]
                assert got[f"{layer}mlp.experts.w2_weight"] == flat(
                    *(columns(one, rank, size) for one in w2))
            # The address arithmetic that verifies on the GPU says the same.
            own = model.ranks[rank]
            for piece in own.pieces:
                tensor = model.tensors[piece.tensor]
                values = got[own.parameters[piece.parameter].name]
                for index in range(piece.numel):
                    source, to = piece.expected_at(tensor, index)
                    assert values[to] == (tensor.name, source)


def test_refused_shapes(scene):
    good = json.loads(shapes.load(scene.bin, scene.config(CONFIG), 1, 2))
    shapes.parse(json.dumps(good))

    def broken(change, has):
        bad = copy.deepcopy(good)
        change(bad)
        raises(shapes.ShapesError, shapes.parse, json.dumps(bad), has=has)

    def piece(**fields):
        return lambda bad: bad["ranks"][1]["pieces"][0].update(fields)

    broken(lambda bad: bad.pop("ranks"), "not the shapes")
    broken(lambda bad: bad.update(tensors=[]), "do not exist")
    broken(lambda bad: bad.update(ranks=[]), "no ranks")
    broken(lambda bad: bad["tensors"][1].update(name=bad["tensors"][0]["name"]), "one name")
    broken(lambda bad: bad["tensors"][0].update(dtype="bf17"), "bf17")
    broken(lambda bad: bad["tensors"][0].update(dtype="f32"), "f32")
    broken(lambda bad: bad["tensors"][0].update(shape=[0, 4]), "shape")
    broken(piece(tensor=10 ** 6), "do not exist")
    broken(piece(start=[21, 0]), "leaves model.embed_tokens.weight")
    broken(piece(start=[-1, 0]), "start")
    broken(piece(extent=[20]), "leaves")
    broken(piece(offset=1), "leaves")
    broken(piece(row_stride=31), "overlap")
    broken(piece(row_stride=True), "row_stride")
    raises(shapes.ShapesError, shapes.parse, "{", has="not the shapes")
    raises(shapes.ShapesError, shapes.load, scene.bin, scene.dir / "none.json", 0, 2, has="none")
    raises(shapes.ShapesError, shapes.load, scene.dir, "x", 0, 2, has="strew-bench")


def test_buckets(_scene):
    for _ in range(200):
        sizes = [RANDOM.randrange(1, 100) for _ in range(RANDOM.randrange(0, 40))]
        limit = RANDOM.randrange(1, 300)
        made = shapes.buckets(sizes, limit)
        assert [n for one in made for n in one] == list(range(len(sizes)))
        for i, one in enumerate(made):
            total = sum(sizes[n] for n in one)
            assert one and total - sizes[one[-1]] <= limit
            assert total > limit or i == len(made) - 1


def test_places(_scene):
    for gpus, tp in itertools.product(range(1, 10), range(1, 9)):
        where = place.place(gpus, tp, servers=True)
        by_name = {p.name: p for p in where.processes}
        assert len(by_name) == len(where.processes)
        assert [by_name[f"worker{r}"].index for r in range(tp)] == list(range(tp))
        for members in where.groups.values():
            assert members[0] == "trainer" and len(members) > 1
            # What NCCL refuses: one host's two ranks on one GPU.
            held = [(by_name[n].host_id, by_name[n].gpu) for n in members]
            assert len(set(held)) == len(held), (gpus, tp, held)
        # Every worker is fed once by each way.
        direct = where.groups["workers"][1:] + list(where.colocated)
        assert sorted(direct) == sorted(p.name for p in where.of("worker"))
        fed = [n for p in where.of("receiver") for n in where.fed_by(p)]
        assert sorted(fed) == sorted(direct)
        served = [n for p in where.of("server") for n in where.loader(p.gpu)[1]]
        assert sorted(served) == sorted(direct)
        assert all(by_name[n].gpu == 0 for n in where.colocated)
        assert len({p.gpu for p in where.of("receiver")}) == len(where.of("receiver"))
        if gpus > tp:
            assert not any(p.host_id for p in where.processes) and not where.colocated
        assert ("sockets" in where.note) == any(p.host_id for p in where.of("worker"))
    assert "NCCL_HOSTID" not in children.environment(place.place(3, 2).named("worker0")) or (
        "NCCL_HOSTID" in os.environ)
    env = children.environment(place.place(1, 2).named("worker0"))
    assert env["NCCL_HOSTID"] == "strew-peers-worker0"
    with mock.patch.dict(os.environ, NCCL_SOCKET_IFNAME="eth7", NCCL_ALGO="Ring"):
        env = children.environment(place.place(1, 2).named("worker0"))
        assert env["NCCL_SOCKET_IFNAME"] == "eth7" and env["NCCL_ALGO"] == "Ring"


def test_rows(_scene):
    a, b, c = (table.Row(n, [RANDOM.uniform(1, 9) for _ in range(5)]) for n in "abc")
    c.failed = "x"
    c.seconds = [0.1]
    least = min(statistics.median(a.seconds), statistics.median(b.seconds))
    assert table.best([a, b, c]).median == least
    assert table.best([c, table.Row("d")]) is None
    assert [table.seconds_text(s) for s in (2e-6, 0.25, 3)] == ["2.0 us", "250.000 ms", "3.000 s"]
    assert [table.bytes_text(n) for n in (7, 1 << 26, 3 << 30)] == ["7 B", "64 MiB", "3 GiB"]


def test_table_and_json(_scene):
    rows = [table.Row("strew", [2.0, 1.0, 4.0], own_raw=[1.0], bytes=3 * 10 ** 9),
            table.Row("packed", [4.0, 8.0, 5.0], verified_bytes=1 << 20),
            table.Row("tensor", [1.0], failed="NCCL said no"),
            table.Row("checkpoint-engine", absent="not importable")]
    raws = [table.Row("raw 64", [3.0, 3.0, 3.0]), table.Row("raw 256", [1.0, 1.5, 2.0])]
    result = json.loads(json.dumps(table.report({"torch": "2.11"}, rows, raws, 10 ** 9)))
    by_name = {one["name"]: one for one in result["figures"]}
    assert list(by_name) == ["raw 64", "raw 256", "strew", "packed", "tensor", "checkpoint-engine"]
    packed = by_name["packed"]
    assert packed["time"] == {"unit": "s", "median": 5, "min": 4, "max": 8, "samples": [4, 8, 5]}
    assert packed["times_strew"] == 2.5 and packed["ratio"] == 0.3 and packed["gb_per_s"] == 0.2
    assert packed["raw_name"] == "raw 256" and packed["verified_bytes"] == 1 << 20
    strew = by_name["strew"]
    assert strew["ratio"] == 0.75 and strew["own_ratio"] == 0.5 and strew["gb_per_s"] == 1.5
    assert by_name["tensor"] == {"name": "tensor", "failed": "NCCL said no"}
    assert by_name["checkpoint-engine"] == {"name": "checkpoint-engine", "absent": "not importable"}
    lines = table.text(result).splitlines()
    assert any(line.split()[:2] == ["tensor", "failed:"] for line in lines)
    assert any(line.endswith("not importable") for line in lines)
    line = next(line for line in lines if line.startswith("packed"))
    assert line.split() == ["packed", "5.000", "s", "4.000", "s..8.000", "s", "0.20", "2.50",
                            "0.300", "1", "MiB"]
    # Without strew and without raw there are figures, and no ratios.
    result = table.report({}, [table.Row("packed", [1.0])], [table.Row("raw", failed="x")], 5)
    assert "ratio" not in result["figures"][1] and "times_strew" not in result["figures"][1]
    table.text(result)


def test_strews_program(scene):
    def options(**more):
        return SimpleNamespace(**{**dict(bin=scene.dir, model="m.json", tp=2, path="wire", layers=3,
                                         samples=5, strew_options="--seed 7", strew_deadline=20),
                                  **more})

    figure = {"name": "update", "time": {"samples": [1.0, 2.0]}, "bytes": 77,
              "raw_name": "raw NCCL", "raw": {"samples": [0.5]}}
    scene.program("strew-bench", f"""
        import json, sys
        open({str(scene.dir / 'argv')!r}, "w").write(json.dumps(sys.argv[1:]))
        print({json.dumps({'figures': [{'name': 'wire'}, figure]})!r})
        """)
    row = table.Row("strew")
    strew_bench.run(options(), place.place(1, 2), row)
    strew_bench.run(options(), place.place(1, 2), row)
    assert row.seconds == [1, 2, 1, 2] and row.own_raw == [0.5, 0.5] and row.bytes == 77
    assert "strew-bench update --model m.json" in row.note and "raw NCCL" in row.note
    argv = json.loads((scene.dir / "argv").read_text())
    assert argv == ["update", "--model", "m.json", "--tp", "2", "--path", "wire", "--apply",
                    "direct", "--samples", "5", "--json", "--layers", "3", "--seed", "7"]
    # On the GPUs that the mechanisms have.
    for gpus, path, more in ((2, "wire", "--device 0 --worker-devices 0,1 --node-device 1"),
                             (3, "node", "--device 0 --worker-devices 1,2")):
        argv = strew_bench.command(options(path=path), place.place(gpus, 2))
        assert more in " ".join(argv) and ("--node-device" in argv) == (path == "wire"), argv
    for text, has in (("print('{')", "not understood"),
                      ("print('{\"figures\": [{\"name\": \"copy\"}]}')", "among: copy"),
                      ("print('{\"figures\": [{\"name\": \"update\", \"time\": "
                       "{\"samples\": []}}]}')", "no samples"),
                      ("import sys; print('one', file=sys.stderr); sys.exit('wrong bytes')",
                       "exit code 1: wrong bytes")):
        scene.program("strew-bench", text)
        raises(strew_bench.StrewError, strew_bench.run, options(), place.place(1, 2), row,
               has=has)
    scene.program("strew-bench", "import time; time.sleep(60)")
    raises(strew_bench.StrewError, strew_bench.run, options(strew_deadline=0.5),
           place.place(1, 2), row, has="timed")
    assert row.seconds == [1, 2, 1, 2]


def test_children(scene):
    """A child that is late, one that errs, one that dies, one that does not hear SIGTERM."""
    stub = scene.program("stub.py", """
        import json, os, signal, socket, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with socket.socket(fileno=int(sys.argv[1])) as channel, channel.makefile("rb") as lines:
            for line in lines:
                said = json.loads(line)
                if said["do"] == "die":
                    sys.exit("no more memory")
                if said["do"] != "sleep":
                    channel.sendall(json.dumps(said).encode() + b"\\n")
            time.sleep(60)
        """)
    processes = place.place(3, 2).processes
    envs = {p.name: dict(os.environ) for p in processes}
    with mock.patch.object(children, "RANK", stub), mock.patch.object(children, "STOP_S", 0.3):
        crowd = children.Children(processes, scene.dir, envs)
        try:
            names = [p.name for p in processes]
            popens = [child.popen for child in crowd.all.values()]
            big = "x" * 3_000_000
            assert all(said["a"] == big for said in crowd.ask(names, 20, do="echo", a=big).values())
            assert crowd.answers([], 1, "nothing") == {}
            begin = time.monotonic()
            late = raises(children.ChildError, lambda: crowd.ask(names, 0.3, do="sleep"))
            assert "sleep" in str(late) and time.monotonic() - begin < 10
            crowd.tell(["worker1"], do="echo", error="it broke")
            raises(children.ChildError, lambda: crowd.answers(names, 20, "x"),
                   has="worker1: it broke")
            # The death of one ends the wait for others.
            crowd.tell(["worker0"], do="die")
            raises(children.ChildError, lambda: crowd.answers(["trainer"], 20, "x"),
                   has="worker0 died (exit code 1): no more memory")
        finally:
            crowd.close()
        assert all(popen.poll() is not None for popen in popens)


class FakeWorld:
    """A world whose mechanisms take times or fail as a test says."""
    script = {}
    log = []

    def __init__(self, _where, settings):
        self.machine = {"device": "none"}
        FakeWorld.log.append("servers" if settings["servers"] else "world")
        if "start" in self.script:
            raise world.WorldError(self.script["start"])

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        FakeWorld.log.append("closed")

    def sample(self, mechanism, piece_bytes=None):
        FakeWorld.log.append(mechanism)
        if FakeWorld.log.count(mechanism) > self.script.get(mechanism, 99):
            raise world.MechanismError(mechanism, f"{mechanism} broke")
        seconds = 2.0 if mechanism == "raw" and piece_bytes == 64 << 20 else 4.0
        more = {"update_seconds": 3.0} if mechanism == "checkpoint-engine" else {}
        return {"seconds": seconds, "verified_bytes": 8, **more}


def run_fake(scene, *args, missing="", **script):
    FakeWorld.script, FakeWorld.log = script, []

    def strew(_options, _place, row):
        FakeWorld.log.append("strew")
        if "strew" in script:
            raise strew_bench.StrewError("strew broke")
        row.seconds += [1.0] * 5

    with mock.patch.object(world, "World", FakeWorld), \
            mock.patch.object(strew_bench, "run", strew), \
            mock.patch.object(compare, "count_gpus", lambda: 1), \
            mock.patch.object(compare.ckpt_engine, "missing", lambda: missing), \
            mock.patch.object(importlib.util, "find_spec", lambda name: name):
        code, out = scene.compare("--model", scene.config(CONFIG), "--bin", scene.bin, "--json",
                                  *args)
    return code, {one["name"]: one for one in json.loads(out)["figures"]}


def test_rounds(scene):
    """Mechanisms take turns, strew between them; one that fails is a row, the others go on."""
    code, found = run_fake(scene)
    assert code == 0 and len(found) == 9, found
    log = FakeWorld.log
    assert log.count("strew") == 2 and log.count("servers") == log.count("closed") == 2
    assert all(log.count(name) == 5 + 2 for name in ("index", "tensor", "packed"))
    assert log.count("raw") == 3 * (5 + 2)
    taken = [name for name in log if name not in ("strew", "servers", "closed")]
    everything = sorted(taken[:7])
    assert len(set(everything)) == 5
    assert all(sorted(taken[i:i + 7]) == everything for i in range(0, len(taken), 7)), log
    assert len(found["packed"]["time"]["samples"]) == 5 and found["packed"]["times_strew"] == 4
    assert found["packed"]["ratio"] == 0.5
    assert found["packed"]["raw_name"] == "raw broadcast, 64 MiB pieces"
    assert found["checkpoint-engine, update() alone"]["time"]["median"] == 3

    code, found = run_fake(scene, "--samples", 7, packed=3, missing="not importable")
    assert code == 1 and found["packed"]["failed"] == "packed broke"
    assert found["checkpoint-engine"]["absent"] == "not importable"
    assert len(found["tensor"]["time"]["samples"]) >= 7 and "servers" not in FakeWorld.log
    assert FakeWorld.log.count("packed") == 4

    code, found = run_fake(scene, raw=0, strew=True)
    assert code == 1 and found["strew"]["failed"] == "strew broke"
    assert FakeWorld.log.count("strew") == 1
    assert all("failed" in one for name, one in found.items() if name.startswith("raw"))
    assert found["index-then-tensor"]["time"]["median"] == 4

    code, found = run_fake(scene, "--mechanisms", "tensor,strew", start="no memory")
    assert code == 1 and found["tensor"]["failed"] == "no memory"
    assert found["strew"]["time"]["median"] == 1


def test_usage(scene):
    config = scene.config(CONFIG)
    for args in (["--mechanisms", "smoke"], ["--mechanisms", ""], ["--samples", 4], ["--tp", 0],
                 ["--backend", "gloo"], ["--dry-run", "--backend", "nccl"], ["--strew-runs", 0]):
        code, out = scene.compare("--model", config, "--bin", scene.bin, *args)
        assert code == 2 and out == "", args
    with mock.patch.object(importlib.util, "find_spec", lambda name: name):
        assert scene.compare("--model", "none.json", "--bin", scene.bin, "--dry-run")[0] == 2
        assert scene.compare("--model", config, "--bin", scene.dir, "--dry-run")[0] == 1
        with mock.patch.object(compare, "count_gpus", lambda: 0):
            assert scene.compare("--model", config, "--bin", scene.bin)[0] == 3
    code, out = scene.compare("--help")
    assert code == 0 and "--mechanisms" in out


def test_without_torch(scene):
    with mock.patch.object(importlib.util, "find_spec", lambda name: None):
        code, out = scene.compare("--model", scene.config(CONFIG), "--bin", scene.bin, "--dry-run")
    assert code == 77 and out == ""


if __name__ == "__main__":
    main(globals())
