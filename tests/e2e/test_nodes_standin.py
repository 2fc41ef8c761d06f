"""Several brokers on the cuda backend by NCCL's carrier, on the stand-ins for the driver and for NCCL
(tests/standin): what moves between nodes, and what a communicator's failing does."""

import signal
import time

import scene
from scene import publish, wait_until


RESTART_S = 5  # from a broker's end to its successor, which has joined


def stand_in(stage):
    stage.env["LD_LIBRARY_PATH"] = str(stage.bin.parent / "standin")
    stage.env.pop("STREW_NCCL", None)


def folder(stage, name):
    """Of one broker: its plan of faults, and what it counts."""
    path = stage.dir / f"{name}-standin"
    path.mkdir(exist_ok=True)
    return path


def broker(stage, name, *options, nccl=22809):
    """Brokers stand for nodes of their own, with one GPU for all."""
    return stage.broker(name, *options, backend="cuda", slot="256K",
                        env={"NCCL_HOSTID": name, "STANDIN_DIR": str(folder(stage, name)),
                             "STANDIN_NCCL": str(nccl)})


def nodes(stage, *names):
    """The first is the lead. Returns their folders."""
    stand_in(stage)
    port = scene.free_port()
    for name in names:
        broker(stage, name, "--listen" if name == names[0] else "--join", f"127.0.0.1:{port}")
    wait_until("one epoch", lambda: stage.joined(names[0], len(names)))
    return [folder(stage, name) for name in names]


def group(stage, where, *options, size=2, prefix=""):
    return stage.workers(size, "--device", 0, "--check", 7, *options, broker=where,
                         prefix=f"{where}-{prefix}")


def trainer(stage, *options, **named):
    return stage.trainer("--device", 0, "--seed", 7, *options, **named)


def counts(stage, name):
    return scene.counts(folder(stage, name) / f"{stage.status(name)['pid']}.nccl")


def plan(where, text):
    """Replaces the plan of faults."""
    new = where / "new"
    new.write_text(text)
    new.rename(where / "faults")


def states(stage, name):
    return [(one["state"], one["version"]) for one in stage.status(name)["groups"]]


def test_updates(stage):
    """Three nodes, each kind of gate and apply, GPU memory and ordinary memory."""
    nodes(stage, "lead", "node", "other")
    workers = group(stage, "lead")
    workers += group(stage, "node", "--apply", "direct", "--replica", 1)
    workers += group(stage, "node", "--gate", "live", "--apply", "direct", "--replica", 2, size=1,
                     prefix="live-")
    workers += stage.workers(1, "--malloc", "--check", 7, "--replica", 3, broker="other")
    publisher = trainer(stage, "--versions", 3, broker="lead")
    for version in (1, 2, 3):
        publish([publisher], workers, version)
    publisher.end()
    for name in ("lead", "node", "other"):
        seen = counts(stage, name)
        assert (seen["open.comms"], seen["open.broadcasts"]) == (1, 0), (name, seen)
    scene.untouched(workers, 3)


def test_roots_everywhere(stage):
    """Trainer ranks at both brokers; hashes that begin late must not see the slot's next bucket."""
    lead, node = nodes(stage, "lead", "node")
    workers = group(stage, "lead") + group(stage, "node", "--replica", 1)
    ranks = [trainer(stage, "--rank", rank, "--ranks", 2, "--versions", 3, broker=where,
                     name=f"rank{rank}") for rank, where in enumerate(("lead", "node"))]
    publish(ranks, workers, 1)
    plan(lead, "strew_hash:1+=slow:40")
    publish(ranks, workers, 2)
    plan(lead, "")
    plan(node, "strew_hash:1+=slow:40")
    publish(ranks, workers, 3)
    for rank in ranks:
        rank.end()
    scene.untouched(workers, 3)


def test_memory_is_lent_until_it_is_hashed(stage):
    """Sent from where it lies, nothing is gathered: the hash is then the last to read it."""
    lead, _ = nodes(stage, "lead", "node")
    workers = group(stage, "node", "--apply", "direct")
    publisher = trainer(stage, "--versions", 2, "--parts", 4, "--hash", broker="lead")
    plan(lead, "strew_hash:1+=slow:100")
    scene.publish_in_parts(publisher, workers, 2, 4)
    scene.untouched(workers, 2)


def test_flipped_bit(stage):
    """The kernel that hashes finds what NCCL has changed; no staged group takes it over."""
    lead, _ = nodes(stage, "lead", "node")
    workers = group(stage, "node")
    publisher = trainer(stage, "--versions", 3, broker="lead")
    publish([publisher], workers, 1)
    plan(lead, "ncclBroadcast:2=flip")
    publisher.line()
    publisher.says("version 2 aborted").says("changed on the wire")
    plan(lead, "")
    wait_until("a new communicator", lambda: stage.joined("lead", 2))
    assert states(stage, "node") == [("CURRENT", 1)]
    publish([publisher], workers, 3)
    publisher.end(1)
    scene.untouched(workers, 3)


def test_versions_differ(stage):
    """Refused before a unique id is made, with both versions and what to do."""
    stand_in(stage)
    port = scene.free_port()
    broker(stage, "lead", "--listen", f"127.0.0.1:{port}")
    other = stage.start("other", "strewd", "--socket", stage.socket("other"), "--backend", "cuda",
                        "--join", f"127.0.0.1:{port}",
                        env={"NCCL_HOSTID": "other", "STANDIN_NCCL": "22707"})
    log = other.end(1)
    assert "2.28.9" in log and "2.27.7" in log and "STREW_NCCL" in log, log
    assert "calls.ncclGetUniqueId" not in counts(stage, "lead")


def in_its_place(stage, name, port):
    """A broker that comes where the one called node is; it may have to wait."""
    return stage.start(name, "strewd", "--socket", stage.socket(name), "--backend", "cuda",
                       "--slot", "256K", "--join", f"127.0.0.1:{port}", env={"NCCL_HOSTID": "node"})


def test_one_gpu_twice(stage):
    """Who comes in a place that is taken waits, as its owner may have ended; then it is refused."""
    stand_in(stage)
    port = scene.free_port()
    broker(stage, "lead", "--listen", f"127.0.0.1:{port}")
    first = broker(stage, "node", "--join", f"127.0.0.1:{port}")
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))

    second = in_its_place(stage, "second", port).says("on one GPU of one host").says("trying for 25 s")
    first.stop(-9, signal.SIGKILL)
    wait_until("the second in its place", lambda: stage.joined("second", 1))
    log = in_its_place(stage, "third", port).end(1)
    assert "refuses: brokers" in log and "NCCL_HOSTID" in log, log
    assert second.popen.poll() is None and stage.joined("lead", 2)


def test_successor_of_a_silent_broker(stage):
    """Who was there has vanished without a word: the lead misses it after 15 s, its successor waits for that."""
    stand_in(stage)
    port = scene.free_port()
    broker(stage, "lead", "--listen", f"127.0.0.1:{port}")
    first = broker(stage, "node", "--join", f"127.0.0.1:{port}")
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    first.popen.send_signal(signal.SIGSTOP)
    in_its_place(stage, "second", port).says("joined the lead", 30)
    wait_until("the second in its place", lambda: stage.joined("second", 1) and stage.joined("lead", 2))
    first.stop(-9, signal.SIGKILL)


def test_communicator_cannot_be_made(stage):
    """The first try fails at the joiner; it joins again, and the next one works."""
    stand_in(stage)
    port = scene.free_port()
    broker(stage, "lead", "--listen", f"127.0.0.1:{port}")
    plan(folder(stage, "node"), "ncclCommInitRankConfig:1=fail:3")
    broker(stage, "node", "--join", f"127.0.0.1:{port}")
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    workers = group(stage, "node")
    publisher = trainer(stage, broker="lead")
    publish([publisher], workers, 1)
    publisher.end()
    scene.untouched(workers, 1)


def fails_once(stage, fault):
    """An update fails at the node; the old version stays, and the next one is taken. Which broker is named
    is a matter of time: the lead's own broadcast fails as soon as the node has given up."""
    _, node = nodes(stage, "lead", "node")
    lead, workers = stage.processes[0], group(stage, "node")
    publisher = trainer(stage, "--versions", 2, "--timeout", 3, broker="lead")
    publish([publisher], workers, 1)
    plan(node, fault)
    publisher.line()
    lead.says("model m version 2: aborted")
    publisher.end(1)  # told so, or it did not wait for longer than the update
    plan(node, "")
    wait_until("a new communicator", lambda: stage.joined("lead", 2))
    assert states(stage, "node") == [("CURRENT", 1)]
    publisher = trainer(stage, "--first", 3, broker="lead", name="successor")
    publish([publisher], workers, 3)
    publisher.end()
    assert counts(stage, "node")["open.comms"] == 1, counts(stage, "node")
    scene.untouched(workers, 3)


def test_broadcast_fails(stage):
    fails_once(stage, "ncclBroadcast:3=fail:1")


def test_communicator_fails(stage):
    fails_once(stage, "ncclBroadcast:3=async:6")


def test_broadcast_never_ends(stage):
    """As a peer that stands still: the deadline, and an abort that frees the stream."""
    fails_once(stage, "ncclBroadcast:3=stall")


def test_abort_hangs(stage):
    """The broker ends by itself and is started again; its workers register with the next one."""
    stand_in(stage)
    port = scene.free_port()
    broker(stage, "lead", "--listen", f"127.0.0.1:{port}")
    where = folder(stage, "node")
    run = stage.start("run", "strew", "run", "--backend", "cuda", "--slot", "256K", "--join",
                      f"127.0.0.1:{port}", "--socket", stage.socket("node"), "--", "sleep", "600",
                      env={"NCCL_HOSTID": "node", "STANDIN_DIR": str(where)})
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    workers = group(stage, "node", "--reconnect", 60)
    publisher = trainer(stage, "--versions", 2, "--timeout", 2, broker="lead")
    publish([publisher], workers, 1)
    plan(where, "ncclBroadcast:3=stall ncclCommAbort:1=hang")
    publisher.line()
    publisher.end(1)  # its own wait is over before the abort's deadline
    run.says("the communicator's abort did not return")
    run.says("the broker serves again", stage.within(RESTART_S))
    plan(where, "")
    for worker in workers:
        worker.says("registered again with version 1, ")
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    publisher = trainer(stage, "--first", 3, broker="lead", name="successor")
    publish([publisher], workers, 3)
    publisher.end()
    scene.untouched(workers, 3)


def hasty(stage):
    """One lead, and the port that others join at; communicators have 3 s, calls that hang 7 s more."""
    stand_in(stage)
    stage.strewd = "strewd_hasty"
    port = scene.free_port()
    return broker(stage, "lead", "--listen", f"127.0.0.1:{port}"), port


def join(stage, port, name, *, faults=""):
    """A broker whose end is no failure of the test."""
    plan(folder(stage, name), faults)
    return stage.start(name, "strewd_hasty", "--socket", stage.socket(name), "--backend", "cuda",
                       "--slot", "256K", "--join", f"127.0.0.1:{port}",
                       env={"NCCL_HOSTID": name, "STANDIN_DIR": str(folder(stage, name))})


def test_name_hangs(stage):
    """A lead whose call for a unique id does not return ends, and does not stop all updates."""
    lead, port = hasty(stage)
    plan(folder(stage, "lead"), "ncclGetUniqueId:1=hang")
    join(stage, port, "node")
    assert "a call of the mover has not returned" in lead.end(1, 20)


def test_init_hangs(stage):
    """The joiner that hangs ends by itself; the one that was there is never dropped, and the update that
    waited meanwhile is taken by all groups."""
    lead, port = hasty(stage)
    node = join(stage, port, "node")
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    workers = group(stage, "lead") + group(stage, "node", "--replica", 1)
    publisher = trainer(stage, "--versions", 3, broker="lead")
    publish([publisher], workers, 1)
    other = join(stage, port, "other", faults="ncclCommInitRankConfig:1+=hang")
    lead.says("broker").says("joined")
    wait_until("the joiner", lambda: len(stage.status("lead")["brokers"]) == 3)
    begun = time.monotonic()
    publish([publisher], workers, 2)
    assert time.monotonic() - begun < 3 + 1 + 3
    assert "a call of the mover has not returned" in other.end(1, 20)
    # Its successor is no better.
    stage.start("again", "strewd_hasty", "--socket", stage.socket("again"), "--backend", "cuda",
                "--slot", "256K", "--join", f"127.0.0.1:{port}", "--join-timeout", "1",
                env={"NCCL_HOSTID": "other", "STANDIN_DIR": str(folder(stage, "other"))}).end(4)
    publish([publisher], workers, 3)
    publisher.end()
    assert "is gone" not in node.log and stage.joined("lead", 2)
    scene.untouched(workers, 3)


def test_who_was_there_fails_too(stage):
    """Another's absence makes the call fail of one that was in an epoch: it is not that one's fault, and the
    lead does not wait for its own deadline to say so."""
    lead, port = hasty(stage)
    node = join(stage, port, "node")
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    workers = group(stage, "lead") + group(stage, "node", "--replica", 1)
    publisher = trainer(stage, "--versions", 2, broker="lead")
    publish([publisher], workers, 1)
    plan(folder(stage, "node"), "ncclCommInitRankConfig:1=fail:6")
    other = join(stage, port, "other", faults="ncclCommInitRankConfig:1+=hang")
    lead.says("did not make its communicator in time", 3)
    publish([publisher], workers, 2)
    publisher.end()
    assert "is gone" not in node.log and lead.log.count("ncclCommInitRankConfig: remote process exited") == 1
    other.end(1, 20)
    scene.untouched(workers, 2)


def test_lead_cannot_begin(stage):
    """A lead whose own call fails blames nobody."""
    lead, port = hasty(stage)
    plan(folder(stage, "lead"), "ncclCommInitRankConfig:1=fail:3 ncclCommInitRankConfig:2=fail:3")
    node = join(stage, port, "node")
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2), 10)
    assert "is gone" not in node.log + lead.log, lead.log


def test_one_of_several_hangs(stage):
    """NCCL does not say which: both come back, one at a time, and the one that is well is taken."""
    lead, port = hasty(stage)
    bad = join(stage, port, "bad", faults="ncclCommInitRankConfig:1+=hang")
    good = join(stage, port, "good").says("ready at")
    lead.says("did not make its communicator in time")
    wait_until("the one that is well", lambda: stage.joined("lead", 2) and stage.joined("good", 1), 25)
    bad.end(1, 20)
    assert good.log.count("is gone") == 1


def test_newcomer_hears_of_anothers_end(stage):
    """What NCCL says of another rank is not held against the newcomer that hears it."""
    lead, port = hasty(stage)
    bad = join(stage, port, "bad", faults="ncclCommInitRankConfig:1+=hang")
    join(stage, port, "good", faults="ncclCommInitRankConfig:1=fail:6")
    lead.says("ncclCommInitRankConfig: remote process exited")
    wait_until("the one that is well", lambda: stage.joined("lead", 2) and stage.joined("good", 1), 25)
    assert "it could not make its communicator" not in lead.log, lead.log
    bad.end(1, 20)


def test_abort_hangs_in_the_making(stage):
    """What NCCL cannot take back only the process's end does."""
    lead, port = hasty(stage)
    plan(folder(stage, "lead"), "ncclCommAbort:1=hang")
    node = join(stage, port, "node", faults="ncclCommInitRankConfig:1=hang")
    assert "a communicator that cannot be aborted" in lead.end(1, 20)
    node.end(1, 20)


if __name__ == "__main__":
    scene.main(globals())
