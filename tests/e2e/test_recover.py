"""A lead that dies between prepared and the last word of its decision, and the one that comes: real
processes, and between the two brokers a wire that is cut behind a word of one's choice."""

import os
import signal
import socket
import struct
import threading

import scene

JOIN, PREPARED, COMMIT = 80, 89, 90  # docs/protocol.md
HEADER = struct.Struct("<4sHHIIQ")


class Wire:
    """Passes on what a broker that joins and its lead say, until a word that is swallowed with all behind
    it, both ways."""

    def __init__(self, lead_port):
        self.lead_port, self.swallow, self.swallowed = lead_port, None, threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.ends, self.lock = [], threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                node, _ = self.listener.accept()
            except OSError:
                return
            try:
                lead = socket.create_connection(("127.0.0.1", self.lead_port))
            except OSError:
                node.close()
                continue
            with self.lock:
                self.ends += [node, lead]
            for args in ((node, lead, "to lead"), (lead, node, "to node")):
                threading.Thread(target=self.carry, args=args, daemon=True).start()

    def read(self, end, count):
        data = b""
        while len(data) < count:
            more = end.recv(count - len(data))
            if not more:
                raise OSError("the end")
            data += more
        return data

    def carry(self, source, target, way):
        """Frames on the control connection; a data connection begins with none of the lead's."""
        try:
            first = True
            while True:
                head = self.read(source, HEADER.size)
                magic, _, kind, length, _, _ = HEADER.unpack(head)
                if first and (magic != b"STRW" or kind not in (JOIN, JOIN + 1)):
                    target.sendall(head)
                    break
                first = False
                frame = head + self.read(source, length)
                if self.swallow == (way, kind):
                    self.swallow = None
                    self.swallowed.set()
                    return  # the connection stays, and is deaf in this direction
                target.sendall(frame)
            while True:
                data = source.recv(1 << 16)
                if not data:
                    break
                target.sendall(data)
        except OSError:
            pass
        self.close(source, target)

    @staticmethod
    def close(*ends):
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        """All that is connected now."""
        with self.lock:
            ends, self.ends = self.ends, []
        self.close(*ends)


def stand(stage, apply="staged", gate="held", versions=2):
    """A lead that is started again when it dies, a broker that joins it by a wire, a replica at each."""
    port = scene.free_port()
    wire = Wire(port)
    stage.start("run", "strew", "run", "--backend", "host", "--slot", "256K", "--socket",
                stage.socket("lead"), "--listen", f"127.0.0.1:{port}", "--", "sleep", "600")
    scene.wait_until("a lead", lambda: stage.run(
        "strew", "status", "--socket", stage.socket("lead")).returncode == 0)
    stage.broker("node", "--join", f"127.0.0.1:{wire.port}")
    scene.wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    options = ("--reconnect", 60, "--check", 5, "--apply", apply, "--gate", gate)
    ours, = stage.workers(1, *options, "--replica", 0, broker="lead", prefix="lead-")
    theirs, = stage.workers(1, *options, "--replica", 1, broker="node", prefix="node-")
    trainer = stage.trainer("--seed", 5, "--versions", versions, broker="lead", name="trainer")
    scene.publish([trainer], [ours, theirs], 1)
    return wire, trainer, ours, theirs


def group(stage, broker):
    found, = stage.status(broker)["groups"]
    return found["state"], found["version"]


def is_at(stage, broker, state, version):
    scene.wait_until(f"{state} {version} at {broker}",
                     lambda: group(stage, broker) == (state, version))


def kill_lead(stage, wire):
    os.kill(stage.status("lead")["pid"], signal.SIGKILL)
    wire.cut()


def heal(stage, ours, theirs, version):
    """A trainer that comes later, and its version everywhere."""
    scene.wait_until("two brokers in one epoch again", lambda: stage.joined("lead", 2))
    trainer = stage.trainer("--seed", 5, "--first", version, broker="lead", name="next")
    scene.publish([trainer], [ours, theirs], version)
    trainer.end()
    scene.untouched([ours, theirs], version)


def test_commit_that_the_node_did_not_hear(stage):
    """The lead's own worker has the version: the node's gets it too, from the shadow that it was kept in."""
    wire, trainer, ours, theirs = stand(stage)
    wire.swallow = ("to node", COMMIT)
    trainer.line()
    assert wire.swallowed.wait(scene.DEADLINE_S)
    ours.says("version 2 ok")
    kill_lead(stage, wire)
    theirs.says("update none, IN_DOUBT")
    theirs.says("version 2 ok")
    ours.says("registered again with version 2, CURRENT")
    is_at(stage, "node", "CURRENT", 2)
    is_at(stage, "lead", "CURRENT", 2)
    trainer.popen.wait(scene.DEADLINE_S)
    heal(stage, ours, theirs, 3)


def killed(stage, gate):
    wire, trainer, ours, theirs = stand(stage, gate=gate)
    pid = stage.status("lead")["pid"]
    wire.swallow = ("to node", COMMIT)
    trainer.line()
    assert wire.swallowed.wait(scene.DEADLINE_S)
    os.kill(pid, signal.SIGKILL)
    wire.cut()
    ours.says("registered again")
    scene.wait_until("two brokers in one epoch again", lambda: stage.joined("lead", 2))
    scene.wait_until("an end of the doubt",
                     lambda: group(stage, "node")[0] not in ("PENDING", "IN_DOUBT"))
    here, there = group(stage, "lead"), group(stage, "node")
    assert there in (("CURRENT", 1), ("CURRENT", 2)), (here, there)
    if there[1] == 1:  # it was no commit: nothing of it is anywhere
        assert here == there, (here, there)
    else:
        assert here == there or here[0] == "DIRTY", (here, there)
    trainer.popen.wait(scene.DEADLINE_S)
    heal(stage, ours, theirs, 3)


def test_killed_in_the_moment_of_commit(stage):
    """Wherever the lead was: never one version here and another there with nobody saying so."""
    killed(stage, "held")


def test_killed_in_the_moment_of_commit_live(stage):
    """The same where engines are not asked."""
    killed(stage, "live")


def test_no_commit(stage):
    """Nobody heard of one, and nobody's memory has a byte of it: the old version, and engines that run."""
    wire, trainer, ours, theirs = stand(stage)
    wire.swallow = ("to lead", PREPARED)
    trainer.line()
    assert wire.swallowed.wait(scene.DEADLINE_S)
    kill_lead(stage, wire)
    theirs.says("update none, IN_DOUBT")
    ours.says("registered again with version 1, ")
    theirs.says("update aborted, CURRENT")
    is_at(stage, "node", "CURRENT", 1)
    is_at(stage, "lead", "CURRENT", 1)
    trainer.popen.wait(scene.DEADLINE_S)
    heal(stage, ours, theirs, 2)


def test_direct_is_whole_at_once(stage):
    """Written in place before the decision, and DIRTY without it: the commit makes it whole, and copies
    nothing."""
    wire, trainer, ours, theirs = stand(stage, apply="direct")
    wire.swallow = ("to node", COMMIT)
    trainer.line()
    assert wire.swallowed.wait(scene.DEADLINE_S)
    ours.says("version 2 ok")
    kill_lead(stage, wire)
    theirs.says("dirty")
    theirs.says("version 2 ok")
    is_at(stage, "node", "CURRENT", 2)
    trainer.popen.wait(scene.DEADLINE_S)
    heal(stage, ours, theirs, 3)


def test_cut_off_from_a_lead_that_lives(stage):
    """Only the connection is lost: the lead knows what it has decided, and says it."""
    wire, trainer, ours, theirs = stand(stage)
    wire.swallow = ("to node", COMMIT)
    trainer.line()
    assert wire.swallowed.wait(scene.DEADLINE_S)
    wire.cut()
    trainer.says("version 2 sat out")
    ours.says("version 2 ok")
    theirs.says("version 2 ok")
    is_at(stage, "node", "CURRENT", 2)
    trainer.popen.wait(scene.DEADLINE_S)
    heal(stage, ours, theirs, 3)


def test_cut_off_and_published_at_once(stage):
    """A broker whose connection an update has lost is well, and back in a moment: the update that was
    published at once takes its groups along."""
    wire, trainer, ours, theirs = stand(stage, versions=3)
    wire.swallow = ("to lead", PREPARED)
    trainer.line("\n\n")
    assert wire.swallowed.wait(scene.DEADLINE_S)
    wire.cut()
    trainer.says("version 2 aborted").says("version 3 committed")
    ours.says("version 3 ok")
    theirs.says("version 3 ok", 5)
    trainer.end(1)
    scene.untouched([ours, theirs], 3)


if __name__ == "__main__":
    scene.main(globals())
