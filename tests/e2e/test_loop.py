"""The broker's event loop: io_uring, or epoll where that is forbidden; and a full descriptor table."""

import ctypes
import os
import resource
import socket
import sys
import time

import scene
from scene import publish, wait_until

IO_URING_SETUP = 425


def whole_job(stage):
    workers = stage.workers(2, "--gate", "live", "--check", 7)
    trainer = stage.trainer("--seed", 7, "--versions", 2)
    for version in (1, 2):
        publish([trainer], workers, version)


def test_io_uring_where_it_is_allowed(stage):
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(IO_URING_SETUP, 4, ctypes.create_string_buffer(120))
    if ring < 0:
        print(f"SKIP: no io_uring here: {os.strerror(ctypes.get_errno())}")
        sys.exit(77)
    os.close(ring)
    broker = stage.broker()
    assert "event loop: io_uring\n" in broker.log, broker.log
    whole_job(stage)


def test_epoll_where_io_uring_is_forbidden(stage):
    probe = stage.run("no_uring", "true")
    if probe.returncode == 77:
        print(probe.stderr)
        sys.exit(77)
    broker = stage.broker(through=("no_uring",))
    assert "event loop: epoll, no io_uring: Operation not permitted\n" in broker.log, broker.log
    whole_job(stage)


def cpu_seconds(process):
    with open(f"/proc/{process.popen.pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_no_descriptors_left(stage):
    """The broker sleeps while it can accept nobody, and serves again when it can."""
    broker = stage.broker()
    resource.prlimit(broker.popen.pid, resource.RLIMIT_NOFILE, (len(
        os.listdir(f"/proc/{broker.popen.pid}/fd")) + 2, 4096))
    clients = []
    for _ in range(8):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(stage.socket()))
        clients.append(client)
    wait_until("the log says so", lambda: "new connections wait" in broker.log)
    before = cpu_seconds(broker)
    try:
        clients[0].settimeout(1)
        clients[0].recv(1)
    except TimeoutError:
        pass
    assert cpu_seconds(broker) - before < 0.3
    for client in clients:
        client.close()
    resource.prlimit(broker.popen.pid, resource.RLIMIT_NOFILE, (1024, 4096))
    stage.status()


def test_a_name_server_that_does_not_answer(stage):
    """The lead is looked for at its last address, and its name beside the loop, which serves meanwhile."""
    names, port = stage.dir / "names", scene.free_port()

    def says(text):
        new = stage.dir / "names.new"
        new.write_text(text)
        new.rename(names)

    says("127.0.0.1")
    lead = stage.broker("lead", "--listen", f"127.0.0.1:{port}")
    stage.strewd = "strewd_hasty"
    node = stage.broker("node", "--join", f"lead.test:{port}", env={"HASTY_NAMES": str(names)})
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    assert node.log.count("is asked for") == 1
    # Where it was: no name server is needed.
    says("hang")
    lead.stop()
    lead = stage.broker("again", "--listen", f"127.0.0.1:{port}")
    wait_until("two brokers in one epoch", lambda: stage.joined("again", 2))
    # It is gone for longer, and nobody says where it is.
    lead.stop()
    wait_until("the name server's call", lambda: node.log.count("is asked for") == 2)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        begun = time.monotonic()
        stage.status("node")
        assert time.monotonic() - begun < 1
        time.sleep(0.1)
    # Elsewhere.
    stage.broker("moved", "--listen", f"127.0.0.2:{port}")
    says("127.0.0.2")
    wait_until("two brokers in one epoch", lambda: stage.joined("moved", 2))
    # And it ends while a call goes on.
    says("hang")
    stage.processes[-1].stop()
    wait_until("the name server's call", lambda: node.log.count("is asked for") == 3)
    node.stop()


def test_a_name_that_is_not_known_yet(stage):
    """At the start as well: it waits for the name, and then for the lead, until its timeout."""
    names, port = stage.dir / "names", scene.free_port()
    names.write_text("")
    join = ("strewd_hasty", "--socket", stage.socket("node"), "--backend", "host", "--slot", "256K", "--join",
            f"lead.test:{port}")
    log = stage.start("early", *join, "--join-timeout", "1", env={"HASTY_NAMES": str(names)}).end(4)
    assert f"lead.test:{port}: Name or service not known" in log, log
    stage.start("node", *join, env={"HASTY_NAMES": str(names)}).says("is asked for")
    stage.broker("lead", "--listen", f"127.0.0.1:{port}")
    names.write_text("127.0.0.1")
    wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))


if __name__ == "__main__":
    scene.main(globals())
