"""Bad input: the exit code, one sentence that names the thing, and workers' memory untouched."""

import json
import os
import signal
import socket
import time

import scene
from scene import CONFIGS, publish, safetensors

CONFIG = "tiny-bert"


def bert(path=CONFIGS / f"{CONFIG}.json"):
    """Every tensor of a BERT, the small one by default, as {name: (dtype, shape, bytes)}."""
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": [config["vocab_size"], hidden],
        "embeddings.position_embeddings.weight": [config["max_position_embeddings"], hidden],
        "embeddings.token_type_embeddings.weight": [config["type_vocab_size"], hidden],
        "embeddings.LayerNorm.weight": [hidden],
        "embeddings.LayerNorm.bias": [hidden],
        "pooler.dense.weight": [hidden, hidden],
        "pooler.dense.bias": [hidden],
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            shapes[f"{prefix}attention.self.{name}.weight"] = [hidden, hidden]
            shapes[f"{prefix}attention.self.{name}.bias"] = [hidden]
        for name, rows, cols in (("attention.output", hidden, hidden),
                                 ("intermediate", inner, hidden), ("output", hidden, inner)):
            shapes[f"{prefix}{name}.dense.weight"] = [rows, cols]
            shapes[f"{prefix}{name}.dense.bias"] = [rows]
        for name in ("attention.output", "output"):
            shapes[f"{prefix}{name}.LayerNorm.weight"] = [hidden]
            shapes[f"{prefix}{name}.LayerNorm.bias"] = [hidden]
    tensors = {}
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[name] = ("F32", shape, os.urandom(4 * count))
    return tensors


def refused(stage, result, code, *names):
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    for name in names:
        assert name in lines[0], (name, lines[0])


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_files_that_break_the_format(stage):
    """A table of broken files; the broker never hears of them."""
    stage.broker()
    workers = stage.workers(2, config=CONFIG)
    x = {"x": ("F32", [2], bytes(8))}
    path = stage.dir / "bad.safetensors"
    table = (
        ({"length": 10 ** 12}, "at most 100000000"),
        ({"length": 4096}, "truncated"),
        ({"header": "{]"}, "not valid JSON"),
        ({"header": "[" * 100000}, "depth"),
        ({"header": json.dumps({"x": entry("F32", [2], 0, 4)})}, '"x": data_offsets give it 4'),
        ({"header": json.dumps({"x": entry("F32", [4], 0, 16)})}, '"x": data_offsets [0, 16] lie'),
        ({"header": json.dumps({"x": entry("F32", [2], 0, 8), "y": entry("F32", [1], 4, 8)})},
         '"y" overlaps "x"'),
        ({"header": json.dumps({"x": entry("F32", [1], 0, 4)})}, "belong to no tensor"),
        ({"header": json.dumps({"x": entry("F31", [2], 0, 8)})}, 'unknown dtype "F31"'),
        ({"header": json.dumps({"x": entry("F32", [-2], 0, 8)})}, '"x": a dimension'),
        ({"data": bytes(5)}, "lie outside the file"),
        ({"header": "{}", "data": b""}, "no data"),
    )
    for change, names in table:
        safetensors(path, x, **change)
        refused(stage, stage.push(path, 1), 1, "bad.safetensors", names)
    refused(stage, stage.push(stage.dir / "absent.safetensors", 1), 1, "absent.safetensors",
            "No such file")
    refused(stage, stage.push("/dev/null", 1), 1, "/dev/null", "not a regular file")
    path.write_bytes(b"")
    refused(stage, stage.push(path, 1), 1, "bad.safetensors", "too few")
    assert stage.status()["updates"] == 0
    scene.untouched(workers)


def test_tensors_that_do_not_fit(stage):
    """Shape, dtype and coverage against the layout; then the right file is still taken."""
    stage.broker()
    workers = stage.workers(2, "--dump", stage.dir / "dump", config=CONFIG)
    right = bert()
    path = stage.dir / "m.safetensors"
    name = "encoder.layer.1.intermediate.dense.weight"
    dtype, shape, content = right[name]
    fewer = dict(right)
    del fewer[name]
    for tensors, names in (
            ({**right, name: (dtype, shape[::-1], content)}, name),
            ({**right, name: (dtype, [shape[0] * shape[1]], content)}, name),
            ({**right, name: ("I32", shape, content)}, name),
            ({**right, name: ("BF16", shape, content[:len(content) // 2])}, name),
            (fewer, name)):
        result = stage.push(safetensors(path, tensors), 1)
        refused(stage, result, 1, names)
        group = stage.status()["groups"][0]
        assert group["version"] == 0, group
    for worker in workers:
        assert "version 1 ok" not in worker.log
    result = stage.push(safetensors(path, {**right, "nobody.wants.it": ("U8", [3], b"abc")}), 1)
    assert result.returncode == 0 and result.stderr == "", result
    assert "1 of 40 tensors" in result.stdout, result.stdout
    for worker in workers:
        worker.says("version 1 ok")
    # What went wrong before left the memory as it was: each refusal was looked at (see "kept").
    for worker in workers:
        worker.stop()
        assert not any(scene.checked(worker)), worker.log


def test_partial_direct(stage):
    partial_test(stage, "direct")


def test_partial_staged(stage):
    partial_test(stage, "staged")


def partial_test(stage, apply):
    """With --partial the uncovered parameters keep their values, byte for byte."""
    stage.broker()
    dumps = [stage.dir / f"dump{rank}" for rank in range(2)]
    workers = [stage.start(f"worker{rank}", "tp_worker", "--config", CONFIGS / f"{CONFIG}.json",
                           "--model", "m", "--rank", rank, "--size", 2, "--versions", 1,
                           "--socket", stage.socket(), "--dump", dumps[rank], "--apply", apply)
               for rank in range(2)]
    for worker in workers:
        worker.says("registered")
    name = "pooler.dense.weight"
    tensors = {name: bert()[name]}
    path = safetensors(stage.dir / "part.safetensors", tensors)
    refused(stage, stage.push(path, 1), 1, "parameter embeddings.")
    result = stage.push(path, 1, "--partial")
    assert result.returncode == 0, result.stderr
    for worker, dump in zip(workers, dumps):
        worker.end()
        memory = dump.read_bytes()
        index = json.loads((stage.dir / f"{dump.name}.json").read_text())
        for number, parameter in enumerate(index["parameters"]):
            after = index["parameters"][number + 1:number + 2]
            have = memory[parameter["offset"]:after[0]["offset"] if after else len(memory)]
            want = tensors[name][2] if parameter["name"] == name else bytes([0xa5]) * len(have)
            assert have == want, parameter["name"]


def test_version_that_is_not_above(stage):
    stage.broker()
    workers = stage.workers(2, "--check", 1, config=CONFIG)
    trainer = stage.trainer("--seed", 1, "--first", 5, config=CONFIG)
    publish([trainer], workers, 5)
    trainer.end()
    path = safetensors(stage.dir / "m.safetensors", bert())
    for version in (5, 4, 1):
        result = stage.push(path, version)
        refused(stage, result, 1, f"version {version} of m ", "5")
        assert "read " not in result.stdout, result.stdout
    scene.untouched(workers, 5)


def test_no_worker_for_the_model(stage):
    stage.broker()
    workers = stage.workers(2, config=CONFIG)
    path = safetensors(stage.dir / "m.safetensors", bert())
    result = stage.push(path, 1, model="another")
    refused(stage, result, 1, "version 1 of another ", "no worker of this model",
            "registered here: m")
    assert "read " not in result.stdout, result.stdout
    scene.untouched(workers)
    scene.wait_until("no group", lambda: not stage.status()["groups"])
    refused(stage, stage.push(path, 1), 1, "version 1 of m ", "no worker is registered here")


def test_no_worker_for_the_model_on_two_nodes(stage):
    """The other node may have one, which only an update finds out."""
    stage.two_nodes()
    path = safetensors(stage.dir / "m.safetensors", bert())
    workers = stage.workers(2, config=CONFIG, broker="lead")
    for broker in ("lead", "node"):
        refused(stage, stage.push(path, 1, model="another", broker=broker), 1,
                "version 1 of another ", "no worker of this model",
                "registered here: m" if broker == "lead" else "no worker is registered here")
    scene.untouched(workers)


def test_partial_of_nothing(stage):
    """With --partial too, some tensor must be a worker's: no version is spent on none of them."""
    lead, _ = stage.two_nodes()
    path = safetensors(stage.dir / "m.safetensors", {"nobody.wants.it": ("U8", [3], b"abc")})
    workers = stage.workers(2, config=CONFIG, broker="lead")
    # On another node there might be a worker that wants it.
    refused(stage, stage.push(path, 1, "--partial", broker="lead"), 1, "version 1 of m ",
            "has changed nothing")
    assert stage.status("lead")["groups"][0]["version"] == 1
    for worker in workers:
        worker.stop()
    lead.stop()
    stage.broker()
    workers = stage.workers(2, config=CONFIG, prefix="b-")
    result = stage.push(path, 1, "--partial")
    refused(stage, result, 1, "no worker of m wants any", "1 tensors")
    assert "read " not in result.stdout, result.stdout
    assert stage.status()["updates"] == 0
    scene.untouched(workers)


def test_push_says_what_it_waited_for(stage):
    """Past its deadline: which update is in the way, and whom that waits for."""
    stage.broker()
    _, stopped = stage.workers(2)
    stage.workers(1, model="b", prefix="b-")
    trainer = stage.trainer("--seed", 1)
    stopped.popen.send_signal(signal.SIGSTOP)
    trainer.line()
    scene.wait_until("version 1 under way", lambda: stage.run(
        "strew", "status", "--socket", stage.socket()).stdout.count("accepting"))
    path = safetensors(stage.dir / "m.safetensors", bert())
    refused(stage, stage.push(path, 1, "--timeout", 1, model="b"), 1, "version 1 of b ", "deadline",
            "; version 1 of m: accepting, waits for ", f"process {stopped.pid} ")
    stopped.popen.send_signal(signal.SIGCONT)
    trainer.says("version 1 committed")


def test_push_beside_a_lead_that_is_silent(stage):
    lead, _ = stage.two_nodes()
    workers = stage.workers(2, broker="node", config=CONFIG)
    path = safetensors(stage.dir / "m.safetensors", bert())
    lead.popen.send_signal(signal.SIGSTOP)
    refused(stage, stage.push(path, 1, "--timeout", 1, broker="node"), 1,
            "did not answer in time; no update is under way here: the lead")
    lead.popen.send_signal(signal.SIGCONT)
    scene.untouched(workers)


def test_group_that_is_not_complete(stage):
    """One of two members is missing: the version goes nowhere, and the one there is untouched."""
    stage.broker()
    worker = stage.start("worker0", "tp_worker", "--config", CONFIGS / f"{CONFIG}.json", "--model",
                         "m", "--rank", 0, "--size", 2, "--socket", stage.socket())
    worker.says("registered")
    path = safetensors(stage.dir / "m.safetensors", bert())
    refused(stage, stage.push(path, 1), 1, "version 1")
    scene.untouched([worker])


def test_sockets_that_nobody_answers(stage):
    """Nothing there, a dead socket, one that is silent, no socket: exit 4, path named."""
    path = safetensors(stage.dir / "m.safetensors", bert())
    config = CONFIGS / f"{CONFIG}.json"
    dead, silent, plain = (stage.dir / name for name in ("dead.sock", "silent.sock", "plain"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dead))
    plain.write_text("not a socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(silent))
        server.listen()
        for where in (stage.dir / "nothing.sock", dead, plain):
            refused(stage, stage.run("strew", "status", "--socket", where), 4, str(where))
            refused(stage, stage.run("strew", "push", path, "--model", "m", "--version", 1,
                                     "--socket", where), 4, str(where))
            result = stage.run("tp_worker", "--config", config, "--model", "m", "--socket", where)
            assert result.returncode == 1 and str(where) in result.stderr, result
        refused(stage, stage.run("strew", "push", path, "--model", "m", "--version", 1, "--socket",
                                 silent, "--timeout", 1), 4, str(silent))


def test_broker_sockets(stage):
    """A live socket is refused, a dead one is replaced, anything else is left alone."""
    stage.broker()
    result = stage.run("strewd", "--backend", "host", "--socket", stage.socket())
    refused(stage, result, 1, str(stage.socket()))
    assert stage.status()["backend"] == "host"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(stage.socket("dead")))
    stage.broker("dead")
    assert stage.status("dead")["groups"] == []
    plain = stage.dir / "plain"
    plain.write_text("not a socket")
    refused(stage, stage.run("strewd", "--backend", "host", "--socket", plain), 1, str(plain))
    assert plain.read_text() == "not a socket"
    missing = "/nonexistent-folder/deeper/broker.sock"
    if os.access("/", os.W_OK):
        missing = "/proc/broker.sock"
    refused(stage, stage.run("strewd", "--backend", "host", "--socket", missing), 1, missing)


def test_addresses(stage):
    """A lead that cannot be reached: 4. Beyond loopback there is no serving without a key."""
    port = scene.free_port()
    path = stage.socket("joiner")
    result = stage.run("strewd", "--backend", "host", "--socket", path, "--join",
                       f"127.0.0.1:{port}", "--join-timeout", 1)
    assert result.returncode == 4 and f"127.0.0.1:{port}" in result.stderr, result
    for option in ("--listen", "--join"):
        for address in ("nonsense", "127.0.0.1:x", "127.0.0.1:65536", ":1", "host:"):
            result = stage.run("strewd", "--backend", "host", "--socket", path, option, address)
            refused(stage, result, 2, f"{option}: {address} is no address", "--help")
    for option in ("--listen", "--join"):
        result = stage.run("strewd", "--backend", "host", "--socket", path, option,
                           f"192.0.2.1:{port}", "--join-timeout", 1)
        assert result.returncode in (1, 2, 4) and "192.0.2.1" in result.stderr, result
        assert "loopback" in result.stderr, result.stderr
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        result = stage.run("strewd", "--backend", "host", "--socket", path, "--listen",
                           f"127.0.0.1:{port}")
        assert result.returncode == 1 and str(port) in result.stderr, result
        said = result.stderr.splitlines()
        assert "is in use: waits for up to 10 s" in said[0], said
        assert "Address already in use: choose another port" in said[-1], said


def test_join_timeout(stage):
    """It is tried until then, not until the last growing delay would end behind it."""
    argv = ("strewd", "--backend", "host", "--socket", stage.socket(), "--join",
            f"127.0.0.1:{scene.free_port()}", "--join-timeout")
    for seconds in (0, 1):
        begun = time.monotonic()
        result = stage.run(*argv, seconds)
        took = time.monotonic() - begun
        assert result.returncode == 4 and took >= seconds, (took, result)
        assert took < stage.within(seconds + 1), (took, result)
    broker = stage.broker("alone", "--join-timeout", 1)
    assert "--join-timeout does nothing without --join" in broker.log, broker.log


def test_keys(stage):
    """Key files that others may read, or that hold no key; a lead beyond loopback that has one."""
    path = str(stage.dir / "key")
    with open(path, "wb") as file:
        file.write(os.urandom(32))
    os.chmod(path, 0o640)
    start = ("strewd", "--backend", "host", "--socket", stage.socket(), "--key-file", path)
    refused(stage, stage.run(*start), 1, "chmod 600")
    os.chmod(path, 0o600)
    refused(stage, stage.run(*start[:-1], path + "x"), 1, "No such file")
    with open(path, "wb") as file:
        file.write(os.urandom(31))
    refused(stage, stage.run(*start), 1, "fewer than 32 bytes")
    with open(path, "wb") as file:
        file.write(os.urandom(32))
    port = scene.free_port()
    result = stage.run("strew", "run", "--backend", "host", "--listen", f"0.0.0.0:{port}",
                       "--key-file", path, "--", "true")
    assert result.returncode == 0 and "may join" in result.stderr, result


def test_another_user(stage):
    """Who is neither the broker's user nor root cannot reach its socket, and is hung up on where he can, even
    in the socket's group: one user has a broker. Root and the user himself are served."""
    theirs, stranger = 65534, 65533
    broker = stage.broker("theirs/broker", through=stage.other_user("theirs", theirs))
    path = stage.socket("theirs/broker")

    def ask(uid, gid, program="strew", *arguments):
        return stage.run(*scene.as_user(uid, gid), stage.bin / program, *(arguments or ["status"]),
                         "--socket", path)
    refused(stage, ask(stranger, stranger), 4, "Permission denied")
    refused(stage, ask(stranger, theirs), 4, "Permission denied")
    assert "refused process" not in broker.log, broker.log  # they did not get that far
    os.chmod(stage.dir / "theirs", 0o711)
    os.chmod(path, 0o666)
    options = ["--config", CONFIGS / f"{CONFIG}.json", "--model", "m"]
    for number, (gid, program, arguments, code) in enumerate((
            (stranger, "strew", [], 4), (theirs, "strew", [], 4),
            (theirs, "tp_worker", options, 1), (theirs, "trainer", options, 1))):
        result = ask(stranger, gid, program, *arguments)
        assert result.returncode == code and str(path) in result.stderr, result
        scene.wait_until("a word of it in the log", lambda n=number: broker.log.count(
            f" of uid {stranger}") == n + 1)
    assert broker.log.count("refused process ") == 4, broker.log
    assert ask(theirs, theirs).returncode == 0 and stage.status("theirs/broker")["groups"] == []


def test_any_user_joins_without_a_key(stage):
    """Not guaranteed: a lead without a key takes whoever comes from its own host; with one it does not."""
    user = stage.other_user("theirs")
    key = stage.dir / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    port = scene.free_port()
    stage.broker("lead", "--listen", f"127.0.0.1:{port}")
    stage.broker("theirs/broker", "--join", f"127.0.0.1:{port}", through=user)
    scene.wait_until("both in one epoch", lambda: stage.joined("lead", 2))
    port = scene.free_port()
    stage.broker("careful", "--listen", f"127.0.0.1:{port}", "--key-file", key)
    options = ["--backend", "host", "--socket", stage.socket("theirs/second"), "--join",
               f"127.0.0.1:{port}", "--join-timeout", 5]
    result = stage.run(*user, stage.bin / "strewd", *options)
    assert result.returncode == 1 and "--key-file" in result.stderr, result
    result = stage.run(*user, stage.bin / "strewd", *options, "--key-file", key)
    assert result.returncode == 1 and "Permission denied" in result.stderr, result
    assert len(stage.status("careful")["brokers"]) == 1


def test_cuda_without_a_driver(stage):
    if os.path.exists("/dev/nvidia0"):
        raise scene.Skip("there is a GPU here")
    result = stage.run("strewd", "--backend", "cuda", "--socket", stage.socket())
    refused(stage, result, 3, "cuda")
    result = stage.run("strew", "run", "--backend", "cuda", "--", "true")
    assert result.returncode == 3 and "libcuda" in result.stderr, result


if __name__ == "__main__":
    scene.main(globals())
