"""Real processes for the end-to-end tests: brokers, workers, trainers, each with a log and a deadline.

A test is a function test_X(scene) in a file test_Y.py that ends with scene.main(globals()):

    python3 test_Y.py BIN [X...]

runs the named tests (all by default) with the programs in BIN. Exit 77: all of them were skipped.
A test fails by an exception, by a process of its own that ended badly or had to be killed, or by
what a sanitizer wrote into a log.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "examples" / "configs"
DEADLINE_S = 60
# Which event loop brokers must have: $STREW_TEST_LOOP, set where the tests run on epoll (label "epoll").
LOOP = "event loop: " + os.environ.get("STREW_TEST_LOOP", "")


class Skip(Exception):
    pass


def wait_until(what, condition, seconds=DEADLINE_S):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"no sign of {what} within {seconds} s"
        time.sleep(0.02)


class Process:
    """One program in the background; its output goes to a file."""

    def __init__(self, scene, name, argv, env=None, stdin=subprocess.DEVNULL, **options):
        self.name = name
        self.path = scene.dir / f"{name}.log"
        with open(self.path, "wb") as log:
            self.popen = subprocess.Popen([str(arg) for arg in argv], stdin=stdin, stdout=log,
                                          stderr=subprocess.STDOUT,
                                          env={**scene.env, **(env or {})}, **options)
        self.pid = self.popen.pid

    @property
    def log(self):
        return self.path.read_text(errors="replace")

    def says(self, text, seconds=DEADLINE_S):
        """Waits until the text is in the log."""
        def look():
            if text in self.log:
                return True
            assert self.popen.poll() is None or text in self.log, \
                f"{self.name} ended with {self.popen.returncode} before it said {text!r}"
            return False
        try:
            wait_until(f"{text!r} of {self.name}", look, seconds)
        except AssertionError as failure:
            raise AssertionError(f"{failure}; its threads are in {self.threads()}") from None
        return self

    def line(self, text="\n"):
        self.popen.stdin.write(text.encode())
        self.popen.stdin.flush()

    def end(self, code=0, seconds=DEADLINE_S):
        """Waits for its end, which must be with that code."""
        try:
            got = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended after {seconds} s; its threads are in "
                                 f"{self.threads()}; {self.log}") from None
        assert got == code, f"{self.name} ended with {got} instead of {code}"
        return self.log

    def threads(self):
        """Name, and where in the kernel, of each of its threads."""
        found = []
        for task in pathlib.Path(f"/proc/{self.popen.pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                found.append(" ".join((task / name).read_text().strip() or "?"
                                      for name in ("comm", "wchan", "syscall")))
        return "; ".join(found)

    def stop(self, code=0, number=signal.SIGTERM):
        self.popen.send_signal(number)
        return self.end(code)


def as_user(uid, gid):
    """The command before a program's that starts it as that user, in that group alone."""
    return [shutil.which("setpriv"), f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]


class Scene:
    def __init__(self, programs):
        self.bin = pathlib.Path(programs).resolve()
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="strew-e2e-"))
        self.processes = []
        self.strewd = "strewd"  # "strewd_hasty": a broker with less patience (tests/broker/hasty.h)
        self.env = {key: value for key, value in os.environ.items() if key != "STREW_SOCKET"}

    def sanitized(self):
        """Are the programs a sanitizer's, which makes them slow and keeps what was freed for a while?"""
        program = (self.bin / "strewd").read_bytes()
        return b"__asan_init" in program or b"__tsan_init" in program

    def within(self, seconds):
        """A limit of time, with slack where sanitizers take some."""
        return 3 * seconds if self.sanitized() else seconds

    def other_user(self, folder, uid=65534):
        """Makes the folder another user's, and one that he reaches; returns the command that starts a
        program as him. Only root can."""
        if os.geteuid() or not shutil.which("setpriv"):
            raise Skip("only root can be another user, by setpriv")
        (self.dir / folder).mkdir(mode=0o700)
        os.chmod(self.dir, 0o711)
        os.chown(self.dir / folder, uid, uid)
        return as_user(uid, uid)

    def start(self, name, program, *args, **options):
        process = Process(self, name, [self.bin / program, *args], **options)
        self.processes.append(process)
        return process

    def run(self, program, *args, env=None, seconds=DEADLINE_S):
        """Runs it to its end; the result has returncode, stdout and stderr."""
        path = program if os.sep in str(program) else self.bin / program
        result = subprocess.run([str(path), *map(str, args)], capture_output=True, text=True,
                                timeout=seconds, env={**self.env, **(env or {})}, check=False,
                                stdin=subprocess.DEVNULL)
        assert "Sanitizer" not in result.stderr and "runtime error" not in result.stderr, \
            result.stderr
        return result

    def broker(self, name="broker", *args, env=None, backend="host", slot="256K", through=()):
        """Starts a broker, through another program if one is given, and waits until it is ready."""
        read, write = os.pipe()
        program, *first = (*through, self.bin / self.strewd)
        process = self.start(name, program, *first, "--socket", self.socket(name), "--backend", backend,
                             "--slot", slot, "--ready-fd", write, *args, env=env,
                             pass_fds=(write,))
        os.close(write)
        with os.fdopen(read) as pipe:
            if pipe.read() != "READY=1\n":
                raise AssertionError(f"{name} was not ready and ended with "
                                     f"{process.popen.wait(DEADLINE_S)}: {process.log}")
        assert LOOP in process.log, process.log
        return process

    def two_nodes(self):
        """A lead and a broker that joined it, ready to carry buckets."""
        port = free_port()
        lead = self.broker("lead", "--listen", f"127.0.0.1:{port}")
        node = self.broker("node", "--join", f"127.0.0.1:{port}")
        wait_until("two brokers in one epoch", lambda: self.joined("lead", 2))
        return lead, node

    def three_nodes(self):
        """The same, with a second one that joined: "other"."""
        port = free_port()
        self.broker("lead", "--listen", f"127.0.0.1:{port}")
        for name in ("node", "other"):
            self.broker(name, "--join", f"127.0.0.1:{port}")
        wait_until("three brokers in one epoch", lambda: self.joined("lead", 3))

    def joined(self, name, count):
        status = self.status(name)
        return len(status["brokers"]) == count and status["carrier"] != "none"

    def socket(self, name="broker"):
        return self.dir / f"{name}.sock"

    def status(self, name="broker"):
        result = self.run("strew", "status", "--json", "--socket", self.socket(name))
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def workers(self, count, *args, config="tiny-llama", model="m", broker="broker", prefix=""):
        """All ranks of one group, registered."""
        config = config if os.sep in str(config) else CONFIGS / f"{config}.json"
        group = [self.start(f"{prefix}worker{rank}", "tp_worker", "--config", config, "--model",
                            model, "--rank", rank, "--size", count, "--socket",
                            self.socket(broker), *args) for rank in range(count)]
        for worker in group:
            worker.says("registered")
        return group

    def trainer(self, *args, config="tiny-llama", model="m", broker="broker", name="trainer"):
        """Publishes a version for each line(); see publish()."""
        config = config if os.sep in str(config) else CONFIGS / f"{config}.json"
        return self.start(name, "trainer", "--config", config, "--model", model, "--socket",
                          self.socket(broker), "--by-line", *args, stdin=subprocess.PIPE)

    def push(self, path, version, *args, model="m", broker="broker"):
        return self.run("strew", "push", path, "--model", model, "--version", version, "--socket",
                        self.socket(broker), *args)

    def close(self):
        """Ends what still runs; returns what was wrong."""
        faults = []
        for process in reversed(self.processes):
            if process.popen.poll() is None:
                process.popen.terminate()
        for process in self.processes:
            try:
                process.popen.wait(20)
            except subprocess.TimeoutExpired:
                faults.append(f"{process.name} did not stop")
                process.popen.kill()
                process.popen.wait()
            if process.popen.stdin:
                process.popen.stdin.close()
            if "Sanitizer" in process.log or "runtime error:" in process.log:
                faults.append(f"{process.name}: a sanitizer has spoken")
        return faults

    def remove(self):
        shutil.rmtree(self.dir, ignore_errors=True)


def publish(trainers, workers, version):
    """One version from all trainers into all workers, each of which has looked at it."""
    for trainer in trainers:
        trainer.line()
    for trainer in trainers:
        trainer.says(f"version {version} committed")
    for worker in workers:
        worker.says(f"version {version} ok")


def publish_in_parts(trainer, workers, versions, parts):
    """All versions of a trainer that makes its tensors one part after another; it ends."""
    for version in range(1, versions + 1):
        for part in range(1, parts + 1):
            trainer.line()
            trainer.says(f"version {version} part {part} of {parts} released")
        trainer.says(f"version {version} committed")
        for worker in workers:
            worker.says(f"version {version} ok")
    trainer.end()


def checked(worker):
    """The mismatches of each look that the worker took at its memory."""
    return [int(word.split("=")[1]) for word in worker.log.split()
            if word.startswith("mismatches=")]


def untouched(workers, version=0):
    """Stops the workers; their memory must be as that version left it (0: as at the start)."""
    for worker in workers:
        worker.stop()
        assert f"version {version} at the end" in worker.log, worker.log
        assert checked(worker) and not any(checked(worker)), worker.log


def gpus(text):
    """A GPU's number, or several by commas, of an option."""
    return [str(int(number)) for number in text.split(",")]


def hosts(name, devices):
    """What lets brokers of one host pass for nodes. On one GPU NCCL must not know that they are on one
    host, and takes sockets; with a GPU for each it takes the link."""
    apart = {} if len(devices or []) > 1 else {"NCCL_HOSTID": name}
    return {**apart, "NCCL_SOCKET_IFNAME": "lo"}


def counts(path):
    """What a process has counted at a stand-in (tests/standin): a number by name."""
    raw = pathlib.Path(path).read_bytes()
    return {raw[at:at + 56].split(b"\0")[0].decode(): struct.unpack("<Q", raw[at + 56:at + 64])[0]
            for at in range(0, len(raw), 64)}


def free_port():
    """A TCP port of loopback below those that the system gives out by itself."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def safetensors(path, tensors, header=None, length=None, data=None):
    """Writes {name: (dtype, shape, bytes)}; header, length and data replace what would be right."""
    entries, at = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
    if header is None:
        header = json.dumps(entries)
    text = header.encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text) if length is None else length) + text)
        file.write(b"".join(t[2] for t in tensors.values()) if data is None else data)
    return path


def run_test(name, function, programs):
    stage = Scene(programs)
    try:
        function(stage)
        result = "ok"
    except Skip as reason:
        result = f"skipped: {reason}"
    except Exception:  # pylint: disable=broad-except
        traceback.print_exc()
        result = "FAILED"
    faults = stage.close()
    if faults:
        print(*faults, sep="\n", file=sys.stderr)
        result = "FAILED"
    if result == "FAILED":
        for process in stage.processes:
            print(f"--- {process.name}\n{process.log[-3000:]}", file=sys.stderr)
    stage.remove()
    print(f"{name}: {result}", flush=True)
    return result


def main(names):
    tests = {name[5:]: value for name, value in names.items() if name.startswith("test_")}
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} BIN [{'|'.join(tests)}]...")
    wanted = sys.argv[2:] or list(tests)
    results = [run_test(name, tests[name], sys.argv[1]) for name in wanted]
    if "FAILED" in results:
        sys.exit(1)
    sys.exit(77 if all(result != "ok" for result in results) else 0)
