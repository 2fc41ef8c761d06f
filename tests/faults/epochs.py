#!/usr/bin/env python3
"""What brokers keep of each communicator, over as many as you like, and how they start anew in time.

    epochs.py BIN [--count N] [--device N[,N]] [--every N]

Two brokers stay, a third one comes and goes: each time the lead makes a new epoch, and all who are in
it a new communicator, until the lead has made N of them (200). Descriptors, threads and resident memory of
the two, and what the GPU has left, are looked at while just these two are there. Every few epochs a version
goes from a trainer at the lead into workers at the other broker, who compare all of its bytes. Of two GPUs
the first is the lead's and the trainer's, the second the others'.

Behind 100 communicators (LIMIT_EPOCHS) a broker starts itself anew, with nothing of what NCCL has kept: it
must not have more of them, its workers and the trainer must go on, and it must not be larger than at
first. On the host backend, which keeps nothing, it must not grow at all. The last line is "epochs: ok ..." and
the exit code 0, or the first thing that went wrong.
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import scene  # noqa: E402  pylint: disable=wrong-import-position

LIMIT_EPOCHS = 100
PATIENCE = 90
SETTLED = 4   # communicators after which a broker has what it needs
GROWTH = {"descriptors": 1, "threads": 0, "resident MiB": 2.0}  # of a life on the host backend
SEED = 5


class Gpu:
    """What all processes together have left on a GPU."""

    def __init__(self, number):
        self.driver = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        for code in (self.driver.cuInit(0),
                     self.driver.cuDeviceGet(ctypes.byref(device), number),
                     self.driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
                     self.driver.cuCtxSetCurrent(context)):
            assert code == 0, f"the CUDA driver fails with {code}"

    def left_mib(self):
        left, total = ctypes.c_size_t(), ctypes.c_size_t()
        code = self.driver.cuMemGetInfo_v2(ctypes.byref(left), ctypes.byref(total))
        assert code == 0, f"cuMemGetInfo fails with {code}"
        return left.value / 2**20


class Broker:
    """One of those that stay. A life is what lies between two starts."""

    MADE = {"lead": "communicator of epoch ", "node": "communicator made in "}

    def __init__(self, name, process):
        self.name, self.process = name, process
        self.lives = [[]]  # of samples

    def made(self):
        return self.process.log.count(self.MADE[self.name])

    def starts(self):
        """How often it has started anew; the process stays the same."""
        return self.process.log.count("event loop: ") - 1

    def look(self, gpu):
        pid = self.process.pid
        made = self.made()
        while len(self.lives) <= self.starts():
            self.lives.append([])
        threads = [line for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
                   if line.startswith("Threads:")]
        pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
        self.lives[-1].append({
            "communicators": made,
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": int(threads[0].split()[1]),
            "resident MiB": int(pages) * os.sysconf("SC_PAGESIZE") / 2**20,
            **({"left on the GPU MiB": gpu.left_mib()} if gpu else {})})


class Job:
    def __init__(self, stage, options):
        self.stage, self.options = stage, options
        self.port = scene.free_port()
        self.version = 0
        self.gpu = Gpu(int(options.device[0])) if options.device else None
        self.stay = [Broker("lead", self.start("lead")), Broker("node", self.start("node"))]
        self.settle(2)
        common = ["--config", scene.CONFIGS / "tiny-llama.json", "--model", "m",
                  "--reconnect", 2 * PATIENCE]
        self.worker = stage.start("worker", "tp_worker", *common, *self.device("node"),
                                  "--rank", 0, "--size", 1,
                                  "--socket", stage.socket("node"), "--check", SEED)
        self.trainer = stage.start("trainer", "trainer", *common, *self.device("lead"),
                                   "--socket", stage.socket("lead"),
                                   "--by-line", "--versions", 10**6, "--seed", SEED,
                                   stdin=subprocess.PIPE)

    def device(self, name):
        devices = self.options.device
        return ["--device", devices[0 if name == "lead" else -1]] if devices else []

    def start(self, name):
        place = "--listen" if name == "lead" else "--join"
        return self.stage.broker(name, place, f"127.0.0.1:{self.port}", *self.device(name),
                                 backend="cuda" if self.options.device else "host",
                                 env=scene.hosts(name, None if name == "third"  # a GPU twice
                                                 else self.options.device))

    def status(self, name):
        """None while the broker starts anew."""
        result = self.stage.run("strew", "status", "--json", "--socket", self.stage.socket(name))
        return json.loads(result.stdout) if result.returncode == 0 else None

    def settle(self, brokers):
        """So many in one epoch, and none about to make another one."""
        def settled():
            status = self.status("lead")
            return status and len(status["brokers"]) == brokers and status["carrier"] != "none"
        scene.wait_until(f"{brokers} brokers in one epoch", settled, PATIENCE)

    def publish(self):
        """One version that gets everywhere; while a broker starts anew one may be lost on the way."""
        end = time.monotonic() + PATIENCE
        while True:
            self.version += 1
            self.trainer.line()
            word = f"version {self.version} "
            said = scene.wait_until(f"the outcome of version {self.version}", lambda w=word: (
                self.trainer.log.split(w)[1].split()[0].rstrip(":")
                if w in self.trainer.log and self.trainer.log.split(w)[1].split() else None),
                PATIENCE)
            if said == "committed":
                self.worker.says(f"version {self.version} ok", PATIENCE)
                assert not any(scene.checked(self.worker)), "bytes differ"
                return
            assert time.monotonic() < end, f"version {self.version}: {said}"
            time.sleep(0.2)

    def come_and_go(self, number):
        third = self.start("third")
        self.settle(3)
        third.popen.terminate()
        third.popen.wait(PATIENCE)
        self.stage.processes.remove(third)
        self.settle(2)
        if number % self.options.every == 0 or any(
                broker.starts() >= len(broker.lives) for broker in self.stay):
            self.publish()
        for broker in self.stay:
            assert broker.process.popen.poll() is None, f"{broker.name} has ended"
            broker.look(self.gpu)


def settled(life):
    """Its samples from when it had what it needs."""
    begun = life[0]["communicators"]
    return [sample for sample in life if sample["communicators"] - begun >= SETTLED] or life[-1:]


def say_lives(broker):
    for life in broker.lives:
        first, last = settled(life)[0], life[-1]
        count = max(1, last["communicators"] - first["communicators"])
        print(f"{broker.name}, communicators {first['communicators']} to {last['communicators']}: " +
              ", ".join(f"{what} {first[what]:.0f} -> {last[what]:.0f} "
                        f"({(last[what] - first[what]) / count:+.3f} each)"
                        for what in first if what != "communicators"), flush=True)


def judge(broker, options):
    """What must hold of each life."""
    begun, first = 0, broker.lives[0][0]
    for life in broker.lives:
        assert life[-1]["communicators"] - begun <= LIMIT_EPOCHS, \
            f"{broker.name} has made over {LIMIT_EPOCHS} communicators in one life"
        begun = life[-1]["communicators"]
        for what, most in GROWTH.items():
            # Of the last ones the least: a sample may come before the broker has closed the
            # connection of the strew status that came before it.
            grown = min(sample[what] for sample in life[-3:]) - settled(life)[0][what]
            assert options.device or grown <= most or options.sanitized, \
                f"{broker.name}: {what} have grown by {grown:.1f}"
        # As small again as it was: what NCCL had kept is gone.
        for what, slack in (("descriptors", 4), ("threads", 2), ("resident MiB", 64)):
            assert life[0][what] <= first[what] + slack, \
                f"{broker.name} has {life[0][what]:.0f} {what} when it has started anew"
        left = "left on the GPU MiB"
        assert life[0].get(left, 0) >= first.get(left, 0) - 256, \
            f"{broker.name} has started anew, and less is left on the GPU"
    wanted = broker.made() // (LIMIT_EPOCHS + 1)
    assert broker.starts() >= wanted, f"{broker.name} has started anew {broker.starts()} times"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin")
    parser.add_argument("--count", type=int, default=200, help="communicators of the lead (200)")
    parser.add_argument("--every", type=int, default=5, help="a version each so many turns (5)")
    parser.add_argument("--device", type=scene.gpus)
    options = parser.parse_args()
    stage = scene.Scene(options.bin)
    begun = time.monotonic()
    try:
        options.sanitized = stage.sanitized()
        job = Job(stage, options)
        job.publish()
        number = 0
        while job.stay[0].made() < options.count:
            job.come_and_go(number)
            number += 1
        job.publish()
        for broker in job.stay:
            say_lives(broker)
        for broker in job.stay:
            judge(broker, options)
        made, anew = job.stay[0].made(), sum(broker.starts() for broker in job.stay)
    except Exception:
        for process in stage.processes:
            print(f"--- {process.name} (pid {process.pid}, {process.popen.poll()})\n"
                  f"{process.log[-2500:]}", file=sys.stderr)
        raise
    finally:
        faults = stage.close()
        stage.remove()
    if faults:
        print(*faults, sep="\n")
        return 1
    print(f"epochs: ok communicators={made} anew={anew} version={job.version} "
          f"seconds={time.monotonic() - begun:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
