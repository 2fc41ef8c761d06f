#!/usr/bin/env python3
"""Kills and stops the processes of a job in the middle of its updates, at random, and looks at every
byte after each fault.

    chaos.py BIN [--seed N] [--count N] [--victim KIND]... [--nodes 1|2] [--device N[,N]] [--groups N]

A round: some versions are published one behind the other; somewhere among them a victim gets SIGKILL,
or SIGSTOP and later SIGCONT. Who died is started again, brokers at the same place, workers with the
weights they were made with. Workers and the trainer outlive brokers (their reconnect calls). Then one version more must be
committed in every group, and each worker compares all of its bytes with what that version's should be;
what the others say of versions in between is compared too.

The victims of all rounds, in which order and when, follow from the seed (the timing of processes does
not). --victim: worker, trainer, broker, lead, stop-worker, stop-trainer, stop-broker, stop-lead (default:
all, by turns). With --device all memory is on that GPU (and the brokers use their cuda backend); with
two, the trainer and the lead are on the first, the other broker on the second, and of each group a worker on each.
The last line is "chaos: ok ..." and the exit code 0, or the first thing that went wrong.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import scene  # noqa: E402  pylint: disable=wrong-import-position

KINDS = ["worker", "trainer", "broker", "lead", "stop-worker", "stop-trainer", "stop-broker",
         "stop-lead"]
SEED = 5
BURST = 4     # versions of a round
SIZE = 2      # workers of a group
PATIENCE = 60
STOPPED_S = (0.01, 2.0)


class Job:
    """Brokers, workers and a trainer; each is started again when it is missing."""

    def __init__(self, stage, options):
        self.stage, self.options = stage, options
        self.port = scene.free_port()
        self.nodes = ["lead", "node"][:options.nodes]
        self.brokers, self.workers = {}, {}
        self.trainer, self.version, self.starts = None, 0, 0
        config = json.loads((scene.CONFIGS / "tiny-llama.json").read_text())
        config.update(hidden_size=64 * options.scale, intermediate_size=176 * options.scale)
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
        self.config = stage.dir / "config.json"
        self.config.write_text(json.dumps(config))

    def device(self, turn):
        """By turns, where there are several."""
        devices = self.options.device
        return ["--device", devices[turn % len(devices)]] if devices else []

    def start_broker(self, name):
        lead = name == "lead"
        place = ["--listen" if lead else "--join", f"127.0.0.1:{self.port}"]
        backend = "cuda" if self.options.device else "host"
        self.brokers[name] = self.stage.broker(
            name, *(place if self.options.nodes > 1 else []), *self.device(not lead),
            backend=backend, env=scene.hosts(name, self.options.device), slot=self.options.slot)

    def start_worker(self, key):
        node, replica, rank = key
        self.starts += 1
        self.workers[key] = self.stage.start(
            f"worker-{node}-{replica}-{rank}-{self.starts}", "tp_worker", "--config", self.config,
            "--model", "m", "--replica", replica, "--rank", rank, "--size", SIZE, "--socket",
            self.stage.socket(node), "--check", SEED, "--apply",
            "direct" if replica % 2 else "staged", "--reconnect", 2 * PATIENCE, *self.device(rank))

    def start_trainer(self):
        self.starts += 1
        self.version += 1000  # whatever the last one got to, and the brokers heard of
        self.trainer = self.stage.start(
            f"trainer-{self.starts}", "trainer", "--config", self.config, "--model", "m",
            "--socket", self.stage.socket("lead"), "--by-line", "--first", self.version + 1,
            "--versions", 1000, "--seed", SEED, "--timeout", PATIENCE // 2,
            "--reconnect", 2 * PATIENCE, *self.device(0),
            stdin=subprocess.PIPE)

    def whole(self):
        """Starts what is missing, and waits until all of it stands."""
        for name in self.nodes:
            if name not in self.brokers or self.brokers[name].popen.poll() is not None:
                self.start_broker(name)
        if self.options.nodes > 1:
            scene.wait_until("both brokers in one epoch",
                             lambda: self.stage.joined("lead", 2), PATIENCE)
        for replica in range(self.options.groups):
            for rank in range(SIZE):
                key = (self.nodes[replica % len(self.nodes)], replica, rank)
                if key not in self.workers or self.workers[key].popen.poll() is not None:
                    self.start_worker(key)
        for name in self.nodes:
            scene.wait_until(f"all groups at {name}", lambda name=name: self.stand(name), PATIENCE)
        if self.trainer is None or self.trainer.popen.poll() is not None:
            self.start_trainer()

    def stand(self, name):
        wanted = len(range(self.nodes.index(name), self.options.groups, len(self.nodes)))
        groups = self.stage.status(name)["groups"]
        return len([g for g in groups if g["present"] == g["members"]]) == wanted

    def publish(self, count):
        """Asks for so many versions; the trainer may be dead or stopped."""
        self.version += count
        try:
            self.trainer.line("\n" * count)
        except BrokenPipeError:
            pass

    def outcome(self, version):
        """What the trainer says of a version, or None when it ended before."""
        word = f"version {version} "

        def look():
            log = self.trainer.log
            if word in log:
                return log.split(word)[1].split()[0].rstrip(":")
            return "ended" if self.trainer.popen.poll() is not None and word not in \
                self.trainer.log else None
        return scene.wait_until(f"the outcome of version {version}", look, 2 * PATIENCE)

    def last(self):
        """One version that must get everywhere."""
        self.publish(1)
        said = self.outcome(self.version)
        if said in ("ended", "lost"):
            return False  # the trainer or its broker had died, and was not told yet
        assert said == "committed", f"version {self.version}: {said}"
        for worker in self.workers.values():
            worker.says(f"version {self.version} ok", PATIENCE)
        return True

    def victims(self, kind):
        kind = kind.removeprefix("stop-")
        if kind == "worker":
            return random.sample(sorted(self.workers.items()), self.options.at_once)
        if kind == "trainer":
            return [("trainer", self.trainer)]
        name = "lead" if kind == "lead" else self.nodes[-1]
        return [(name, self.brokers[name])]


def look_at_bytes(job):
    """Whatever the workers said of their memory so far, in all of the rounds."""
    for process in job.stage.processes:
        for wrong in scene.checked(process) if "worker" in process.name else []:
            assert wrong == 0, f"{process.name}: {wrong} bytes differ"
        assert "Sanitizer" not in process.log, process.name


def forget_ended(job):
    """Processes whose end was looked at; their logs stay."""
    job.stage.processes = [p for p in job.stage.processes if p.popen.poll() is None]


def hurt(job, kind):
    victims = job.victims(kind)
    if not kind.startswith("stop-"):
        for _, process in victims:
            process.popen.kill()
        for _, process in victims:
            process.popen.wait(PATIENCE)
        return victims
    for _, process in victims:
        process.popen.send_signal(signal.SIGSTOP)
    time.sleep(random.uniform(*STOPPED_S))
    for _, process in victims:
        process.popen.send_signal(signal.SIGCONT)
    return victims


def resources(job):
    """Descriptors and resident memory of each broker that still lives."""
    found = {}
    for name, broker in job.brokers.items():
        pages = pathlib.Path(f"/proc/{broker.pid}/statm").read_text().split()[1]
        found[broker.pid] = (name, len(os.listdir(f"/proc/{broker.pid}/fd")),
                             int(pages) * os.sysconf("SC_PAGESIZE") / 2**20)
    return found


def rounds(job):
    options = job.options
    kinds = options.victim or [k for k in KINDS if options.nodes > 1 or "lead" not in k]
    first = None
    job.whole()
    assert job.last(), "nothing works before anything was hurt"
    begun = time.monotonic()
    job.publish(BURST)
    job.outcome(job.version)
    span = (time.monotonic() - begun) * 1.1
    for number in range(options.count):
        kind = kinds[number % len(kinds)]
        begun = time.monotonic()
        job.publish(BURST)
        time.sleep(random.uniform(0, span))
        victims = hurt(job, kind)
        look_at_bytes(job)
        forget_ended(job)
        job.whole()
        while not job.last():
            job.whole()
        look_at_bytes(job)
        print(f"round {number}: {kind} {' '.join(str(name) for name, _ in victims)}: version "
              f"{job.version} everywhere, {time.monotonic() - begun:.2f} s", flush=True)
        if first is None or set(first) != set(resources(job)):
            first = resources(job)
    for pid, (name, fds, mib) in resources(job).items():
        print(f"{name}: descriptors {first[pid][1]} -> {fds}, resident {first[pid][2]:.1f} -> "
              f"{mib:.1f} MiB since it was started or last seen to start", flush=True)
    return kinds


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--count", type=int, default=16, help="rounds (16)")
    parser.add_argument("--victim", action="append", choices=KINDS)
    parser.add_argument("--at-once", type=int, default=1, help="workers hurt in a round (1)")
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--device", type=scene.gpus)
    parser.add_argument("--scale", type=int, default=2, help="of the model: hidden size / 64 (2)")
    parser.add_argument("--slot", default="256K")
    return parser.parse_args()


def main():
    options = parse()
    random.seed(options.seed)
    print(f"chaos: seed {options.seed}", flush=True)
    stage = scene.Scene(options.bin)
    job = Job(stage, options)
    begun = time.monotonic()
    try:
        rounds(job)
    except Exception:
        for process in [*job.brokers.values(), job.trainer, *job.workers.values()]:
            if process:
                print(f"--- {process.name} (pid {process.pid}, {process.popen.poll()})\n"
                      f"{process.log[-2500:]}", file=sys.stderr)
        raise
    finally:
        faults = stage.close()
        stage.remove()
    if faults:
        print(*faults, sep="\n")
        return 1
    print(f"chaos: ok rounds={options.count} seed={options.seed} "
          f"seconds={time.monotonic() - begun:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
