"""Bytes that were changed between two brokers: found before anybody's staged weights are replaced,
said to whoever was written directly."""

import os
import re
import select
import socket
import threading

import scene
from scene import checked, publish

FLIPPED = 700_001  # byte from the lead, inside a tensor; a version has 1.5 MB


class Between:
    """A TCP port that passes everything on to another one and back, and flips one bit when told."""

    def __init__(self, port):
        self.target, self.flip_at, self.flipped = port, None, False
        self.heard = bytearray()  # all that went by, either way
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.wake, self.woken = socket.socketpair()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def flip(self, at=FLIPPED):
        """One bit of the next long stream from the lead."""
        self.flipped, self.flip_at = False, at

    def serve(self):
        peers, back = {}, {}  # back: bytes from the lead on that connection since flip()
        while True:
            for one in select.select([self.listener, self.woken, *peers], [], [])[0]:
                if one is self.woken:
                    for each in (*peers, self.listener, self.woken):
                        each.close()
                    return
                if one is self.listener:
                    near = self.listener.accept()[0]
                    far = socket.create_connection(("127.0.0.1", self.target))
                    peers[near], peers[far] = far, near
                    back[far] = 0
                elif one in peers:
                    self.carry(one, peers, back)

    def carry(self, one, peers, back):
        try:
            data = bytearray(one.recv(65536))
            self.heard += data
            if one in back and self.flip_at:
                at, back[one] = self.flip_at - back[one], back[one] + len(data)
                if 0 <= at < len(data):
                    data[at] ^= 0x08
                    self.flip_at, self.flipped = None, True
            elif one in back:
                back[one] = 0
            peers[one].sendall(data)
        except OSError:
            data = b""
        if not data:
            for each in (one, peers[one]):
                peers.pop(each).close()

    def close(self):
        self.wake.close()
        self.thread.join()


def two_nodes(stage, *options):
    port = scene.free_port()
    stage.broker("lead", "--listen", f"127.0.0.1:{port}", *options)
    between = Between(port)
    stage.broker("node", "--join", f"127.0.0.1:{between.port}", *options)
    scene.wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    return between


def aborted(trainer, between, version):
    """The flipped version, whose report names the bucket and its tensors."""
    between.flip()
    trainer.line()
    trainer.says(f"version {version} aborted")
    assert between.flipped
    trainer.says("changed on the wire")
    for word in ("bucket ", "tensors model.", "(hash "):
        assert word in trainer.log, trainer.log


def arrives_flipped(trainer, between, worker):
    """Version 2, the trainer's last, is committed, with the flipped bit."""
    between.flip()
    trainer.line()
    trainer.says("version 2 committed")
    scene.wait_until("a look at version 2", lambda: len(checked(worker)) == 2)
    assert between.flipped and checked(worker) == [0, 1], worker.log
    trainer.end()


def test_staged(stage):
    """No worker of any node replaces its weights; the next version is committed."""
    between = two_nodes(stage)
    try:
        workers = stage.workers(2, "--check", 5, broker="node")
        workers += stage.workers(1, "--check", 5, "--replica", 1, broker="lead", prefix="a-")
        trainer = stage.trainer("--seed", 5, "--versions", 9, broker="lead")
        publish([trainer], workers, 1)
        aborted(trainer, between, 2)
        scene.wait_until("a new communicator", lambda: stage.joined("lead", 2))
        groups = stage.status("node")["groups"] + stage.status("lead")["groups"]
        assert [(group["state"], group["version"]) for group in groups] == 2 * [("CURRENT", 1)]
        publish([trainer], workers, 3)
        scene.untouched(workers, 3)
    finally:
        between.close()


def test_direct(stage):
    """Without --hash it arrives, which also shows that what is flipped matters; with it the group
    that was written is DIRTY, and the next version heals it."""
    between = two_nodes(stage)
    try:
        worker, = stage.workers(1, "--check", 5, "--apply", "direct", broker="node")
        trainer = stage.trainer("--seed", 5, "--versions", 2, broker="lead")
        publish([trainer], [worker], 1)
        arrives_flipped(trainer, between, worker)
        trainer = stage.trainer("--seed", 5, "--first", 3, "--versions", 9, "--hash",
                                broker="lead", name="second")
        publish([trainer], [worker], 3)
        aborted(trainer, between, 4)
        group, = stage.status("node")["groups"]
        assert group["state"] == "DIRTY", group
        scene.wait_until("a new communicator", lambda: stage.joined("lead", 2))
        publish([trainer], [worker], 5)
        group, = stage.status("node")["groups"]
        assert (group["state"], group["version"]) == ("CURRENT", 5), group
        assert checked(worker)[-1] == 0, worker.log
    finally:
        between.close()


def test_key_hides_nothing(stage):
    """Not guaranteed: with a key too who stands between two brokers reads what they say, and changes what
    goes in buckets, which have no MAC. Without --hash nobody finds out."""
    path = stage.dir / "key"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    between = two_nodes(stage, "--key-file", path)
    try:
        worker, = stage.workers(1, "--check", 5, "--apply", "direct", broker="node")
        trainer = stage.trainer("--seed", 5, "--versions", 2, broker="lead")
        publish([trainer], [worker], 1)
        assert b"embed_tokens.weight" in between.heard
        arrives_flipped(trainer, between, worker)
        assert stage.joined("lead", 2)
    finally:
        between.close()


PARTS = 3
IN_A_PART = 200_001  # of half a megabyte: in its first bucket
NAMED = (("model.embed_tokens.weight", "model.layers.0."),
         ("model.layers.0.mlp.down_proj.weight", "model.layers.1."),
         ("model.layers.2.", "model.layers.2."))


def put(trainer, version, part):
    trainer.line()
    trainer.says(f"version {version} part {part} of {PARTS} released")


def test_parts(stage):
    """The bit is one of a part: that ends the version, and what is named is of that part. The first
    parts, which were whole, are nobody's either: what was written has the sibling's bytes again."""
    between = two_nodes(stage)
    try:
        workers = stage.workers(1, "--check", 5, broker="node")
        workers += stage.workers(1, "--check", 5, "--replica", 1, "--apply", "direct",
                                 broker="node", prefix="d-")
        trainer = stage.trainer("--seed", 5, "--versions", 9, "--parts", PARTS, broker="lead")
        version = 0
        for part in range(1, PARTS + 1):
            version = healed(trainer, workers, version + 1)
            version += 1
            for before in range(1, part):
                put(trainer, version, before)
            between.flip(IN_A_PART)
            trainer.line()
            trainer.says(f"version {version} part {part} of {PARTS} released")
            scene.wait_until("the end", lambda: stage.status("lead")["aborted"] == part)
            assert between.flipped
            if part < PARTS:
                trainer.line()  # with the next part, else with the end, it learns of it
            trainer.says(f"version {version} aborted")
            first, last = re.findall(r"bucket \d+, tensors (\S+) to (\S+),", trainer.log)[-1]
            assert first.startswith(NAMED[part - 1][0]), trainer.log
            assert last.startswith(NAMED[part - 1][1]), trainer.log
            scene.wait_until("a new communicator", lambda: stage.joined("lead", 2))
            scene.wait_until("the groups as they were", lambda: {
                (group["apply"], group["state"], group["version"])
                for group in stage.status("node")["groups"]
            } == {("staged", "CURRENT", version - 1), ("direct", "CURRENT", version - 1)})
        healed(trainer, workers, version + 1)
        for worker in workers:
            assert not any(checked(worker)), worker.log
    finally:
        between.close()


def healed(trainer, workers, version):
    for part in range(1, PARTS + 1):
        put(trainer, version, part)
    trainer.says(f"version {version} committed")
    for worker in workers:
        worker.says(f"version {version} ok")
    return version


if __name__ == "__main__":
    scene.main(globals())
