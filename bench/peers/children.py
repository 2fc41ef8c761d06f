"""The processes of a comparison as their parent sees them: started with an environment of their
own, asked by lines of JSON over a socket pair, answered within a deadline, gone at the end.

A child's standard output and error go to a file, whose end explains a death. A child ends by
itself when its parent's end of the socket closes. Nothing here needs PyTorch.
"""

import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time

RANK = pathlib.Path(__file__).resolve().parent / "rank.py"
STOP_S = 5


class ChildError(Exception):
    """A child answered with an error, died, or was late."""


class Child:
    def __init__(self, process, directory, env):
        self.name = process.name
        self.log = pathlib.Path(directory) / f"{process.name}.log"
        self.pending = b""
        ours, theirs = socket.socketpair()
        with open(self.log, "ab") as log, theirs:
            self.popen = subprocess.Popen(
                [sys.executable, str(RANK), str(theirs.fileno())], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=env, pass_fds=(theirs.fileno(),))
        self.socket = ours

    def tell(self, **message):
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ChildError(self.died(str(error))) from error

    def died(self, how):
        """What to say of its death; the last line of its log is likely the reason."""
        try:
            self.popen.wait(1)
            how = f"exit code {self.popen.returncode}"
        except subprocess.TimeoutExpired:
            pass
        said = self.log.read_text(errors="replace").strip().splitlines()
        # A crash ends with a list of frames; what it was stands above that.
        telling = [line for line in said if "what():" in line or "rror" in line] or said
        return f"{self.name} died ({how})" + (f": {telling[-1].strip()[:300]}" if telling else "")

    def line(self):
        """A message that is already here, else None."""
        if b"\n" not in self.pending:
            return None
        line, self.pending = self.pending.split(b"\n", 1)
        return json.loads(line)

    def fill(self):
        """Reads what the socket has; call it when there is something."""
        try:
            data = self.socket.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            raise ChildError(self.died("its channel closed"))
        self.pending += data

    def close(self):
        self.socket.close()
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)


class Children:
    """All children of one world, by name."""

    def __init__(self, processes, directory, envs):
        self.all = {}
        try:
            for process in processes:
                self.all[process.name] = Child(process, directory, envs[process.name])
        except BaseException:
            self.close()
            raise

    def close(self):
        """Ends them all; a child that does not hear SIGTERM is killed."""
        for child in self.all.values():
            child.close()
        end = time.monotonic() + STOP_S
        for child in self.all.values():
            try:
                child.popen.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.popen.kill()
                child.popen.wait()
        self.all = {}

    def tell(self, names, **message):
        for name in names:
            self.all[name].tell(**message)

    def hear(self, names, seconds, what):
        """Yields (name, message) as messages come, until the consumer stops; an error, a death or
        the deadline raises. Children outside `names` are watched for death too."""
        end = time.monotonic() + seconds
        while True:
            for name in list(names):
                while (message := self.all[name].line()) is not None:
                    if "error" in message:
                        raise ChildError(f"{name}: {message['error']}")
                    yield name, message
            left = end - time.monotonic()
            if left <= 0:
                raise ChildError(f"{what}: nothing from {', '.join(names)} in {seconds:g} s")
            by_socket = {child.socket: child for child in self.all.values()}
            for ready in select.select(list(by_socket), [], [], left)[0]:
                by_socket[ready].fill()

    def answers(self, names, seconds, what):
        """One message from each; returns {name: message}."""
        waiting, found = set(names), {}
        if not waiting:
            return found
        for name, message in self.hear(waiting, seconds, what):
            found[name] = message
            waiting.discard(name)
            if not waiting:
                return found
        raise AssertionError("unreachable")

    def ask(self, names, seconds, **message):
        self.tell(names, **message)
        return self.answers(names, seconds, message["do"])


def environment(process):
    """What a child starts with. Variables of NCCL that are set stay as they are."""
    env = dict(os.environ)
    if process.host_id:
        env["NCCL_HOSTID"] = process.host_id
        env.setdefault("NCCL_SOCKET_IFNAME", "lo")
    env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["PYTHONUNBUFFERED"] = "1"
    return env
