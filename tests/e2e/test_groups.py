"""Groups, models and trainer ranks: who shares what, and every byte of it."""

import ctypes
import json
import os
import random
import signal
import time

import scene
from scene import checked, publish


def test_two_models_at_once(stage):
    """Two trainers and two groups share a broker; neither sees the other's values."""
    stage.broker()
    groups, trainers = [], []
    for model, config, seed in (("llama", "tiny-llama", 3), ("qwen", "tiny-qwen2-tied", 4)):
        groups.append(stage.workers(2, "--check", seed, "--versions", 3, config=config,
                                    model=model, prefix=f"{model}-"))
        trainers.append(stage.trainer("--seed", seed, "--versions", 3, config=config, model=model,
                                      name=f"{model}-trainer"))
    for version in (1, 2, 3):
        for trainer in trainers:
            trainer.line()
        for trainer, workers in zip(trainers, groups):
            trainer.says(f"version {version} committed")
            for worker in workers:
                worker.says(f"version {version} ok")
    for process in trainers + groups[0] + groups[1]:
        process.end()
    for worker in groups[0] + groups[1]:
        assert checked(worker) == [0, 0, 0], worker.log


def test_two_replicas(stage):
    """Two copies of a model on two nodes with different gates and applies get the same bytes."""
    stage.two_nodes()
    workers = stage.workers(2, "--check", 5, "--replica", 0, broker="lead", prefix="a-")
    workers += stage.workers(4, "--check", 5, "--replica", 1, "--gate", "live", "--apply",
                             "direct", broker="node", prefix="b-")
    trainer = stage.trainer("--seed", 5, "--versions", 2, broker="lead")
    publish([trainer], workers, 1)
    plans = [stage.status(name)["plans"] for name in ("lead", "node")]
    assert all(plans), plans
    publish([trainer], workers, 2)
    assert [stage.status(name)["plans"] for name in ("lead", "node")] == plans  # none anew
    assert "groups=2" in trainer.end(), trainer.log
    scene.untouched(workers, 2)


def test_ordinary_memory(stage):
    """Memory of malloc, which nobody can map: on both nodes, on both sides, beside memory that can."""
    stage.two_nodes()
    workers = stage.workers(2, "--check", 5, "--replica", 0, "--malloc", broker="lead",
                            prefix="a-")
    workers += stage.workers(2, "--check", 5, "--replica", 1, "--malloc", "--gate", "live",
                             "--apply", "direct", broker="node", prefix="b-")
    workers += stage.workers(2, "--check", 5, "--replica", 2, broker="node", prefix="c-")
    trainer = stage.trainer("--seed", 5, "--versions", 3, "--malloc", broker="lead")
    publish([trainer], workers, 1)
    publish([trainer], workers, 2)
    publish([trainer], workers, 3)
    assert "groups=3" in trainer.end(), trainer.log
    scene.untouched(workers, 3)


def test_subset(stage):
    """Above version 1 only the q projections, a part of each fused parameter, on two nodes."""
    subset_test(stage, "q_proj", 3)


def test_subset_of_one_layer(stage):
    """Tensors that lie behind each other, among others that the trainer changes as well."""
    subset_test(stage, "layers.1.", 9)


def subset_test(stage, only, tensors):
    """All replicas and memories alike; whatever else the trainer has changed stays with it."""
    stage.two_nodes()
    workers = stage.workers(2, "--check", 5, "--only", only, "--replica", 0, broker="lead",
                            prefix="a-")
    workers += stage.workers(4, "--check", 5, "--only", only, "--replica", 1, "--gate", "live",
                             "--apply", "direct", broker="node", prefix="b-")
    workers += stage.workers(1, "--check", 5, "--only", only, "--replica", 2, "--malloc",
                             broker="node", prefix="c-")
    trainers = [stage.trainer("--seed", 5, "--versions", 4, "--only", only, "--rank", rank,
                              "--ranks", 2, broker=broker, name=f"trainer{rank}")
                for rank, broker in enumerate(("lead", "node"))]
    for version in (1, 2, 3, 4):
        publish(trainers, workers, version)
        for trainer in trainers:
            assert (f"tensors={tensors} " in trainer.log) == (version > 1), trainer.log
    status = stage.start("status", "strew", "status", "--socket", stage.socket("lead"))
    assert "(subset 1 on version 3)" in status.end(), status.log
    for trainer in trainers:
        trainer.end()
    scene.untouched(workers, 4)


def test_trainer_ranks(stage):
    """Two ranks on one broker hold a stretch of every tensor's rows each."""
    ranks_test(stage, 2, 2, "tiny-llama")


def test_three_trainer_ranks(stage):
    """Boxes that do not end where the workers' shards do."""
    ranks_test(stage, 3, 4, "tiny-bert")


def ranks_test(stage, ranks, size, config):
    stage.two_nodes()
    workers = stage.workers(size, "--check", 6, "--versions", 2, config=config, broker="node")
    trainers = [stage.trainer("--seed", 6, "--versions", 2, "--rank", rank, "--ranks", ranks,
                              config=config, broker="lead", name=f"trainer{rank}")
                for rank in range(ranks)]
    publish(trainers, workers, 1)
    publish(trainers, workers, 2)
    for process in trainers + workers:
        process.end()
    for worker in workers:
        assert checked(worker) == [0, 0], worker.log


def test_trainer_ranks_on_two_nodes(stage):
    """Each node's broker sends the rows of the rank beside it; every node has workers."""
    nodes_test(stage, ("lead", "node"), "tiny-llama")


def test_trainer_ranks_on_joined_nodes(stage):
    """The same with no rank at the lead, and two beside each other."""
    nodes_test(stage, ("other", "node", "other"), "tiny-bert")


def nodes_test(stage, places, config):
    stage.three_nodes()
    workers = []
    for number, node in enumerate(("lead", "node", "other")):
        workers += stage.workers(2, "--check", 6, "--versions", 3, "--replica", number, "--apply",
                                 random.choice(("staged", "direct")), config=config, broker=node,
                                 prefix=f"{node}-")
    trainers = [stage.trainer("--seed", 6, "--versions", 3, "--rank", rank, "--ranks", len(places),
                              config=config, broker=node, name=f"trainer{rank}")
                for rank, node in enumerate(places)]
    for version in (1, 2, 3):
        publish(trainers, workers, version)
    for process in trainers + workers:
        process.end()
    for worker in workers:
        assert checked(worker) == [0, 0, 0], worker.log


def test_trainer_rank_killed_at_a_node(stage):
    """The other rank hears which one is gone; a new one takes its place and publishes."""
    stage.three_nodes()
    workers = stage.workers(2, "--check", 6, broker="other")
    first = stage.trainer("--seed", 6, "--versions", 4, "--rank", 0, "--ranks", 2, broker="lead",
                          name="trainer0")
    second = stage.trainer("--seed", 6, "--versions", 4, "--rank", 1, "--ranks", 2, broker="node",
                           name="trainer1")
    publish([first, second], workers, 1)
    first.line()
    scene.wait_until("the first rank's publish", lambda: any(
        trainer["stage"] == "waiting for ranks" for trainer in stage.status("lead")["trainers"]))
    second.popen.kill()
    first.says("trainer rank 1 at node")
    assert "version 2 aborted" in first.log, first.log
    second.end(-signal.SIGKILL)
    second = stage.trainer("--seed", 6, "--versions", 2, "--first", 3, "--rank", 1, "--ranks", 2,
                           broker="node", name="trainer1-again")
    scene.wait_until("the model declared again",
                     lambda: stage.status("lead")["trainers"][0]["tensors"] > 0)
    publish([first, second], workers, 3)
    publish([first, second], workers, 4)
    first.end(1)
    second.end()
    scene.untouched(workers, 4)


def test_rank_with_another_version(stage):
    """A rank that publishes another version is refused by itself; nothing is written."""
    stage.broker()
    workers = stage.workers(2, "--check", 6)
    first, second = (stage.trainer("--seed", 6, "--versions", 1, "--first", 1 + rank, "--rank",
                                   rank, "--ranks", 2, "--timeout", 3, name=f"trainer{rank}")
                     for rank in range(2))
    first.line()
    second.line()
    logs = [first.end(1), second.end(1)]
    assert any("version" in log and "rank" in log for log in logs), logs
    scene.untouched(workers)


def test_workers_see_wrong_values(stage):
    """The check itself: values of another seed are mismatches, and the worker says so."""
    stage.broker()
    workers = stage.workers(2, "--check", 1, "--versions", 1)
    trainer = stage.trainer("--seed", 2, "--versions", 1)
    trainer.line()
    trainer.end()
    for worker in workers:
        worker.end(1)
        assert checked(worker)[0] > 1000 and "should be" in worker.log, worker.log


def test_many_versions_without_a_pause(stage):
    """A trainer in a hurry: the workers look at their memory while the next version waits."""
    stage.two_nodes()
    for number, apply in enumerate(("staged", "direct")):
        workers = stage.workers(2, "--check", 9, "--apply", apply, broker="node", prefix=apply)
        first = 1 + 100 * number
        result = stage.run("trainer", "--config", scene.CONFIGS / "tiny-llama.json", "--model",
                           "m", "--seed", 9, "--first", first, "--versions", 100, "--socket",
                           stage.socket("lead"))
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr
        for worker in workers:
            worker.says(f"version {first + 99} ok")
        scene.untouched(workers, first + 99)
    assert stage.status("lead")["updates"] == 200


def test_late_group_takes_the_next_version(stage):
    """A group that registers between two versions, with no sibling, takes part from the next."""
    stage.two_nodes()
    early = stage.workers(2, "--check", 8, broker="lead", prefix="early-")
    trainer = stage.trainer("--seed", 8, "--versions", 2, broker="lead")
    publish([trainer], early, 1)
    late = stage.workers(2, "--check", 8, "--replica", 1, broker="node", prefix="late-")
    publish([trainer], early + late, 2)
    trainer.end()
    for worker in late:
        assert "version 1 ok" not in worker.log, worker.log
    scene.untouched(early + late, 2)


def test_restarted_engine_catches_up(stage):
    """Its sibling on the node gives it the last version: nobody publishes, and none is there to."""
    stage.two_nodes()
    first = stage.workers(2, "--check", 8, broker="node", prefix="first-")
    trainer = stage.trainer("--seed", 8, "--versions", 2, broker="lead")
    publish([trainer], first, 1)
    publish([trainer], first, 2)
    trainer.end()
    for life, options in enumerate((("--apply", "staged"), ("--apply", "direct"),
                                    ("--gate", "live", "--apply", "direct"), ())):
        # Members of another number, too.
        size = (2, 4, 1, 2)[life]
        group = stage.workers(size, "--check", 8, "--replica", 1, *options, broker="node",
                              prefix=f"{life}-")
        for worker in group:
            worker.says("version 2 ok")
        status = {entry["replica"]: entry for entry in stage.status("node")["groups"]}
        assert [(status[i]["state"], status[i]["version"]) for i in (0, 1)] == \
            [("CURRENT", 2)] * 2, status
        if life < 3:
            for worker in group:
                worker.popen.kill()
                worker.end(-signal.SIGKILL)
    events = stage.run("strew", "events", "--socket", stage.socket("node")).stdout
    assert events.count(": replica 1 part 0 caught up from replica 0 part 0") == 4, events
    # It is one like the others from now on.
    trainer = stage.trainer("--seed", 8, "--versions", 1, "--first", 3, broker="lead", name="next")
    publish([trainer], first + group, 3)
    assert "groups=2" in trainer.end(), trainer.log
    scene.untouched(first + group, 3)


def gpus():
    """How many GPUs the driver finds; the stand-in, which may be built for other programs than this, is told."""
    if "STANDIN_DEVICES" in os.environ:
        return int(os.environ["STANDIN_DEVICES"])
    count = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    return count.value if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 \
        else 0


def test_catching_up_on_a_gpu(stage):
    """Real ones, or what ctest gives: the sibling on the last, those that catch up on each in turn, by the first."""
    if gpus() == 0:
        raise scene.Skip("there is no GPU")
    stage.broker("broker", "--device", 0, backend="cuda")
    first = stage.workers(2, "--device", gpus() - 1, "--check", 8, prefix="first-")
    trainer = stage.trainer("--seed", 8, "--device", 0)
    publish([trainer], first, 1)
    trainer.end()
    for device in range(gpus()):
        for options in (("--apply", "direct"), ("--gate", "live", "--apply", "direct"), ()):
            group = stage.workers(4, "--device", device, "--check", 8, "--replica", 1, *options,
                                  prefix=f"{device}{len(options)}-")
            for worker in group:
                worker.says("version 1 ok")
            scene.untouched(group, 1)
    scene.untouched(first, 1)


def test_killed_while_others_catch_up(stage):
    """At any moment of it the sibling is killed, or the engine that catches up: nobody runs on a mixture."""
    stage.broker()
    trainer = stage.trainer("--seed", 8, "--versions", 100)
    lives = [0, 0]

    def start(replica):
        lives[replica] += 1
        return stage.workers(2, "--check", 8, "--replica", replica, "--apply",
                             random.choice(("staged", "direct")), prefix=f"{replica}-{lives[replica]}-")

    groups = [start(0), start(1)]
    for version in range(1, 8):
        publish([trainer], groups[0] + groups[1], version)
        groups[1][0].popen.kill()
        groups[1][1].popen.kill()
        groups[1] = start(1)
        victim = random.randrange(2)
        time.sleep(random.random() * 0.05)
        for worker in groups[victim]:
            worker.popen.kill()
        groups[victim] = start(victim)
    publish([trainer], groups[0] + groups[1], 8)
    for process in stage.processes:
        assert not any(checked(process)), process.log
    scene.untouched(groups[0] + groups[1], 8)


def test_trainer_dies_and_another_comes(stage):
    """The next trainer waits for the end of the update that the last one left behind."""
    lead, node = stage.two_nodes()
    workers = stage.workers(2, broker="node")
    trainer = stage.trainer("--versions", 5, broker="lead")
    publish([trainer], workers, 1)
    # The second node stands still in the middle of version 2, so that its abort cannot end.
    node.popen.send_signal(signal.SIGSTOP)
    trainer.line()
    scene.wait_until("version 2 under way",
                     lambda: stage.status("lead")["trainers"][0]["stage"] == "accepting")
    trainer.popen.kill()
    scene.wait_until("the trainer's end",
                     lambda: stage.status("lead")["trainers"][0]["stage"] == "aborting")
    with open(scene.CONFIGS / "tiny-llama.json", encoding="utf-8") as file:
        hidden = json.load(file)["hidden_size"]
    path = scene.safetensors(stage.dir / "norm.safetensors",
                             {"model.norm.weight": ("BF16", [hidden], os.urandom(2 * hidden))})
    push = stage.start("push", "strew", "push", path, "--model", "m", "--version", 2, "--partial",
                       "--socket", stage.socket("lead"))
    scene.wait_until("its memory at the lead", lambda: lead.log.count("mapped") == 2)
    node.popen.send_signal(signal.SIGCONT)
    push.end()


if __name__ == "__main__":
    scene.main(globals())
