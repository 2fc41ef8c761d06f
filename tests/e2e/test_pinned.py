"""Shadows in pinned host memory (strewd --shadow host) on the cuda backend, by the stand-in driver."""

import re

import scene
from scene import CONFIGS, publish, wait_until
from test_standin import counts, driver, group, spread, trainer, two_nodes


def test_updates(stage):
    """Shadows in pinned host memory: filled by every way, committed by copies from the host."""
    driver(stage, devices=2)
    folder = stage.dir / "counts"
    folder.mkdir()
    stage.broker("broker", "--shadow", "host", backend="cuda", env={"STANDIN_DIR": str(folder)})
    first = group(stage, "--gate", "held", prefix="held-")
    host = counts(stage, folder)["open.host"]
    workers = first + group(stage, "--gate", "live", "--replica", 1, prefix="live-")
    assert counts(stage, folder)["open.host"] == host + 2  # one a worker
    workers += spread(stage, [1, 0], "--replica", 2, prefix="two-")
    publisher = trainer(stage, "--versions", 3)
    for version in (1, 2):
        publish([publisher], workers, version)
    assert all(one["shadow_bytes"] for one in stage.status()["groups"]), stage.status()["groups"]
    late = group(stage, "--replica", 3, prefix="late-")  # or catches up, into its shadow
    publish([publisher], workers + late, 3)
    publisher.end()
    scene.untouched(workers + late, 3)
    wait_until("no group", lambda: not stage.status()["groups"])
    assert counts(stage, folder)["open.host"] == host - 2, counts(stage, folder)


def test_two_nodes(stage):
    """Out of slots, with hashes, and in parts."""
    driver(stage)
    two_nodes(stage, options=("--shadow", "host"))
    workers = group(stage, broker="node", prefix="n-")
    workers += group(stage, "--replica", 1, "--gate", "live", broker="lead", prefix="l-")
    publisher = trainer(stage, "--versions", 2, broker="lead")
    for version in (1, 2):
        publish([publisher], workers, version)
    publisher.end()
    publisher = trainer(stage, "--first", 3, "--parts", 2, broker="lead", name="parts")
    for part in (1, 2):
        publisher.line()
        publisher.says(f"version 3 part {part} of 2 released")
    publisher.says("version 3 committed")
    publisher.end()
    scene.untouched(workers, 3)


def test_none_to_be_had(stage):
    """The n-th pinned allocation fails: that worker is refused, and nothing of it is left; who was
    there goes on, and the next is taken."""
    driver(stage)
    folder = stage.dir / "plan"
    folder.mkdir()
    stage.broker("broker", "--shadow", "host", backend="cuda", env={"STANDIN_DIR": str(folder)})
    workers = group(stage)
    publisher = trainer(stage, "--versions", 3)
    publish([publisher], workers, 1)
    before = counts(stage, folder)
    (folder / "faults").write_text("cuMemHostAlloc:2=fail:2")
    refused = [stage.start(f"refused{rank}", "tp_worker", "--config",
                           CONFIGS / "tiny-llama.json", "--model", "m", "--rank", rank,
                           "--size", 2, "--replica", 1, "--device", 0, "--socket", stage.socket())
               for rank in range(2)]
    wait_until("a refused worker", lambda: any(one.popen.poll() for one in refused))
    failed, other = sorted(refused, key=lambda one: one.popen.poll() is None)
    assert re.search(r"no shadow memory for staged apply .*strewd --shadow\): .* of pinned host memory: "
                     r"cuMemHostAlloc: CUDA_ERROR_OUT_OF_MEMORY", failed.end(1)), failed.log
    other.says("registered").stop()
    wait_until("one group", lambda: len(stage.status()["groups"]) == 1)
    publish([publisher], workers, 2)
    assert counts(stage, folder) == before, (before, counts(stage, folder))
    workers += group(stage, "--replica", 1, prefix="next-")
    publish([publisher], workers, 3)
    publisher.end()
    scene.untouched(workers, 3)


if __name__ == "__main__":
    scene.main(globals())
