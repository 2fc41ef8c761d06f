"""Finding out: strew doctor, strew status --watch."""

import json
import os
import signal
import stat

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
            return all(value in row[key] if isinstance(value, str) else row[key] == value
                       for key, value in wanted.items())

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
    said(stage="idle", committed=1)
    worker.popen.send_signal(signal.SIGSTOP)
    trainer = stage.trainer("--first", 2)
    trainer.line()
    said(stage="accepting", version=2, committed=1, awaited=f"process {worker.pid} to look")
    worker.popen.send_signal(signal.SIGCONT)
    trainer.end()
    said(stage="idle", version=2, committed=2)
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
    at_lead(stage="idle", committed=1)
    at_node(stage="idle", committed=1)


def test_watch_usage(stage):
    result = stage.run("strew", "status", "--watch", "--socket", stage.socket("nobody"))
    assert result.returncode == 4 and "no broker serves" in result.stderr, result


if __name__ == "__main__":
    scene.main(globals())
