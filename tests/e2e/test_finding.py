"""Finding out: strew doctor, strew status --watch, strew events, strew explain and strew
verify."""

import itertools
import json
import math
import operator
import os
import pathlib
import random
import re
import signal
import stat
import struct
import subprocess
import time

import scene

ABOUT = ["socket", "permissions", "namespaces", "driver", "devices", "allocator", "nccl", "io_uring",
         "descriptors", "memlock"]


def doctor(stage, *args, env=None):
    """Its exit code, and (grade, text, advice) by what each finding is about."""
    result = stage.run("strew", "doctor", *args, env=env)
    assert result.stderr == "", result.stderr
    findings = {}
    for line in result.stdout.splitlines():
        if line.startswith(" "):
            kind, advice = line.split(None, 1)
            assert kind == "do:" and findings[about][2] is None, result.stdout
            findings[about][2] = advice
        else:
            grade, about, text = line.split(None, 2)
            findings[about] = [grade, text, None]
    assert list(findings) == ABOUT, result.stdout
    for grade, text, advice in findings.values():
        assert grade in ("ok", "note", "WRONG") and (advice is None) == (grade == "ok"), result.stdout
    return result.returncode, findings


def has_driver(findings):
    return findings["driver"][1].startswith("CUDA ")


def test_doctor_with_a_broker(stage):
    broker = stage.broker()
    code, found = doctor(stage, "--socket", stage.socket(), "--backend", "host")
    assert code == 0, found
    assert f"process {broker.pid}," in found["socket"][1] and "backend host" in found["socket"][1]
    assert found["permissions"][0] == "ok" and "mode 0600" in found["permissions"][1], found
    assert found["namespaces"][1].count("shared with the broker") == 3, found
    if not has_driver(found):
        assert "the host backend is what remains" in found["driver"][1], found
        assert found["devices"][1] == "no GPU" and "not needed" in found["nccl"][1] or \
            found["nccl"][0] == "ok", found
    limits = open(f"/proc/{broker.pid}/limits").read()
    soft, hard = next(line for line in limits.splitlines()
                      if line.startswith("Max open files")).split()[3:5]
    assert found["descriptors"][1] == f"{hard} open files at most, now {soft} (the broker)", found
    # Who wants GPUs hears that this broker has none.
    code, found = doctor(stage, "--socket", stage.socket(), "--backend", "cuda")
    assert code == 1 and found["socket"][0] == "WRONG", found
    assert "--backend cuda" in found["socket"][2], found
    # With workers it says how their memory is written.
    stage.workers(2)
    raw = stage.status()["groups"][0]["raw"]
    code, found = doctor(stage, "--socket", stage.socket())
    assert code == 0 and f"{raw} are written raw, 0 by the pull" in found["allocator"][1], found


def test_doctor_without_a_broker(stage):
    path = stage.dir / "nobody" / "broker.sock"
    code, found = doctor(stage, env={"STREW_SOCKET": str(path)})
    assert code == 1 and found["socket"][0] == "WRONG" and str(path) in found["socket"][1], found
    assert "strew run" in found["socket"][2], found
    assert "no broker to compare with" in found["namespaces"][1], found
    assert not path.parent.exists()
    # A killed one leaves its socket behind.
    stage.broker().popen.kill()
    code, found = doctor(stage, "--socket", stage.socket())
    assert code == 1 and "start it again" in found["socket"][2], found
    # Where io_uring is forbidden, it says so and what remains.
    without = doctor_through_no_uring(stage)
    assert without["io_uring"][0] == "note" and "epoll" in without["io_uring"][1], without


def doctor_through_no_uring(stage):
    result = stage.run("no_uring", stage.bin / "strew", "doctor", "--socket", stage.socket())
    rows = [line.split(None, 2) for line in result.stdout.splitlines() if line[0] != " "]
    return {about: (grade, text) for grade, about, text in rows}


def test_doctor_of_a_stranger(stage):
    """Directories that others may write to, and files that are no sockets."""
    shared = stage.dir / "shared"
    shared.mkdir()
    os.chmod(shared, 0o777)
    code, found = doctor(stage, "--socket", shared / "broker.sock")
    assert code == 1 and found["permissions"][0] == "WRONG", found
    assert "mode 0777" in found["permissions"][1], found
    assert stat.S_IMODE(shared.stat().st_mode) == 0o777  # it only looks
    plain = stage.dir / "plain"
    plain.write_text("x")
    code, found = doctor(stage, "--socket", plain)
    assert code == 1 and "no socket" in found["permissions"][2], found
    broker = stage.broker()
    os.chmod(stage.socket(), 0o666)
    code, found = doctor(stage, "--socket", stage.socket())
    assert code == 0 and found["permissions"][0] == "note", found
    assert f"process {broker.pid}," in found["socket"][1], found


def watching(stage, *args, broker="broker"):
    """Its process, and a call that gives what it has said so far as objects."""
    process = stage.start(f"watch-{broker}", "strew", "status", "--watch", "--json", "--socket",
                          stage.socket(broker), *args)

    def said(**wanted):
        """Waits for an object that holds all this; strings need only be in its."""
        def fits(row):
            return all(key in row and (value in row[key] if isinstance(value, str) else
                                       row[key] == value) for key, value in wanted.items())

        def look():
            rows = [json.loads(line) for line in process.log.splitlines(True)
                    if line.endswith("\n") and line.startswith("{")]
            return next((row for row in rows if fits(row)), None)
        return scene.wait_until(f"{wanted} in the log of {process.name}", look)
    return process, said


def test_watch(stage):
    """A trainer of two ranks, of which one is late; then a worker that stands still."""
    broker = stage.broker()
    worker, = stage.workers(1)
    watch, said = watching(stage)
    text = stage.start("watch-text", "strew", "status", "--watch", "--socket", stage.socket())
    text.says("no model yet")
    ranks = [stage.trainer("--rank", rank, "--ranks", 2, "--timeout", 20, name=f"rank{rank}")
             for rank in range(2)]
    ranks[0].line()
    said(stage="waiting for ranks", version=1, awaited="rank 1 to publish")
    text.says("m: version 1 waiting for ranks, waits for rank 1 to publish")
    ranks[1].line()
    for rank in ranks:
        rank.end()
    said(version=1, outcome="committed", tensors=30)
    worker.popen.send_signal(signal.SIGSTOP)
    trainer = stage.trainer("--first", 2)
    trainer.line()
    said(stage="accepting", version=2, committed=1, awaited=f"process {worker.pid} to look")
    worker.popen.send_signal(signal.SIGCONT)
    trainer.end()
    said(version=2, outcome="committed")
    # Updates that take no time are not missed.
    trainer = stage.trainer("--first", 3, "--versions", 20)
    trainer.line("\n" * 20)
    trainer.end()
    said(version=22, outcome="committed")
    versions = [json.loads(line)["version"] for line in watch.log.splitlines()
                if '"number"' in line]
    assert versions == list(range(1, 23)), watch.log
    # An update that is slow enough is seen "committing, committed" too.
    assert len(re.findall(r" version \d+ committed, ", text.says("version 22 committed").log)) == 22, \
        text.log
    # It ends as it is told to: by Ctrl-C, and with the broker.
    watch.stop(0, signal.SIGINT)
    worker.stop()
    broker.stop()
    text.end(1)
    assert "the broker is gone" in text.log, text.log


def test_watch_two_nodes(stage):
    """The lead names the node that it waits for; the node says that it waits for the lead."""
    _, node = stage.two_nodes()
    stage.workers(1, broker="node")
    _, at_lead = watching(stage, broker="lead")
    _, at_node = watching(stage, broker="node")
    trainer = stage.trainer(broker="lead")
    at_lead(model="m", stage="idle")
    node.popen.send_signal(signal.SIGSTOP)
    trainer.line()
    row = at_lead(stage="accepting", version=1, awaited="node 1 ")
    assert str(node.pid) in row["awaited"], row
    node.popen.send_signal(signal.SIGCONT)
    trainer.end()
    at_lead(version=1, outcome="committed")
    at_node(version=1, outcome="committed")


def test_watch_catching_up(stage):
    """A group that has missed a version, one of whose workers does not answer; then it has caught up."""
    stage.broker()
    worker, = stage.workers(1)
    trainer = stage.trainer()
    trainer.line()
    trainer.end()
    text = stage.start("watch-text", "strew", "status", "--watch", "--socket", stage.socket())
    _, said = watching(stage)
    said(model="m", stage="idle")

    def late(rank):
        return stage.start(f"late{rank}", "tp_worker", "--config",
                           scene.CONFIGS / "tiny-llama.json", "--model", "m", "--rank", rank, "--size",
                           2, "--replica", 1, "--socket", stage.socket()).says("registered")

    first = late(0)
    first.popen.send_signal(signal.SIGSTOP)
    late(1)
    said(stage="catching up", version=1, committed=1,
         awaited=f"replica 1 part 0, process {first.pid} to look at its memory")
    text.says("m: version 1 catching up, committed, waits for replica 1 part 0, process ")
    first.popen.send_signal(signal.SIGCONT)
    said(version=1, outcome="committed", text="replica 1 part 0 caught up from replica 0 part 0")
    text.says("by wire: replica 1 part 0 caught up from replica 0 part 0")
    assert worker.popen.poll() is None


def test_watch_usage(stage):
    result = stage.run("strew", "status", "--watch", "--socket", stage.socket("nobody"))
    assert result.returncode == 4 and "no broker serves" in result.stderr, result


def events(stage, broker="broker"):
    result = stage.run("strew", "events", "--json", "--socket", stage.socket(broker))
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def times(event):
    return [event[key] for key in ("wait_ns", "accept_ns", "move_ns", "commit_ns")]


def test_events(stage):
    """The last 64 of 70, in order, with what their trainer was told; and as text."""
    stage.broker()
    assert events(stage) == []
    stage.workers(2)
    before = time.time()
    trainer = stage.trainer("--versions", 70)
    trainer.line("\n" * 70)
    log = trainer.end()
    rows = events(stage)
    assert [row["number"] for row in rows] == list(range(7, 71))
    assert [row["version"] for row in rows] == list(range(7, 71))
    for row in rows:
        report = next(line for line in log.splitlines() if f"version {row['version']} " in line)
        assert f"bytes={row['bytes']} wire={row['wire_bytes']} groups=1" in report, (row, report)
        assert f" in {row['total_ns'] / 1e9:.4f} s" in report, (row, report)
        assert row["model"] == "m" and row["outcome"] == "committed" and row["text"] == "", row
        assert all(times(row)) and sum(times(row)) == row["total_ns"], row
        assert 0 < row["local_ns"] <= row["move_ns"] and row["ended_in"] == "", row
        assert before * 1000 - 1 <= row["unix_ms"] <= time.time() * 1000 + 1, row
        assert [group["outcome"] for group in row["groups"]] == ["committed"], row
    text = stage.run("strew", "events", "--socket", stage.socket())
    assert text.returncode == 0 and text.stdout.count("\n") == 64, text.stdout
    assert "m: version 70 committed, " in text.stdout.splitlines()[-1], text.stdout


def test_events_of_failures(stage):
    """An update that no group takes, and one that a group misses: where, why, and a line in the log."""
    broker = stage.broker()
    good, = stage.workers(1)
    bad, = stage.workers(1, "--replica", 1, prefix="bad-")
    trainer = stage.trainer("--timeout", 2)
    bad.popen.send_signal(signal.SIGSTOP)
    good.popen.send_signal(signal.SIGSTOP)
    trainer.line()
    trainer.says("version 1 aborted")
    trainer.popen.wait(scene.DEADLINE_S)
    good.popen.send_signal(signal.SIGCONT)
    trainer = stage.trainer("--timeout", 2, "--first", 2, name="second")
    trainer.line()
    trainer.says("version 2 ")
    trainer.popen.wait(scene.DEADLINE_S)
    aborted, partly = events(stage)
    assert (aborted["outcome"], aborted["ended_in"]) == ("aborted", "accepting"), aborted
    assert "gate" in aborted["text"] and len(aborted["groups"]) == 2, aborted
    assert aborted["wait_ns"] > 0 and times(aborted)[1:] == [0, 0, 0], aborted
    assert aborted["total_ns"] > 5e8, aborted
    assert "model m version 1 ended while accepting: of " in broker.log, broker.log
    assert (partly["outcome"], partly["ended_in"]) == ("sat out", ""), partly
    outcomes = {group["replica"]: group["outcome"] for group in partly["groups"]}
    assert outcomes == {0: "committed", 1: "sat out"}, partly
    assert "version 2 ended while" not in broker.log
    text = stage.run("strew", "events", "--socket", stage.socket()).stdout
    assert "version 1 aborted while accepting, " in text, text
    assert text.count("    node 0 replica 1 part 0: ") == 2, text
    # What it has missed it takes from the other one, and that is an event too.
    bad.popen.send_signal(signal.SIGCONT)
    bad.says("version 2 ok")
    _, _, caught = events(stage)
    assert (caught["version"], caught["outcome"], caught["ended_in"]) == (2, "committed", ""), caught
    assert caught["text"] == "replica 1 part 0 caught up from replica 0 part 0", caught
    assert caught["total_ns"] > 0 and caught["bytes"] > 0, caught
    assert [(group["replica"], group["state"]) for group in caught["groups"]] == [(1, "CURRENT")], caught


def test_events_of_two_nodes(stage):
    """The lead has the whole update, the other its part; a lead that is gone is in the log."""
    lead, _ = stage.two_nodes()
    stage.workers(1, broker="lead", prefix="lead-")
    worker, = stage.workers(1, "--replica", 1, broker="node", prefix="node-")
    trainer = stage.trainer(broker="lead")
    trainer.line()
    trainer.end()
    whole, = events(stage, "lead")
    assert sorted(group["node"] for group in whole["groups"]) == [0, 1], whole
    part, = scene.wait_until("its event", lambda: events(stage, "node"))
    assert [(group["node"], group["replica"]) for group in part["groups"]] == [(1, 1)], part
    for key in ("model", "version", "outcome", "bytes", "wire_bytes", "tensors"):
        assert part[key] == whole[key], (part, whole)
    assert part["wire_bytes"] > 0 and 0 < part["wire_ns"] <= part["total_ns"], part
    worker.popen.send_signal(signal.SIGSTOP)
    trainer = stage.trainer("--first", 2, broker="lead", name="second")
    trainer.line()
    scene.wait_until("a begin at the node", lambda: progress_stage(stage, "node") == "planning")
    lead.popen.kill()
    _, left = scene.wait_until("its event", lambda: events(stage, "node")[1:] and
                               events(stage, "node"))
    # It has not said prepared, and so knows that nobody has committed.
    assert (left["outcome"], left["ended_in"]) == ("aborted", "planning"), left
    assert left["text"] == "the lead is gone" and left["version"] == 2, left
    worker.popen.send_signal(signal.SIGCONT)
    trainer.popen.wait(scene.DEADLINE_S)


def progress_stage(stage, broker):
    process = subprocess.Popen([stage.bin / "strew", "status", "--watch", "--json", "--socket",
                                stage.socket(broker)], stdout=subprocess.PIPE, text=True)
    row = json.loads(process.stdout.readline())
    process.kill()
    process.communicate()
    return row["stage"]


def explain(stage, name, *args, broker="broker"):
    result = stage.run("strew", "explain", name, "--json", "--socket", stage.socket(broker), *args)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


TENSORS = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
           *(f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkvo"),
           *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")))


def places(row):
    """Of every element of a piece: its number in the tensor, and in the piece's allocation."""
    assert math.prod(row["view"]) == math.prod(row["shape"])
    for index in itertools.product(*map(range, row["extent"])):
        number = 0
        for length, start, at in zip(row["view"], row["start"], index):
            number = number * length + start + at
        yield number, sum(map(operator.mul, index, row["stride"]))


def test_explain(stage):
    """What is said of each piece is where a push puts the bytes: in two workers, one of which pulls."""
    stage.broker()
    workers = [stage.start(f"worker{rank}", "tp_worker", "--config",
                           scene.CONFIGS / "tiny-llama.json", "--model", "m", "--rank", rank,
                           "--size", 2, "--socket", stage.socket(), "--partial", "--dump",
                           stage.dir / f"dump{rank}", *(["--malloc"] if rank else []))
               for rank in range(2)]
    for worker in workers:
        worker.says("registered")
    rows = {name: explain(stage, name) for name in TENSORS}
    tensors = {}
    for name, pieces in rows.items():
        assert {row["member"] for row in pieces} == {0, 1} and len(pieces) >= 2, pieces
        shape, = {tuple(row["shape"]) for row in pieces}
        tensors[name] = ("BF16", list(shape), os.urandom(2 * math.prod(shape)))
    result = stage.push(scene.safetensors(stage.dir / "m.safetensors", tensors), 7, "--partial")
    assert result.returncode == 0, result.stderr
    for worker in workers:
        worker.says("version 7")
    for row in explain(stage, TENSORS[0]):
        assert (row["version"], row["state"], row["apply"]) == (7, "CURRENT", "staged"), row
    bases = {}
    for rank, worker in enumerate(workers):
        for row in (row for pieces in rows.values() for row in pieces if row["member"] == rank):
            whole = explain(stage, row["parameter"])
            bases[rank, row["parameter"]] = min(
                piece["offset"] for piece in whole if piece["member"] == rank)
            assert row["pid"] == worker.pid and row["route"] == ("pull" if rank else "raw"), row
            assert not row["cast"] and row["parameter_dtype"] == row["dtype"] == "bf16", row
    for worker in workers:
        worker.stop()
    seen = {name: set() for name in TENSORS}
    for rank in range(2):
        index = json.loads((stage.dir / f"dump{rank}.json").read_text())
        at = {entry["name"]: entry["offset"] for entry in index["parameters"]}
        memory = (stage.dir / f"dump{rank}").read_bytes()
        for name, pieces in rows.items():
            content = tensors[name][2]
            for row in (row for row in pieces if row["member"] == rank):
                first = at[row["parameter"]] + row["offset"] - bases[rank, row["parameter"]]
                for number, place in places(row):
                    there = memory[first + 2 * place:first + 2 * place + 2]
                    assert there == content[2 * number:2 * number + 2], (name, number, row)
                    seen[name].add(number)
    # Between them the workers take every element that the layout has use for.
    for name, numbers in seen.items():
        assert len(numbers) == math.prod(tensors[name][1]), name


def test_explain_of_two_nodes(stage):
    """Boxes of two ranks at two nodes, as each node knows them; and as text."""
    stage.two_nodes()
    worker, = stage.workers(1, broker="node")
    ranks = [stage.trainer("--rank", rank, "--ranks", 2, broker=("lead", "node")[rank],
                           name=f"rank{rank}") for rank in range(2)]
    name = "model.layers.0.mlp.up_proj.weight"

    def held(broker):
        return [row for row in explain(stage, name, "--model", "m", broker=broker)
                if row["kind"] == "held"]
    scene.wait_until("both ranks at the node", lambda: stage.run(
        "strew", "explain", name, "--socket", stage.socket("node")).stdout.count(" holds ") == 2)
    for here, broker in enumerate(("lead", "node")):
        boxes = held(broker)
        assert [row["rank"] for row in boxes] == [0, 1], boxes
        first, second = boxes
        rows, cols = first["shape"]
        assert first["start"] == [0, 0] and second["start"] == [first["extent"][0], 0], boxes
        assert first["extent"][0] + second["extent"][0] == rows, boxes
        assert first["extent"][1] == second["extent"][1] == cols, boxes
        assert boxes[here]["pid"] == ranks[here].pid and "offset" in boxes[here], boxes
        assert "offset" not in boxes[1 - here], boxes
    pieces = [row for row in explain(stage, name, broker="node") if row["kind"] == "piece"]
    assert [row["pid"] for row in pieces] == [worker.pid], pieces
    result = stage.run("strew", "explain", name, "--socket", stage.socket("node"))
    for word in (f"{name}  bf16 [", f"(process {worker.pid}) takes [0, 0] + ", "at another node",
                 "raw, staged, CURRENT at version 0", f"rank 1 (process {ranks[1].pid}) holds"):
        assert word in result.stdout, result.stdout
    result = stage.run("strew", "explain", "up_proj", "--socket", stage.socket("node"))
    assert result.returncode == 1 and f"there is {name}" in result.stderr, result.stderr
    result = stage.run("strew", "explain", name, "--socket", stage.socket("nobody"))
    assert result.returncode == 4, result
    for rank in ranks:
        rank.line()
    for rank in ranks:
        rank.end()


def memory_of(pid):
    """The first shared memory of a process that is a model's."""
    for link in sorted(pathlib.Path(f"/proc/{pid}/fd").iterdir(), key=lambda link: int(link.name)):
        if "memfd:" in os.readlink(link) and link.stat().st_size >= 1 << 20:
            return link.read_bytes()
    raise AssertionError(f"process {pid} has no memfd")


def splitmix(word, position):
    """docs/protocol.md, `hashes`."""
    mask = (1 << 64) - 1
    x = word ^ ((position + 1) * 0x9e3779b97f4a7c15 & mask)
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 & mask
    x = (x ^ x >> 27) * 0x94d049bb133111eb & mask
    return x ^ x >> 31


def hash_of(row):
    """Of the row's box, out of its owner's memory (2 bytes an element)."""
    memory = memory_of(row["pid"])
    dense = bytearray()
    for index in itertools.product(*map(range, row["extent"])):
        at = row["offset"] + 2 * sum(map(operator.mul, index, row["stride"]))
        dense += memory[at:at + 2]
    dense += bytes(-len(dense) % 8)
    words = struct.unpack(f"<{len(dense) // 8}Q", dense)
    return f"{sum(map(splitmix, words, range(len(words)))) & (1 << 64) - 1:016x}"


def equal(rows):
    return {(row["replica"], row["member"]): row["equal"] for row in rows if row["kind"] == "piece"}


def test_explain_hashes(stage):
    """Of every box what an independent computation has; a bit in a worker's memory and one in the
    trainer's are found by it; and what is not known says why."""
    stage.broker()
    workers = stage.workers(2) + stage.workers(1, "--replica", 1, "--malloc", prefix="p")
    ranks = [stage.trainer("--rank", rank, "--ranks", 2, "--versions", 9, "--timeout", 20,
                           name=f"rank{rank}") for rank in range(2)]
    for rank in ranks:
        rank.line()
    for process in workers + ranks:
        process.says("version 1")
    everybody = {(0, 0): True, (0, 1): True, (1, 0): True}
    for name in ("model.norm.weight", "model.layers.1.self_attn.o_proj.weight",
                 "model.layers.1.self_attn.k_proj.weight"):
        rows = explain(stage, name)
        for row in rows:
            assert row["kind"] in ("held", "piece") and row["hash_why"] == "", row
            if row["route"] == "raw":
                assert row["hash"] == hash_of(row), row
        assert equal(rows) == everybody, rows
        for row in rows:
            assert row["kind"] == "held" or row["hash"] == row["trainer_hash"], row
    name = "model.layers.1.self_attn.o_proj.weight"
    row = next(row for row in explain(stage, name) if row["kind"] == "piece" and row["member"] == 1)
    at = row["offset"] + 2 * sum(map(operator.mul, (length // 2 for length in row["extent"]),
                                     row["stride"]))
    poke(workers[1].pid, at)
    rows = explain(stage, name)
    assert equal(rows) == {**everybody, (0, 1): False}, rows
    text = stage.run("strew", "explain", name, "--socket", stage.socket()).stdout
    assert text.count(": equal\n") == 2 and text.count(": differs\n") == 1, text
    assert "  slot: no hash: no committed update has taken it over the wire here\n" in text, text
    poke(workers[1].pid, at)
    held = next(row for row in rows if row["kind"] == "held" and row["rank"] == 1)
    poke(ranks[1].pid, held["offset"])
    rows = explain(stage, name)
    assert equal(rows) == {(0, 0): False, (0, 1): True, (1, 0): False}, rows
    poke(ranks[1].pid, held["offset"])
    assert equal(explain(stage, name)) == everybody
    # By a parameter that several tensors go into, each with its own trainer's box.
    rows = explain(stage, row["parameter"].replace("o_proj", "qkv_proj"), "--model", "m")
    assert {row["tensor"].split(".")[-2] for row in rows} == {"q_proj", "k_proj", "v_proj"}, rows
    assert all(row["equal"] for row in rows), rows
    for row in explain(stage, name, "--no-hash"):
        assert "hash" not in row and "equal" not in row, row
    # In the middle of an update it does not wait for its end; without a trainer nothing is compared.
    workers[0].popen.send_signal(signal.SIGSTOP)
    for rank in ranks:
        rank.line()
    _, said = watching(stage)
    said(stage="accepting", version=2)
    for row in explain(stage, name):
        assert row["hash"] is None and row["hash_why"] == "an update is under way", row
    workers[0].popen.send_signal(signal.SIGCONT)
    for process in workers + ranks:
        process.says("version 2")
    for rank in ranks:
        rank.stop(-signal.SIGTERM)

    def orphaned():
        rows = explain(stage, name)
        return rows if all(row["kind"] == "piece" for row in rows) else None
    for row in scene.wait_until("no trainer", orphaned):
        assert row["hash"] and row["equal"] is None and row["trainer_hash"] is None, row
        assert row["trainer_hash_why"] == "no trainer has it now", row


def test_explain_hashes_of_two_nodes(stage):
    """What went over the wire has one sum at both ends, if it was hashed; what is elsewhere is not read."""
    stage.two_nodes()
    workers = stage.workers(2, broker="node")
    direct = stage.workers(1, "--apply", "direct", broker="node", model="d", prefix="d-")
    ranks = [stage.trainer("--rank", rank, "--ranks", 2, "--versions", 9, broker=("lead", "node")[rank],
                           name=f"rank{rank}") for rank in range(2)]
    name = "model.layers.0.mlp.up_proj.weight"
    for rank in ranks:
        rank.line()
    for process in workers + ranks:
        process.says("version 1")
    rows = {broker: explain(stage, name, "--model", "m", broker=broker)
            for broker in ("lead", "node")}
    slots = {broker: [row for row in rows[broker] if row["kind"] == "slot"] for broker in rows}
    assert slots["lead"] == slots["node"] and slots["lead"], slots
    for slot in slots["lead"]:
        assert (slot["version"], slot["nodes"], slot["buckets_in_sum"]) == (1, 2, 1), slot
        assert len(slot["sum"]) == 16 and slot["tensor"] == name, slot
    assert len({slot["bucket"] for slot in slots["lead"]}) == len(slots["lead"]), slots
    for here, broker in enumerate(("lead", "node")):
        for row in (row for row in rows[broker] if row["kind"] == "held"):
            if row["rank"] == here:
                assert row["hash"] == hash_of(row), row
            else:
                assert (row["hash"], row["hash_why"]) == (None, "it is at another node"), row
    for row in (row for row in rows["node"] if row["kind"] == "piece"):
        assert row["hash"] == hash_of(row) and row["equal"] is None, row
        assert row["trainer_hash_why"] == "not all of it is at this node", row
    text = stage.run("strew", "explain", name, "--model", "m", "--socket", stage.socket("node"))
    assert text.stdout.count(f", sum {slots['node'][0]['sum']} at nodes 0 to 1 alike\n") == 1, text
    # A version later it is of that; and of an update that was not hashed it says so.
    for rank in ranks:
        rank.line()
    for process in workers + ranks:
        process.says("version 2")
    sums = [row["sum"] for row in explain(stage, name, "--model", "m", broker="node")
            if row["kind"] == "slot"]
    assert sums and not set(sums) & {slot["sum"] for slot in slots["node"]}, sums
    trainer = stage.trainer("--versions", 9, broker="lead", model="d", name="plain")
    trainer.line()
    for process in direct + [trainer]:
        process.says("version 1")
    plain = [row for row in explain(stage, name, "--model", "d", broker="node")
             if row["kind"] == "slot"]
    assert plain and all(row["sum"] is None and row["version"] == 1 for row in plain), plain
    text = stage.run("strew", "explain", name, "--model", "d", "--socket", stage.socket("node"))
    assert "no hash: that update was not hashed" in text.stdout, text.stdout


def test_explain_hashes_are_the_owners(stage):
    """Root, whom a broker serves too, hears where things are, and not what is in them."""
    stage.broker("other/broker", through=stage.other_user("other"))
    worker, = stage.workers(1, broker="other/broker")
    trainer = stage.trainer("--versions", 2, broker="other/broker")
    trainer.line()
    for process in (worker, trainer):
        process.says("version 1")
    rows = explain(stage, "lm_head.weight", broker="other/broker")
    assert [row["kind"] for row in rows] == ["held", "piece"], rows
    for row in rows:
        assert row["hash"] is None and row["hash_why"] == "it is for the broker's own user alone", row
    text = stage.run("strew", "explain", "lm_head.weight", "--socket", stage.socket("other/broker"))
    assert text.stdout.count("no hash: it is for the broker's own user alone") == 3, text.stdout


def verify(stage, path, *args, broker="broker"):
    return stage.run("strew", "verify", path, "--socket", stage.socket(broker), *args)


def whole_checkpoint(stage, broker="broker"):
    """A file with random values for every tensor of tiny-llama."""
    config = json.loads((scene.CONFIGS / "tiny-llama.json").read_text())
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        names += [f"model.layers.{layer}.{name}.weight" for name in (
            "input_layernorm", "post_attention_layernorm", *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))]
    tensors = {}
    for name in names:
        shape = explain(stage, name, broker=broker)[0]["shape"]
        tensors[name] = ("BF16", shape, os.urandom(2 * math.prod(shape)))
    return tensors


def test_verify(stage):
    """Equal after a push, staged and direct, raw and pulled, and not before it."""
    stage.broker()
    workers = stage.workers(2) + stage.workers(1, "--replica", 1, "--apply", "direct", prefix="d") + \
        stage.workers(1, "--replica", 2, "--malloc", prefix="p")
    tensors = whole_checkpoint(stage)
    path = scene.safetensors(stage.dir / "m.safetensors", tensors)
    result = verify(stage, path)
    assert result.returncode == 1 and "elements differ" in result.stdout, result
    assert stage.push(path, 3).returncode == 0
    for worker in workers:
        worker.says("version 3")
    result = verify(stage, path)
    assert result.returncode == 0, result
    assert f"4 workers, {4 * len(tensors)} tensors in them, " in result.stdout, result.stdout
    assert "parameters in their twins: 0 differ" in result.stdout, result.stdout
    assert result.stdout.count("\n") == 1, result.stdout
    result = verify(stage, path, "--model", "other")
    assert result.returncode == 1 and "no worker" in result.stderr, result
    result = verify(stage, stage.dir / "nothing")
    assert result.returncode == 1 and "nothing" in result.stderr, result
    result = verify(stage, path, broker="nobody")
    assert result.returncode == 4, result


def poke(pid, offset):
    """Turns a bit of the first shared memory of a process."""
    for link in sorted(pathlib.Path(f"/proc/{pid}/fd").iterdir(), key=lambda link: int(link.name)):
        if "memfd:" in os.readlink(link) and link.stat().st_size >= 1 << 20:
            file = os.open(link, os.O_RDWR)
            byte = os.pread(file, 1, offset)[0]
            assert os.pwrite(file, bytes([byte ^ 1]), offset) == 1
            os.close(file)
            return
    raise AssertionError(f"process {pid} has no memfd")


def test_verify_names_what_differs(stage):
    """A bit in a worker's live memory, a byte in the file, a tensor that is not there or is another."""
    stage.broker()
    workers = stage.workers(2)
    tensors = whole_checkpoint(stage)
    path = scene.safetensors(stage.dir / "m.safetensors", tensors)
    assert stage.push(path, 3).returncode == 0
    for worker in workers:
        worker.says("version 3")
    name = "model.layers.1.mlp.down_proj.weight"
    row = next(row for row in explain(stage, name) if row["member"] == 1)
    index = [random.randrange(length) for length in row["extent"]]
    at = row["offset"] + 2 * sum(map(operator.mul, index, row["stride"]))
    poke(workers[1].pid, at)
    result = verify(stage, path)
    where = [start + i for start, i in zip(row["start"], index)]
    assert result.returncode == 1, result
    count = math.prod(row["extent"])
    assert result.stdout.splitlines()[0] == (
        f"{name}: in model m replica 0 part 0 worker 1 (process {workers[1].pid}) 1 of {count} "
        f"elements differ, the first at {where}"), (result.stdout, where)
    assert result.stdout.count("\n") == 2 and ": 1 differ" in result.stdout, result.stdout
    poke(workers[1].pid, at)
    assert verify(stage, path).returncode == 0
    # The file: a byte of a tensor that both have, one less, one of another shape.
    other = dict(tensors)
    changed = bytearray(other["model.norm.weight"][2])
    changed[7] ^= 0x40
    other["model.norm.weight"] = (*other["model.norm.weight"][:2], bytes(changed))
    del other["lm_head.weight"]
    dtype, shape, content = other[name]
    other[name] = (dtype, shape[::-1], content)
    key = "model.layers.0.self_attn.k_proj.weight"
    other[key] = ("F16", *other[key][1:])
    result = verify(stage, scene.safetensors(stage.dir / "o.safetensors", other))
    assert result.returncode == 1, result
    lines = result.stdout.splitlines()
    for said in ("model.norm.weight: ", "lm_head.weight: ", f"{name}: ", f"{key}: "):
        assert sum(line.startswith(said) for line in lines) == 2, (said, lines)
    assert len(lines) == 9, lines
    for line in lines:
        if line.startswith("model.norm"):
            assert line.endswith(" elements differ, the first at [3]"), line
    for why in ("does not have it", "in another shape", "in another dtype"):
        assert result.stdout.count(why) == 2, lines


def test_verify_trainer(stage):
    """Workers against the trainer's own memory: two ranks with a stretch of all rows each, ordinary
    memory behind twins, a bit here and a bit there; and what cannot be compared."""
    stage.broker()
    workers = stage.workers(2) + stage.workers(1, "--replica", 1, "--apply", "direct", prefix="d")
    result = verify(stage, "--trainer")
    assert result.returncode == 1 and "no trainer has declared" in result.stderr, result
    ranks = [stage.trainer("--rank", rank, "--ranks", 2, "--versions", 9, name=f"rank{rank}")
             for rank in range(2)]
    for rank in ranks:
        rank.line()
    for process in workers + ranks:
        process.says("version 1")
    tensors = len(whole_checkpoint(stage))
    result = verify(stage, "--trainer")
    assert result.returncode == 0, result
    assert f"3 workers, {3 * tensors} tensors in them, " in result.stdout, result.stdout
    # A bit of the trainer's: every worker that has that element is named. Both ranks' turn.
    for rank in ranks:
        poke(rank.pid, 4096)
        result = verify(stage, "--trainer")
        assert result.returncode == 1 and "1 of " in result.stdout, result
        assert len({line.split(":")[0] for line in result.stdout.splitlines()[:-1]}) == 1, result
        poke(rank.pid, 4096)
    poke(workers[2].pid, 4096)
    result = verify(stage, "--trainer", "--model", "m")
    assert result.returncode == 1 and result.stdout.count("\n") == 2, result
    assert f"(process {workers[2].pid}) 1 of " in result.stdout, result
    poke(workers[2].pid, 4096)
    assert verify(stage, "--trainer").returncode == 0
    result = verify(stage, "--trainer", "--model", "other")
    assert result.returncode == 1 and "no trainer of other has" in result.stderr, result
    # A second model, whose trainer's memory is its own affair.
    other = stage.workers(1, model="n", prefix="n")
    trainer = stage.trainer("--malloc", "--versions", 9, model="n", name="other")
    trainer.line()
    for process in (*other, trainer):
        process.says("version 1")
    result = verify(stage, "--trainer")
    assert result.returncode == 1 and "--model" in result.stderr, result
    result = verify(stage, "--trainer", "--model", "n")
    assert result.returncode == 0 and "of the trainer in their twins" in result.stdout, result
    result = verify(stage, "--trainer", "a-file")
    assert result.returncode == 2 and "or --trainer" in result.stderr, result


def test_verify_trainer_on_two_nodes(stage):
    """What another node's rank holds is not read here, and is said to be missing."""
    stage.two_nodes()
    workers = stage.workers(1, broker="lead")
    ranks = [stage.trainer("--rank", rank, "--ranks", 2, "--versions", 9, broker=broker,
                           name=f"rank{rank}") for rank, broker in enumerate(("lead", "node"))]
    for rank in ranks:
        rank.line()
    for process in workers + ranks:
        process.says("version 1")
    result = verify(stage, "--trainer", broker="lead")
    assert result.returncode == 1, result
    for line in result.stdout.splitlines()[:-1]:
        assert line.endswith("not compared: the trainer has only a part of it on this node"), line
    assert len(result.stdout.splitlines()) > 3, result


def test_verify_on_a_gpu(stage):
    """The same out of a GPU's memory, written raw and staged; and a doctor who finds it in order."""
    if not has_driver(doctor(stage, "--socket", stage.socket())[1]):
        raise scene.Skip("there is no GPU")
    stage.broker(backend="cuda")
    code, found = doctor(stage, "--socket", stage.socket(), "--backend", "cuda")
    assert code == 0 and found["socket"][0] == "ok", found
    assert found["devices"][1].split()[1].startswith("GPU"), found
    workers = [*stage.workers(1, "--device", 0, "--apply", "direct"),
               *stage.workers(1, "--device", 0, "--replica", 1, prefix="staged-")]
    tensors = whole_checkpoint(stage)
    for row in explain(stage, "lm_head.weight"):
        assert row["handle"].startswith("CUDA") and row["device"].startswith("GPU-"), row
    path = scene.safetensors(stage.dir / "m.safetensors", tensors)
    assert verify(stage, path).returncode == 1
    assert stage.push(path, 3).returncode == 0
    for worker in workers:
        worker.says("version 3")
    result = verify(stage, path)
    assert result.returncode == 0 and f"{2 * len(tensors)} tensors" in result.stdout, result


def test_verify_and_updates(stage):
    """While an update is under way it waits, and it does not mix two versions."""
    stage.broker()
    worker, = stage.workers(1)
    tensors = whole_checkpoint(stage)
    path = scene.safetensors(stage.dir / "m.safetensors", tensors)
    assert stage.push(path, 3).returncode == 0
    worker.says("version 3")
    trainer = stage.trainer("--first", 4)
    worker.popen.send_signal(signal.SIGSTOP)
    trainer.line()
    _, said = watching(stage)
    said(stage="accepting", version=4)
    process = stage.start("verify", "strew", "verify", path, "--socket", stage.socket())
    time.sleep(0.3)  # it may only fail to find what it looks for
    assert process.popen.poll() is None, process.log
    worker.popen.send_signal(signal.SIGCONT)
    trainer.says("version 4 committed")
    process.end(1)
    assert "begin again" in process.log, process.log
    trainer.end()
    result = verify(stage, path)
    assert result.returncode == 1 and "elements differ" in result.stdout, result


if __name__ == "__main__":
    scene.main(globals())
