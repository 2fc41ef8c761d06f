"""The cuda backend in real processes on the stand-in driver (tests/standin): what a GPU's failing does.

All memory is a GPU's, as far as strew can tell; faults are given to the broker alone.
"""

import json
import re

import scene
from scene import publish, wait_until


def driver(stage, **settings):
    """All processes find the stand-in; settings are its variables, STANDIN_PEERS and so on."""
    stage.env["LD_LIBRARY_PATH"] = str(stage.bin.parent / "standin")
    stage.env.update({f"STANDIN_{name.upper()}": str(value) for name, value in settings.items()})


def group(stage, *options, size=2, prefix="", model="m", broker="broker"):
    return stage.workers(size, "--device", 0, "--check", 7, *options, prefix=prefix, model=model,
                         broker=broker)


def trainer(stage, *options, **named):
    return stage.trainer("--device", 0, "--seed", 7, *options, **named)


def test_updates(stage):
    driver(stage)
    stage.broker(backend="cuda")
    workers = []
    for i, (gate, apply) in enumerate((("held", "staged"), ("held", "direct"), ("live", "direct"))):
        workers += group(stage, "--gate", gate, "--apply", apply, "--replica", i, prefix=f"r{i}-")
    publisher = trainer(stage, "--versions", 3)
    for version in (1, 2, 3):
        publish([publisher], workers, version)
    publisher.end()
    scene.untouched(workers, 3)


def parts(stage, **settings):
    """Made one after another in the same memory of a GPU."""
    driver(stage)
    stage.broker(backend="cuda", env=settings)
    workers = []
    for i, (gate, apply) in enumerate((("held", "staged"), ("live", "direct"))):
        workers += group(stage, "--gate", gate, "--apply", apply, "--replica", i, prefix=f"r{i}-")
    publisher = trainer(stage, "--versions", 3, "--parts", 4)
    scene.publish_in_parts(publisher, workers, 3, 4)
    scene.untouched(workers, 3)


def test_parts(stage):
    parts(stage)


def test_descriptors_on_their_way(stage):
    """A copy out of pageable memory may return when the bytes are staged: no plan runs before."""
    (stage.dir / "faults").write_text("cuMemcpyHtoD:1+=slow:20")
    parts(stage, STANDIN_DIR=str(stage.dir))


def test_eight_gpus(stage):
    """A trainer rank on each, workers on half of them: a way from each GPU to each of theirs."""
    driver(stage, devices=8)
    stage.broker(backend="cuda")
    workers = [stage.start(f"worker{rank}", "tp_worker", "--config", scene.CONFIGS / "tiny-llama.json",
                           "--model", "m", "--rank", rank, "--size", 4, "--socket", stage.socket(),
                           "--device", 2 * rank, "--check", 7, "--apply", "direct")
               for rank in range(4)]
    for worker in workers:
        worker.says("registered")
    ranks = [stage.trainer("--device", rank, "--seed", 7, "--versions", 2, "--rank", rank, "--ranks", 8,
                           name=f"rank{rank}") for rank in range(8)]
    for version in (1, 2):
        publish(ranks, workers, version)
    for rank in ranks:
        rank.end()
    scene.untouched(workers, 2)


def test_no_memory_for_shadows(stage):
    """Staged apply is refused, with the bytes that are missing; direct apply needs none."""
    driver(stage)
    stage.broker(backend="cuda", env={"STANDIN_MEMORY": str(64 << 10)})
    refused = stage.start("refused", "tp_worker", "--config", scene.CONFIGS / "tiny-llama.json",
                          "--model", "m", "--rank", 0, "--size", 1, "--device", 0, "--socket",
                          stage.socket())
    log = refused.end(1)
    assert "no shadow memory for staged apply" in log and "are free" in log, log
    workers = group(stage, "--apply", "direct")
    publisher = trainer(stage)
    publish([publisher], workers, 1)
    publisher.end()
    scene.untouched(workers, 1)


def run_broker(stage):
    """A supervised broker, whose plan of faults is stage.dir/plan/faults."""
    folder = stage.dir / "plan"
    folder.mkdir()
    stage.start("run", "strew", "run", "--backend", "cuda", "--socket", stage.socket(), "--",
                "sleep", "600", env={"STANDIN_DIR": str(folder)})
    wait_until("a broker", lambda: broker_pid(stage))
    return folder / "faults"


def broker_pid(stage):
    """0: none serves."""
    result = stage.run("strew", "status", "--json", "--socket", stage.socket())
    return json.loads(result.stdout)["pid"] if result.returncode == 0 else 0


def broken(stage, fault, last_word):
    """A GPU that fails in the middle of an update: the broker ends, and its successor heals."""
    driver(stage)
    plan = run_broker(stage)
    staged = group(stage, "--reconnect", 60, "--replica", 0, prefix="s-")
    direct = group(stage, "--reconnect", 60, "--replica", 1, "--apply", "direct", prefix="d-")
    workers = staged + direct
    publisher = trainer(stage, "--versions", 2, "--reconnect", 60, "--timeout", 2)
    publish([publisher], workers, 1)
    first = broker_pid(stage)
    plan.write_text(fault)
    publisher.line()
    wait_until("another broker", lambda: broker_pid(stage) not in (0, first))
    plan.write_text("")
    publisher.end(1)
    launcher = stage.processes[0]
    launcher.says(last_word).says("the broker serves again")
    for worker in workers:
        worker.says("registered again with version 1, ")
    publisher = trainer(stage, "--first", 3, "--versions", 2, name="successor")
    publish([publisher], workers, 3)
    publish([publisher], workers, 4)
    publisher.end()
    scene.untouched(workers, 4)


def test_launch_fails_for_good(stage):
    broken(stage, "cuLaunchKernel:1=sticky:719", "CUDA_ERROR_LAUNCH_FAILED")


def test_kernel_faults(stage):
    """As the first one, but found when the stream is looked at, and after the GPU was woken."""
    broken(stage, "cuLaunchKernel:2=async:700", "CUDA_ERROR_ILLEGAL_ADDRESS")


def test_kernel_never_ends(stage):
    broken(stage, "cuLaunchKernel:2=stall", "its copies cannot be waited for")


def test_call_hangs(stage):
    broken(stage, "cuLaunchKernel:2=hang", "the driver hangs")


def hung(stage, plan):
    """A worker of whose registration a call of the broker's does not return."""
    def calls():
        return counts(stage, plan.parent, "calls.").get("calls.cuMemAlloc", 0)

    before = calls()
    plan.write_text("cuMemAlloc:1=hang")
    worker = stage.start("hung", "tp_worker", "--config", scene.CONFIGS / "tiny-llama.json", "--model",
                         "m", "--rank", 0, "--size", 1, "--replica", 1, "--device", 0, "--socket",
                         stage.socket())
    wait_until("the call", lambda: calls() > before)
    return worker


def test_stopped_while_a_call_hangs(stage):
    """A broker that is told to stop does not wait for ever for a call that does not return."""
    driver(stage)
    stage.strewd = "strewd_hasty"
    broker = stage.broker(backend="cuda", env={"STANDIN_DIR": str(stage.dir)})
    worker = hung(stage, stage.dir / "faults")
    assert "not stopped after 6.0 s" in broker.stop(1)
    worker.end(1)


def test_run_stopped_while_a_call_hangs(stage):
    """strew run hears of that end before it would kill the broker."""
    driver(stage)
    plan = run_broker(stage)
    worker = hung(stage, plan)
    launcher = stage.processes[0]
    log = launcher.stop(128 + 15)
    assert "not stopped after 10.0 s" in log and "is killed" not in log, log
    worker.end(1)


def test_stopped_twice_while_a_kernel_never_ends(stage):
    """Nor does it close in order what a GPU may still use: it ends, and that is a failure."""
    driver(stage)
    stage.strewd = "strewd_hasty"
    broker = stage.broker(backend="cuda", env={"STANDIN_DIR": str(stage.dir)})
    workers = group(stage, "--reconnect", 60)
    publisher = trainer(stage, "--versions", 2)
    publish([publisher], workers, 1)
    (stage.dir / "faults").write_text("cuLaunchKernel:2=stall")
    publisher.line()
    wait_until("the move", lambda: stage.status()["trainers"][0]["stage"] == "moving")
    broker.popen.terminate()
    stage.status()  # it has heard the first one
    log = broker.stop(1)
    assert "not stopped after 6.0 s" in log or "its copies cannot be waited for" in log, log
    publisher.end(1)
    for worker in workers:
        worker.popen.kill()


def test_late_call(stage):
    """Slow is not broken."""
    driver(stage)
    plan = run_broker(stage)
    workers = group(stage)
    publisher = trainer(stage, "--versions", 2)
    publish([publisher], workers, 1)
    first = broker_pid(stage)
    plan.write_text("cuLaunchKernel:1+=late:50 cuEventQuery:1=late:50")
    publish([publisher], workers, 2)
    assert broker_pid(stage) == first
    publisher.end()
    scene.untouched(workers, 2)


def test_shadow_fails_to_be_made(stage):
    """The n-th allocation fails: that group is refused; who was there goes on, and the next is taken."""
    driver(stage)
    plan = run_broker(stage)
    workers = group(stage)
    publisher = trainer(stage, "--versions", 3)
    publish([publisher], workers, 1)
    plan.write_text("cuMemAlloc:1=fail:2")
    refused = stage.start("refused", "tp_worker", "--config", scene.CONFIGS / "tiny-llama.json",
                          "--model", "m", "--rank", 0, "--size", 2, "--replica", 1, "--device", 0,
                          "--socket", stage.socket())
    assert "no shadow memory for staged apply" in refused.end(1), refused.log
    publish([publisher], workers, 2)
    workers += group(stage, "--replica", 1, prefix="next-")
    publish([publisher], workers, 3)
    publisher.end()
    scene.untouched(workers, 3)


def test_worker_fails_for_good(stage):
    """A sticky error in a worker's process: it sits the update out, named; its successor takes part."""
    driver(stage)
    folder = stage.dir / "worker"
    folder.mkdir()
    broker = stage.broker(backend="cuda")
    good = group(stage, size=1, prefix="good-")
    bad = stage.start("bad", "tp_worker", "--config", scene.CONFIGS / "tiny-llama.json", "--model",
                      "m", "--rank", 0, "--size", 1, "--replica", 1, "--device", 0, "--check", 7,
                      "--socket", stage.socket(), env={"STANDIN_DIR": str(folder)})
    bad.says("registered")
    publisher = trainer(stage, "--versions", 3)
    publish([publisher], good + [bad], 1)
    (folder / "faults").write_text("cuPointerGetAttribute:1=sticky:719")
    publisher.line()
    publisher.says("node 0 replica 1: sat out, ")  # STALE, or LOST if it has ended by then
    broker.says("replica 1 part 0: worker 0: cuPointerGetAttribute: CUDA_ERROR_LAUNCH_FAILED")
    for worker in good:
        worker.says("version 2 ok")
    log = bad.end(1)  # its own reading fails
    assert "update sat out, STALE: worker 0: cuPointerGetAttribute: CUDA_ERROR_LAUNCH" in log, log
    broker.says("replica 1 part 0: worker 0 is gone")
    bad = group(stage, "--replica", 1, size=1, prefix="next-")
    publish([publisher], good + bad, 3)
    publisher.end(1)  # a group has sat out
    scene.untouched(good + bad, 3)


def spread(stage, devices, *options, prefix="", model="m", broker="broker"):
    """A group whose ranks lie on those GPUs."""
    workers = [stage.start(f"{prefix}worker{rank}", "tp_worker", "--config",
                           scene.CONFIGS / "tiny-llama.json", "--model", model, "--rank", rank,
                           "--size", len(devices), "--device", device, "--check", 7, "--socket",
                           stage.socket(broker), *options)
               for rank, device in enumerate(devices)]
    for worker in workers:
        worker.says("registered")
    return workers


UUIDS = ["GPU-73747265-7720-7374-616e-642d696e20" + digit for digit in ("30", "31", "32")]


def bounced(log):
    """Who is said to reach whom by host memory."""
    said = re.findall(r"(GPU-\S+) and (GPU-\S+) have no peer access: bytes from the one to the other "
                      r"go through 64.0 MiB of pinned host memory", log)
    assert len(set(said)) == len(said), log
    return {(UUIDS.index(source), UUIDS.index(target)) for source, target in said}


def says_bounced(stage, ways, broker="broker"):
    """The same in status, for scripts and for people."""
    assert stage.status(broker)["bounces"] == [
        {"from": UUIDS[source], "to": UUIDS[target], "bytes": 64 << 20} for source, target in ways]
    text = stage.run("strew", "status", "--socket", stage.socket(broker)).stdout
    assert bounced(text) == set(ways), text


def explain(stage, name, broker="broker"):
    result = stage.run("strew", "explain", name, "--json", "--socket", stage.socket(broker))
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def two_nodes(stage, env=None, of="node", slot="256K", options=()):
    """A lead and a broker that joined it (one of them gets env), both with GPUs, and buckets between them."""
    port = scene.free_port()
    brokers = [stage.broker(name, *place, f"127.0.0.1:{port}", "--device", 0, *options,
                            backend="cuda", slot=slot,
                            env={"NCCL_HOSTID": name, **(env or {} if name == of else {})})
               for name, *place in (("lead", "--listen"), ("node", "--join"))]
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    assert stage.status("lead")["carrier"] == "nccl", stage.status("lead")
    return brokers


def test_bounce(stage):
    """GPUs that do not reach one another: what is copied from one to the other goes by host memory."""
    driver(stage, devices=2, peers=0)
    broker = stage.broker(backend="cuda")
    workers = []
    for i, (gate, apply) in enumerate((("held", "staged"), ("held", "direct"), ("live", "direct"))):
        workers += spread(stage, [0, 1], "--gate", gate, "--apply", apply, "--replica", i,
                          prefix=f"r{i}-")
    assert not bounced(broker.log), broker.log
    publisher = trainer(stage, "--versions", 3)
    for version in (1, 2):
        publish([publisher], workers, version)
    assert bounced(broker.log) == {(0, 1)}, broker.log
    says_bounced(stage, [(0, 1)])
    for row in explain(stage, "model.layers.0.mlp.up_proj.weight"):
        if row["kind"] == "piece":
            assert row["bounce"] == (UUIDS[0] if row["member"] == 1 else ""), row
            assert row["device"] == UUIDS[row["member"]] and row["route"] == "raw", row
            assert row["equal"], row  # read back from GPUs of which one is out of the other's reach
    text = stage.run("strew", "explain", "model.norm.weight", "--socket", stage.socket()).stdout
    assert text.count(f"raw, by pinned host memory from {UUIDS[0]}, ") == 3, text
    publish([publisher], workers, 3)
    publisher.end()
    # The other way, and out of host memory, which every GPU reaches by itself.
    publisher = stage.trainer("--device", 1, "--seed", 7, "--first", 4, name="other")
    publish([publisher], workers, 4)
    publisher.end()
    assert bounced(broker.log) == {(0, 1), (1, 0)}, broker.log
    publisher = stage.trainer("--seed", 7, "--first", 5, name="host")
    publish([publisher], workers, 5)
    publisher.end()
    assert bounced(broker.log) == {(0, 1), (1, 0)}, broker.log
    scene.untouched(workers, 5)


def test_bounce_between_ranks(stage):
    """Trainer ranks on two GPUs of three, of which two reach each other: each by its own way."""
    driver(stage, devices=3, peers="0-1")
    broker = stage.broker(backend="cuda")
    workers = spread(stage, [0, 1, 2, 2])
    ranks = [stage.trainer("--device", device, "--seed", 7, "--rank", rank, "--ranks", 2,
                           "--versions", 2, name=f"rank{rank}")
             for rank, device in enumerate((1, 2))]
    for version in (1, 2):
        publish(ranks, workers, version)
    for rank in ranks:
        rank.end()
    assert bounced(broker.log) == {(1, 2), (2, 0), (2, 1)}, broker.log
    scene.untouched(workers, 2)


def test_bounce_on_two_nodes(stage):
    """Gathered from a GPU that the slots' one does not reach, and scattered into one."""
    driver(stage, devices=2, peers=0)
    lead, node = two_nodes(stage)
    workers = spread(stage, [0, 1], broker="node", prefix="n-")
    workers += spread(stage, [0, 1], "--apply", "direct", "--replica", 1, broker="node",
                      prefix="d-")
    workers += spread(stage, [1, 0], "--replica", 2, broker="lead", prefix="l-")
    publisher = stage.trainer("--device", 1, "--seed", 7, "--versions", 3, "--hash", broker="lead")
    for version in (1, 2):
        publish([publisher], workers, version)
    for row in explain(stage, "lm_head.weight", broker="lead"):
        if row["kind"] == "held":  # to the slots' GPU, by which the other node is served
            assert (row["device"], row["bounce"]) == (UUIDS[1], UUIDS[0]), row
    for row in explain(stage, "lm_head.weight", broker="node"):
        if row["kind"] == "piece":
            assert row["bounce"] == (UUIDS[0] if row["device"] == UUIDS[1] else ""), row
    publish([publisher], workers, 3)
    publisher.end()
    assert bounced(lead.log) == {(1, 0)} and bounced(node.log) == {(0, 1)}, lead.log + node.log
    says_bounced(stage, [(1, 0)], "lead")
    says_bounced(stage, [(0, 1)], "node")
    # Ranks on both: what a broker scatters and what it gathers are different ways.
    ranks = [stage.trainer("--device", 1, "--seed", 7, "--rank", rank, "--ranks", 2, "--first", 4,
                           "--versions", 2, broker=name, name=f"rank{rank}")
             for rank, name in enumerate(("lead", "node"))]
    for version in (4, 5):
        publish(ranks, workers, version)
    for rank in ranks:
        rank.end()
    scene.untouched(workers, 5)


def test_no_way_to_bounce(stage):
    """No pinned memory for a ring: that group sits out, told why, and takes the next version. A GPU that
    the broker does not see is refused: there bouncing is impossible."""
    driver(stage, devices=2, peers=0)
    folder = stage.dir / "plan"
    folder.mkdir()
    broker = stage.broker(backend="cuda", env={"STANDIN_DIR": str(folder)})
    near = spread(stage, [0])
    far = spread(stage, [1], "--replica", 1, prefix="far-")
    (folder / "faults").write_text("cuMemHostAlloc:1=fail:2")
    publisher = trainer(stage, "--versions", 2)
    publisher.line()
    publisher.says("node 0 replica 1: sat out, ")
    near[0].says("version 1 ok")
    broker.says(f"no way from {UUIDS[0]} to {UUIDS[1]}: 64.0 MiB of pinned host memory")
    publish([publisher], near + far, 2)
    publisher.end(1)  # a group has sat out
    scene.untouched(near + far, 2)
    blind = stage.broker("blind", backend="cuda", env={"STANDIN_DEVICES": "1"})
    spread(stage, [0], prefix="seen-", broker="blind")
    refused = stage.start("refused", "tp_worker", "--config", scene.CONFIGS / "tiny-llama.json",
                          "--model", "m", "--rank", 0, "--size", 1, "--replica", 1, "--device", 1,
                          "--socket", stage.socket("blind"))
    assert f"the memory is on {UUIDS[1]}, which this process does not see" in refused.end(1), \
        refused.log
    assert not bounced(blind.log), blind.log


def bounce_stalls(stage, fault):
    """Work on one side of the ring never ends: the deadline, and then the end of the broker."""
    driver(stage, devices=2, peers=0)
    plan = run_broker(stage)
    workers = spread(stage, [1, 1], "--reconnect", 60, "--apply", "direct")
    publisher = trainer(stage, "--versions", 2, "--reconnect", 60, "--timeout", 2)
    publish([publisher], workers, 1)
    first = broker_pid(stage)
    plan.write_text(fault)
    publisher.line()
    wait_until("another broker", lambda: broker_pid(stage) not in (0, first))
    plan.write_text("")
    publisher.end(1)
    stage.processes[0].says("its copies cannot be waited for").says("the broker serves again")
    for worker in workers:
        worker.says("registered again with version 1, ")
    publisher = trainer(stage, "--first", 3, name="successor")
    publish([publisher], workers, 3)
    publisher.end()
    scene.untouched(workers, 3)


def test_bounce_never_packed(stage):
    """Two launches wake the GPUs before."""
    bounce_stalls(stage, "cuLaunchKernel:3=stall")


def test_bounce_never_taken_apart(stage):
    bounce_stalls(stage, "cuLaunchKernel:4=stall")


def test_bounce_from_a_slot_never_taken_apart(stage):
    """A slot is free when it was packed, but nothing is prepared before it has arrived."""
    driver(stage, devices=2, peers=0)
    folder = stage.dir / "plan"
    folder.mkdir()
    # A few buckets: more would wait for the stalled one's buffer, and so would their slots.
    lead, node = two_nodes(stage, env={"STANDIN_DIR": str(folder)}, slot="1M")
    worker, = spread(stage, [1], "--apply", "direct", broker="node")
    publisher = trainer(stage, "--versions", 2, "--timeout", 3, broker="lead")
    publish([publisher], [worker], 1)
    (folder / "faults").write_text("cuLaunchKernel:2=stall")
    publisher.line()
    publisher.end(1)
    assert "its copies cannot be waited for" in node.end(1), node.log
    lead.says("model m version 2 ended while moving")


def test_bounce_behind_a_broadcast(stage):
    """A root stands still, so that a broadcast never ends, and behind it what bounces out of a slot: the
    abort ends both, and both brokers live on."""
    driver(stage, devices=2, peers=0)
    folder = stage.dir / "plan"
    folder.mkdir()
    lead, node = two_nodes(stage, env={"STANDIN_DIR": str(folder)}, of="lead")
    worker, = spread(stage, [1], "--apply", "direct", broker="node")
    publisher = stage.trainer("--device", 1, "--seed", 7, "--versions", 3, "--timeout", 2, broker="lead")
    publish([publisher], [worker], 1)
    (folder / "faults").write_text("cuLaunchKernel:3=stall")  # two wake the GPUs
    publisher.line()
    node.says("model m version 2 ended while moving")
    (folder / "faults").write_text("")
    publisher.end(1)
    lead.says("model m version 2: aborted")
    publisher = stage.trainer("--device", 1, "--seed", 7, "--first", 3, broker="lead", name="successor")
    publish([publisher], [worker], 3)
    publisher.end()
    assert lead.popen.poll() is None and node.popen.poll() is None
    scene.untouched([worker], 3)


def test_bounce_long(stage):
    """More than the ring holds, so that its buffers come round."""
    driver(stage, devices=2, peers=0)
    config = json.loads((scene.CONFIGS / "tiny-llama.json").read_text())
    config.update(hidden_size=1024, intermediate_size=2816, num_attention_heads=16, head_dim=64,
                  num_key_value_heads=4, vocab_size=16000, num_hidden_layers=2)
    path = stage.dir / "config.json"
    path.write_text(json.dumps(config))
    stage.broker(backend="cuda")
    workers = stage.workers(1, "--device", 1, "--check", 7, config=str(path))
    publisher = trainer(stage, config=str(path))
    publish([publisher], workers, 1)
    assert stage.status()["groups"][0]["bytes"] > 100 << 20, stage.status()
    publisher.end()
    scene.untouched(workers, 1)


def counts(stage, folder, kind="open."):
    """What the broker has open at the driver, or has called of it."""
    cells = scene.counts(folder / f"{stage.status()['pid']}.cuda")
    return {name: number for name, number in cells.items() if name.startswith(kind)}


def test_what_is_opened_is_closed(stage):
    """A hundred updates, groups and trainers that come and go leave nothing at the driver."""
    driver(stage)
    folder = stage.dir / "counts"
    folder.mkdir()
    stage.broker(backend="cuda", env={"STANDIN_DIR": str(folder)})
    seen = []
    for life in range(3):
        workers = group(stage, prefix=f"{life}-")
        workers += group(stage, "--replica", 1, "--malloc", prefix=f"{life}-malloc-")
        publisher = trainer(stage, "--first", 34 * life + 1, "--versions", 34, name=f"trainer{life}")
        for _ in range(34):
            publisher.line()
        publisher.end()
        wait_until("the trainer's memory to be closed",
                   lambda: counts(stage, folder)["open.imports"] == 2)
        scene.untouched(workers, 34 * life + 34)
        wait_until("no group", lambda: not stage.status()["groups"])
        seen.append(counts(stage, folder))
    assert seen[0] == seen[1] == seen[2], seen
    assert seen[0]["open.imports"] == 0 and seen[0]["open.registered"] == 0, seen


def test_catching_up(stage):
    """Between GPUs that are not the broker's: from one to another, by the slots' GPU, in no new context."""
    driver(stage, devices=3)
    folder = stage.dir / "counts"
    folder.mkdir()
    stage.broker("broker", "--device", 0, backend="cuda", env={"STANDIN_DIR": str(folder)})
    first = stage.workers(2, "--device", 1, "--check", 7, "--apply", "direct", prefix="first-")
    publisher = trainer(stage, "--versions", 1)
    publish([publisher], first, 1)
    publisher.end()
    before = counts(stage, folder)
    for replica, options in enumerate((("--apply", "direct"), ("--gate", "live", "--apply", "direct"))):
        group = stage.workers(2, "--device", 2, "--check", 7, "--replica", replica + 1, *options,
                              prefix=f"{replica}-")
        for worker in group:
            worker.says("version 1 ok")
        assert counts(stage, folder)["open.contexts"] == before["open.contexts"]
        scene.untouched(group, 1)
    staged = stage.workers(4, "--device", 2, "--check", 7, "--replica", 3, prefix="staged-")
    for worker in staged:
        worker.says("version 1 ok")
    scene.untouched(staged + first, 1)
    wait_until("no group", lambda: not stage.status()["groups"])
    after = counts(stage, folder)
    assert after["open.imports"] == 0, after


def catch_up_between(stage, peers, devices):
    """Groups on those GPUs, each from one on the GPU before, at a broker whose slots are on GPU 0."""
    driver(stage, devices=3, peers=peers)
    broker = stage.broker("broker", "--device", 0, backend="cuda")
    workers = spread(stage, [devices[0]] * 2, "--apply", "direct", prefix="first-")
    publisher = stage.trainer("--seed", 7, "--versions", 1)  # out of host memory
    publish([publisher], workers, 1)
    publisher.end()
    options = (("--apply", "direct"), ("--gate", "live", "--apply", "direct"), ())
    for replica, device in enumerate(devices[1:]):
        group = spread(stage, [device] * 4, *options[replica], "--replica", replica + 1,
                       prefix=f"{replica}-")
        for worker in group:
            worker.says("version 1 ok")
        workers += group
    scene.untouched(workers, 1)
    return broker


def test_catching_up_bounces(stage):
    """From GPU to GPU of which none reaches another, the slots' or not."""
    broker = catch_up_between(stage, 0, (1, 2, 0, 2))
    assert bounced(broker.log) == {(1, 2), (2, 0), (0, 2)}, broker.log
    says_bounced(stage, [(1, 2), (2, 0), (0, 2)])


def test_catching_up_past_the_slots(stage):
    """Two that reach each other, and not the slots' GPU: nothing goes by host memory, or by that one."""
    broker = catch_up_between(stage, "1-2", (1, 2, 1))
    assert not bounced(broker.log), broker.log


def test_catching_up_fails_for_good(stage):
    """The GPU fails while one copies: the broker ends, and its successor goes on with it."""
    driver(stage)
    plan = run_broker(stage)
    first = group(stage, "--reconnect", 60, prefix="first-")
    publisher = trainer(stage, "--versions", 1)
    publish([publisher], first, 1)
    publisher.end()
    broker = broker_pid(stage)
    plan.write_text("cuLaunchKernel:1=sticky:719")
    late = group(stage, "--reconnect", 60, "--replica", 1, "--apply", "direct", prefix="late-")
    wait_until("another broker", lambda: broker_pid(stage) not in (0, broker))
    plan.write_text("")
    stage.processes[0].says("CUDA_ERROR_LAUNCH_FAILED").says("the broker serves again")
    for worker in first:
        worker.says("registered again with version 1, ")
    for worker in late:
        worker.says("version 1 ok")
    scene.untouched(first + late, 1)


if __name__ == "__main__":
    scene.main(globals())
