"""Trainers that hold memory for a part of their model: one version, made and put part by part."""

import os
import re
import signal
import time

import scene

WAYS = [(gate, apply) for gate in ("held", "live") for apply in ("staged", "direct")]
PARTS = 3


def groups(stage, broker, *args, first=0, size=2):
    """One replica of each gate and apply; returns the workers of all."""
    workers = []
    for number, (gate, apply) in enumerate(WAYS):
        workers += stage.workers(size, "--check", 5, "--gate", gate, "--apply", apply, "--replica",
                                 first + number, *args, broker=broker, prefix=f"r{first + number}-")
    return workers


def publish(trainers, workers, version, parts=PARTS):
    """A version from all trainers, each part when the one before is released everywhere."""
    for part in range(1, parts + 1):
        put(trainers, version, part, parts)
    for trainer in trainers:
        trainer.says(f"version {version} committed")
    for worker in workers:
        worker.says(f"version {version} ok")


def put(trainers, version, part, parts=PARTS):
    for trainer in trainers:
        trainer.line()
    for trainer in trainers:
        trainer.says(f"version {version} part {part} of {parts} released")


def holds_a_part(trainer, share=0.5):
    """It has said how much memory that saves."""
    words = re.search(r"parts in (\d+) bytes of memory, not (\d+)", trainer.log)
    assert words and int(words[1]) < share * int(words[2]), trainer.log


def test_one_broker(stage):
    """Every gate and apply; from memory that is mapped, then from memory that nobody can map."""
    stage.broker()
    workers = groups(stage, "broker")
    version = 0
    for kind in ((), ("--malloc",)):
        trainer = stage.trainer("--seed", 5, "--first", version + 1, "--versions", 2, "--parts",
                                PARTS, *kind, name=f"trainer{version}")
        for _ in range(2):
            version += 1
            publish([trainer], workers, version)
        holds_a_part(trainer)
        assert f"groups={len(WAYS)}" in trainer.end(), trainer.log
    scene.untouched(workers, version)


def test_two_brokers(stage):
    """Workers on both, the trainer beside either; then a version of a trainer that has it all."""
    stage.two_nodes()
    workers = groups(stage, "lead") + groups(stage, "node", first=4)
    version = 0
    for broker in ("lead", "node"):
        trainer = stage.trainer("--seed", 5, "--first", version + 1, "--versions", 2, "--parts",
                                PARTS, broker=broker, name=f"at-{broker}")
        for _ in range(2):
            version += 1
            publish([trainer], workers, version)
        trainer.end()
    trainer = stage.trainer("--seed", 5, "--first", version + 1, broker="node", name="whole")
    scene.publish([trainer], workers, version + 1)
    trainer.end()
    scene.untouched(workers, version + 1)


def test_as_many_as_there_can_be(stage):
    """64 asked for, without a pause, into memory of malloc on another node."""
    stage.two_nodes()
    workers = groups(stage, "node", "--malloc", size=1)
    result = stage.run("trainer", "--config", scene.CONFIGS / "tiny-llama.json", "--model", "m",
                       "--seed", 5, "--versions", 5, "--parts", 64, "--socket",
                       stage.socket("lead"))
    assert result.returncode == 0 and result.stdout.count(" committed ") == 5, result
    assert "part 20 of " in result.stdout, result.stdout
    for worker in workers:
        worker.says("version 5 ok")
    scene.untouched(workers, 5)


def test_ranks(stage):
    """Three ranks beside two brokers put the same parts, of which each has some rows."""
    stage.three_nodes()
    workers = groups(stage, "lead") + stage.workers(4, "--check", 5, "--replica", 4,
                                                     broker="other", prefix="r4-")
    trainers = [stage.trainer("--seed", 5, "--versions", 3, "--parts", PARTS, "--rank", rank,
                              "--ranks", 3, broker=broker, name=f"trainer{rank}")
                for rank, broker in enumerate(("node", "lead", "node"))]
    for version in (1, 2, 3):
        publish(trainers, workers, version)
    for trainer in trainers:
        holds_a_part(trainer)
        trainer.end()
    scene.untouched(workers, 3)


def two_ranks(stage, brokers, *args, first=1, name=""):
    return [stage.trainer("--seed", 5, "--first", first, "--versions", 9, "--parts", PARTS, "--rank",
                          rank, "--ranks", 2, *args, broker=broker, name=f"trainer{rank}{name}")
            for rank, broker in enumerate(brokers)]


def states(stage, *brokers):
    """{apply: {(state, version)}} of all groups."""
    found = {}
    for broker in brokers:
        for group in stage.status(broker)["groups"]:
            found.setdefault(group["apply"], set()).add((group["state"], group["version"]))
    return found


def healed(stage, *brokers):
    """What was written in part has the last version again, from the staged ones beside it."""
    scene.wait_until("all groups as they were", lambda: states(stage, *brokers) == {
        "staged": {("CURRENT", 1)}, "direct": {("CURRENT", 1)}})
    for broker in brokers:
        events = stage.run("strew", "events", "--socket", stage.socket(broker)).stdout
        assert events.count("caught up from") == 2, events


def aborted_between(stage, brokers, end, words, healer):
    """Version 2 ends behind its first part, and nobody waits for its deadline."""
    stage.three_nodes()
    lead = next(process for process in stage.processes if process.name == "lead")
    workers = groups(stage, "lead", size=1) + groups(stage, "other", first=4, size=1)
    first, second = trainers = two_ranks(stage, brokers)
    publish(trainers, workers, 1)
    put(trainers, 2, 1)
    scene.wait_until("the part moved everywhere",
                     lambda: stage.status("lead")["trainers"][0]["stage"] == "putting")
    begun = time.monotonic()
    end(second)
    lead.says("version 2: aborted")
    assert time.monotonic() - begun < 20
    first.line()  # it makes its next part, and learns that nobody takes it
    first.says("version 2 aborted")
    for word in words:
        assert word in first.log, first.log
    healed(stage, "lead", "other")
    publish(healer(first, second), workers, 3)
    assert states(stage, "lead", "other") == {"staged": {("CURRENT", 3)},
                                              "direct": {("CURRENT", 3)}}
    for worker in workers:
        looks = scene.checked(worker)
        assert looks and not any(looks), worker.log


def killed(stage, brokers, words):
    def heal(first, second):
        second.end(-signal.SIGKILL)
        again = two_ranks(stage, (None, brokers[1]), first=3, name="-again")[1]
        scene.wait_until("the parts named again",
                         lambda: stage.status("lead")["trainers"][0]["subsets"] == PARTS)
        return [first, again]
    aborted_between(stage, brokers, lambda second: second.popen.kill(), words, heal)


def test_rank_killed_between_parts(stage):
    """Row 33: the others hear at once which one is gone."""
    killed(stage, ("lead", "lead"), ["trainer rank 1 was lost"])


def test_rank_killed_at_a_node(stage):
    """The same at a broker that joined, which is no root of anything else."""
    killed(stage, ("lead", "node"), ["trainer rank 1 at node", "was lost"])


def test_rank_gives_up(stage):
    """It cannot make its next part, and says so: both ranks hear why, and both go on."""
    def end(second):
        second.popen.stdin.close()
        second.says("trainer rank 1 at node")
        assert "version 2 aborted" in second.log, second.log
        second.popen.stdin = None
        second.end(1)

    def heal(first, second):
        again = two_ranks(stage, (None, "node"), first=3, name="-again")[1]
        scene.wait_until("the parts named again",
                         lambda: stage.status("lead")["trainers"][0]["subsets"] == PARTS)
        return [first, again]

    aborted_between(stage, ("lead", "node"), end,
                    ["trainer rank 1 at node", "gave it up: its standard input has ended"], heal)


def test_broker_killed_between_parts(stage):
    """The next broker knows nothing of it; the trainer declares its parts again, and goes on."""
    launcher = stage.start("run", "strew", "run", "--backend", "host", "--slot", "256K", "--socket",
                           stage.socket(), "--", "sleep", "600")
    scene.wait_until("a broker", lambda: stage.run(
        "strew", "status", "--socket", stage.socket()).returncode == 0)
    workers = groups(stage, "broker", "--reconnect", 60)
    trainer = stage.trainer("--seed", 5, "--versions", 3, "--parts", PARTS, "--reconnect", 60)
    publish([trainer], workers, 1)
    put([trainer], 2, 1)
    os.kill(stage.status()["pid"], signal.SIGKILL)
    trainer.line()
    trainer.says("version 2 lost")
    scene.wait_until("all groups again", lambda: stage.run(
        "strew", "status", "--socket", stage.socket()).returncode == 0 and sum(
            group["present"] for group in stage.status()["groups"]) == len(workers))
    publish([trainer], workers, 3)
    trainer.end(1)
    for worker in workers:
        assert not any(scene.checked(worker)), worker.log
    launcher.stop(128 + signal.SIGTERM)


def test_lead_killed_between_parts(stage):
    """A node ends it by itself; the next lead is told of ranks and parts, and leads the next one."""
    port = scene.free_port()
    lead = stage.broker("lead", "--listen", f"127.0.0.1:{port}")
    stage.broker("node", "--join", f"127.0.0.1:{port}")
    scene.wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    workers = groups(stage, "node")
    trainer = stage.trainer("--seed", 5, "--versions", 3, "--parts", PARTS, broker="node")
    publish([trainer], workers, 1)
    put([trainer], 2, 1)
    lead.popen.kill()
    lead.end(-signal.SIGKILL)
    node = next(process for process in stage.processes if process.name == "node")
    node.says("version 2 ended")
    trainer.line()  # it makes its next part, and learns of it
    trainer.says("version 2 aborted")
    assert "is gone" in trainer.log, trainer.log
    healed(stage, "node")
    stage.broker("next", "--listen", f"127.0.0.1:{port}")
    scene.wait_until("the node at the next lead", lambda: stage.joined("next", 2))
    scene.wait_until("its parts there", lambda: any(
        one["subsets"] == PARTS for one in stage.status("next")["trainers"]))
    publish([trainer], workers, 3)
    trainer.end(1)
    for worker in workers:
        assert not any(scene.checked(worker)), worker.log


if __name__ == "__main__":
    scene.main(globals())
