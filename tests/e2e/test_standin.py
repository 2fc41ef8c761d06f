"""The cuda backend in real processes on the stand-in driver (tests/standin): what a GPU's failing does.

All memory is a GPU's, as far as strew can tell; faults are given to the broker alone.
"""

import json
import struct

import scene
from scene import publish, wait_until


def driver(stage, **settings):
    """All processes find the stand-in; settings are its variables, STANDIN_PEERS and so on."""
    stage.env["LD_LIBRARY_PATH"] = str(stage.bin.parent / "standin")
    stage.env.update({f"STANDIN_{name.upper()}": str(value) for name, value in settings.items()})


def group(stage, *options, size=2, prefix="", model="m"):
    return stage.workers(size, "--device", 0, "--check", 7, *options, prefix=prefix, model=model)


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


def test_no_peer_access(stage):
    """Two GPUs that do not reach one another: refused by both names, and the others are served."""
    driver(stage, devices=2, peers=0)
    stage.broker(backend="cuda")
    workers = group(stage)
    refused = stage.start("refused", "tp_worker", "--config", scene.CONFIGS / "tiny-llama.json",
                          "--model", "m", "--rank", 0, "--size", 1, "--replica", 1, "--device", 1,
                          "--socket", stage.socket())
    assert "has no peer access to GPU-" in refused.end(1), refused.log
    publisher = trainer(stage)
    publish([publisher], workers, 1)
    publisher.end()
    scene.untouched(workers, 1)


def counts(stage, folder):
    """What the broker has open at the driver."""
    raw = (folder / f"{stage.status()['pid']}.cuda").read_bytes()
    cells = {}
    for at in range(0, len(raw), 64):
        name = raw[at:at + 56].split(b"\0")[0].decode()
        if name.startswith("open."):
            cells[name], = struct.unpack("<Q", raw[at + 56:at + 64])
    return cells


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
        assert counts(stage, folder)["open.imports"] == 2, counts(stage, folder)
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
