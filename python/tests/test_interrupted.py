"""Calls that Ctrl-C or a timeout has left behind, closing that takes its time, and forks."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy
import pytest
from conftest import Broker
from test_package import Instead, host_copy, in_thread, live_agent, whole

import strew
from strew import _agent, _lib, _trainer


@contextlib.contextmanager
def ctrl_c(after=0.3):
    """Ctrl-C in the middle of the block, which must be left by it at once."""
    # A shell's background job starts with SIGINT ignored; Python then leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        yield
    assert time.monotonic() - begin < after + 10  # others may use the cores
    timer.join()


def ones():
    return host_copy(numpy.ones(4, "float32"))


def slow(name, seconds=1.0):
    """That call of the library, made some time later."""
    def call(*arguments):
        time.sleep(seconds)
        return getattr(_lib.lib, name)(*arguments)
    return Instead(**{name: call})


@pytest.fixture
def ranks(broker):
    """Two trainer ranks, and a worker of what they publish."""
    with live_agent(broker, "a", ones()), \
            strew.Trainer("m", rank=0, size=2, socket=broker.socket) as first, \
            strew.Trainer("m", rank=1, size=2, socket=broker.socket) as second:
        for trainer in (first, second):
            trainer.declare({"a": ones(), "b": ones()})
        yield first, second


@pytest.mark.parametrize("again", ["seal", "publish"])
@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_in_the_first_publish(ranks, again, late):
    """The rank whose call was left behind is sealed all the same, and goes on."""
    first, second = ranks
    with ctrl_c():
        first.publish(1)
    join = in_thread(second.publish, 1) if late else None
    if join is None:
        second.seal()
        first._handle.settle(10)
        join = in_thread(second.publish, 1)
    if again == "seal":
        first.seal()
    assert first.publish(1).committed
    join()


def test_ctrl_c_while_a_subset_is_named(ranks):
    """Both ranks number their subsets alike after it."""
    first, second = ranks
    join = in_thread(second.seal)
    first.seal()
    join()
    with ctrl_c():
        first.publish(1, only=["a"])
    for version, only in ((1, ["a"]), (2, ["b", "a"]), (3, ["a"])):
        join = in_thread(lambda v=version, o=only: second.publish(v, only=o))
        assert first.publish(version, only=only).tensors == len(only)
        join()
    assert first._subsets == second._subsets


def both(ranks, version, **options):
    """What publishing has given in each rank: a report or an error."""
    got = [None, None]

    def publish(rank):
        try:
            got[rank] = ranks[rank].publish(version, **options)
        except strew.Error as failure:
            got[rank] = failure
    join = in_thread(publish, 1)
    publish(0)
    join()
    return got


def test_names_that_no_rank_knows(ranks):
    """Every rank is told; what one of them knows, or is empty, is in order."""
    ranks[0].declare({"mine": ones(), "empty": numpy.zeros((0, 3), "float32")})
    assert [r.tensors for r in both(ranks, 1, only=["mine"])] == [1, 1]
    for version in (2, 3):  # of the first the report has told it
        for failure in both(ranks, version, only=["a", "mine", "typo"]):
            assert isinstance(failure, strew.InvalidArgument), failure
            assert "1 of the names in only= were declared by no trainer rank" in str(failure)
            assert "typo" in str(failure) and ("has come" in str(failure)) == (version == 2)
    assert [r.tensors for r in both(ranks, 3, only=["a", "mine"])] == [2, 2]
    for failure in both(ranks, 4, only=["typo"]):
        assert isinstance(failure, strew.Error), failure


@pytest.fixture(params=["whole", "parts"])
def publishing(request, broker):
    """A trainer, its worker and that one's memory, and publish(version, value) by either route."""
    target, source = ones(), ones()
    with strew.Agent("m", gate="live", socket=broker.socket) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        agent.piece(agent.declare("a", target), whole("a", target))
        agent.register()
        if request.param == "whole":
            trainer.declare({"a": source})
        else:
            trainer.declare_parts({"a": ("float32", (4,))})

        def publish(version, value, **options):
            if request.param == "whole":
                source[...] = value
            else:
                options["source"] = [("a", numpy.full(4, value, "float32"))]
            return trainer.publish(version, **options)
        yield trainer, agent, target, publish


def failing(name, failure, behind=False):
    """That call of the library, left by an exception before it, or behind its success."""
    def call(*arguments):
        if behind:
            assert getattr(_lib.lib, name)(*arguments) == 0
        raise failure
    return Instead(**{name: call})


LEFT = [KeyboardInterrupt(), strew.Timeout(110, "late")]


@pytest.mark.parametrize("failure", LEFT, ids=["ctrl-c", "timeout"])
def test_a_report_that_was_left(publishing, monkeypatch, failure):
    """The same call hears it, and publishes nothing anew; one of another version goes on behind."""
    trainer, agent, target, publish = publishing
    for version in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(_trainer, "lib", failing("strew_trainer_wait_report", failure))
            with pytest.raises(type(failure)):
                publish(version, version)
        agent.wait_version(version, 20)  # its memory is lent until then
        if version == 1:
            report = publish(1, 9)
            assert report.committed and report.version == 1 and (target == 1).all()
    assert publish(3, 3).version == 3 and (target == 3).all() and trainer._committed == 3
    with pytest.raises(strew.Error, match="version 3"):  # heard by now: anew, and refused
        publish(3, 3)
    assert publish(4, 4).committed


def test_a_report_that_is_late_is_waited_for(broker):
    """The broker stands still for longer than publish() waits."""
    source = ones()
    with live_agent(broker, "a", source) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket, timeout=0.2) as trainer:
        trainer.declare({"a": source})
        trainer.seal(30)
        broker.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(strew.Timeout, match="version 1 at trainer rank 0 of 1: no report"):
                trainer.publish(1, timeout=0.2)
            with pytest.raises(strew.Busy, match="version 1 has not been reported"):
                trainer.publish(2, timeout=0.2)
            with pytest.raises(strew.Busy, match="version 1 has not been reported"):
                trainer.publish_async(2)
            again = trainer.publish_async(1)
        finally:
            broker.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(strew.NotCommitted):  # its own deadline may have passed
            again.report(30)
        assert trainer.publish(2).committed
        agent.wait_version(2, 30)


def test_a_report_that_ctrl_c_has_cut_off(publishing, monkeypatch):
    """Behind the library's success: it is not lost, and subsets go on from its version."""
    trainer, agent, target, publish = publishing
    with monkeypatch.context() as patch:
        patch.setattr(_trainer, "lib", failing("strew_trainer_wait_report", KeyboardInterrupt(),
                                               behind=True))
        with pytest.raises(KeyboardInterrupt):
            publish(1, 1)
    agent.wait_version(1, 20)
    if trainer._parts is None:
        assert trainer.publish(2, only=["a"]).committed  # base: 1, which nobody has told the user
    else:
        assert publish(1, 9).version == 1
    assert (target == 1).all()


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("publishing", ["whole"], indirect=True)  # opened parts are given up
def test_ctrl_c_at_the_publishing_itself(publishing, monkeypatch, behind):
    """Whether it has begun is seen by the next call."""
    trainer, agent, target, publish = publishing
    with monkeypatch.context() as patch:
        patch.setattr(_trainer, "lib",
                      failing("strew_trainer_publish", KeyboardInterrupt(), behind))
        with pytest.raises(KeyboardInterrupt):
            publish(1, 1)
    if behind:
        agent.wait_version(1, 20)
    assert publish(1, 1).version == 1 and (target == 1).all()
    assert publish(2, 2).version == 2 and (target == 2).all()


def publish_behind(trainer, version):
    """As soon as the end of the update before has come, which somebody has a handle of."""
    end = time.monotonic() + 20
    while True:
        try:
            return trainer.publish_async(version)
        except strew.Busy:
            assert time.monotonic() < end
            time.sleep(0.001)


def test_a_handle_that_was_left_keeps_its_end(broker):
    """The report that a later call has taken, and what it was refused for."""
    with live_agent(broker, "a", ones()) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"a": ones()})
        first = trainer.publish_async(5)
        assert trainer.publish_async(5) is first
        agent.wait_version(5, 20)
        second = publish_behind(trainer, 4)  # the report of 5 comes behind the worker's
        assert first.report(0).version == 5
        first.wait_released(0)
        assert publish_behind(trainer, 6).report(20).version == 6
        with pytest.raises(strew.Error, match="version 4"):
            second.report(0)


def test_a_handle_whose_broker_was_lost(tmp_path):
    broker = Broker(tmp_path)
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"a": ones()})
        trainer.seal()
        broker.process.send_signal(signal.SIGSTOP)
        running = trainer.publish_async(1)
        broker.process.kill()
        broker.process.wait()
        broker = Broker(tmp_path)
        with pytest.raises(strew.BrokerLost):
            running.wait_released(20)
        trainer.reconnect(30)
        for _ in range(2):
            with pytest.raises(strew.BrokerLost, match="version 1"):
                running.report(0)
        with live_agent(broker, "a", ones()):
            assert trainer.publish(1).committed
    broker.stop()


def test_an_empty_tensor_in_a_subset(broker):
    with live_agent(broker, "a", ones()), \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"a": ones(), "z": numpy.zeros((0, 3), "float32")})
        assert trainer.publish(1, only=["a", "z"]).tensors == 1
        with pytest.raises(strew.InvalidArgument, match="no tensor with elements"):
            trainer.publish(2, only=["z"])
        name = (_lib.c_char_p * 1)(b"z")
        said = _lib.c_u32()
        with pytest.raises(strew.InvalidArgument, match="was not declared here") as caught:
            trainer._handle.long(_lib.lib.strew_trainer_subset, name, 1, _lib.ctypes.byref(said))
        assert not isinstance(caught.value, strew.BrokerMissing)


@pytest.mark.parametrize("how", ["ctrl-c", "timeout"])
def test_a_registration_that_was_left(broker, monkeypatch, how):
    memory = ones()
    piece = whole("a", memory)
    layout = strew.Layout({"a": strew.LayoutParameter(memory, [piece])})
    with strew.Agent("m", gate="live", socket=broker.socket) as agent:
        monkeypatch.setattr(_agent, "lib", slow("strew_agent_register"))
        if how == "ctrl-c":
            with ctrl_c():
                agent.register(layout)
        else:
            with pytest.raises(strew.Timeout):
                agent.register(layout, timeout=0.2)
        with pytest.raises(strew.Busy):
            agent.poll()
        agent.register(layout)
        assert agent.wait_current(10) == 0
        monkeypatch.setattr(_agent, "lib", slow("strew_agent_withdraw"))
        with pytest.raises(strew.Timeout, match="0.2 s"):
            agent.withdraw(timeout=0.2)
        agent.withdraw()


def test_a_seal_with_a_timeout(ranks):
    first, second = ranks
    begin = time.monotonic()
    with pytest.raises(strew.Timeout):
        first.seal(timeout=0.3)
    assert time.monotonic() - begin < 5
    second.seal()
    first.seal(timeout=10)


@pytest.mark.parametrize("face", ["Trainer", "Agent"])
def test_ctrl_c_while_it_is_opened(broker, monkeypatch, face):
    """What is open in the end is closed again."""
    name, closed = f"strew_{face.lower()}", []

    def close(address):
        closed.append(address)
        getattr(_lib.lib, f"{name}_close")(address)
    stub = slow(f"{name}_open")
    vars(stub)[f"{name}_close"] = close
    monkeypatch.setattr(_trainer if face == "Trainer" else _agent, "lib", stub)
    with ctrl_c():
        getattr(strew, face)("m", socket=broker.socket)
    end = time.monotonic() + 10
    while not closed and time.monotonic() < end:
        time.sleep(0.05)
    gc.collect()
    assert len(closed) == 1 and closed[0]


def test_closing_takes_its_time(broker, monkeypatch):
    """Ctrl-C and a timeout leave it to itself; the memory is kept until it is over."""
    monkeypatch.setattr(_trainer, "lib", slow("strew_trainer_close", 3.0))
    for how in ("timeout", "ctrl-c", "deleted"):
        trainer = strew.Trainer("m", rank=0, size=1, socket=broker.socket)
        trainer.declare({"a": ones()})
        begin = time.monotonic()
        if how == "timeout":
            with pytest.raises(strew.Timeout, match="close: not over in 0.2 s"):
                trainer.close(timeout=0.2)
        elif how == "ctrl-c":
            with ctrl_c():
                trainer.close()
        else:
            monkeypatch.setattr(_lib, "DELETED_S", 0.1)
            handle = trainer._handle
            del trainer
            gc.collect()
            assert time.monotonic() - begin < 2.5 and not handle._closing.is_set()
            handle.close()
            break
        with pytest.raises(strew.InvalidArgument, match="closed"):
            trainer.seal()
        trainer.close()
        assert time.monotonic() - begin > 2.9


def test_what_is_never_closed(broker):
    """An interpreter that ends with open handles says nothing of it."""
    code = ("import sys, strew\n"
            "trainer = strew.Trainer('m', rank=0, size=1, socket=sys.argv[1])\n"
            "class Circle: pass\n"
            "circle = Circle()\n"
            "circle.me, circle.agent = circle, strew.Agent('m', socket=sys.argv[1])\n")
    run = subprocess.run([sys.executable, "-c", code, broker.socket], capture_output=True,
                         text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("held", [False, True])
def test_a_forked_child_ends(broker, held):
    """It has neither the thread that held the lock nor the connection."""
    memory = ones()
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer, \
            live_agent(broker, "a", memory):
        trainer.declare({"a": memory})
        stop, inside = threading.Event(), threading.Event()

        def hold():
            with trainer._handle.lock:
                inside.set()
                stop.wait(20)
        if held:
            join = in_thread(hold)
            inside.wait(10)
        child = os.fork()
        if not child:
            code = 1
            try:
                trainer.seal(timeout=3)
            except strew.Error as failure:
                code = 0 if "fork" in failure.sentence else 2
            try:
                trainer.close(timeout=3)
            except strew.Error:
                code = 3
            os._exit(code)
        end = time.monotonic() + 10
        while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
            time.sleep(0.05)
        if not done[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert done[0] and os.waitstatus_to_exitcode(done[1]) == 0
        if held:
            stop.set()
            join()
        assert trainer.publish(1).committed


@pytest.mark.parametrize("gate", ["live", "held"])
@pytest.mark.parametrize("end", ["goes on", "is killed"])
def test_closing_an_agent_whose_broker_stands_still(broker, tmp_path, gate, end):
    """Its memory is not free, and kept, until the broker goes on or has ended."""
    if end == "is killed":
        (tmp_path / "other").mkdir()
        broker = Broker(tmp_path / "other")
    memory = ones()
    freed = weakref.ref(memory)
    agent = strew.Agent("m", gate=gate, socket=broker.socket, timeout=1.0)
    agent.piece(agent.declare("a", memory), whole("a", memory))
    agent.register(timeout=30)
    broker.process.send_signal(signal.SIGSTOP)
    for _ in range(2):
        with pytest.raises(strew.Timeout, match="not over in 1 s: the broker has not given the "
                           "memory back"):
            agent.close()
    handle = agent._handle
    del agent, memory
    gc.collect()
    assert freed() is not None
    if end == "goes on":
        broker.process.send_signal(signal.SIGCONT)
    else:
        broker.process.kill()
        broker.process.wait()
    handle.close(30)
    gc.collect()
    assert freed() is None
    if end == "goes on":
        assert not broker.groups()


def test_memory_that_a_broker_does_not_give_back(broker, monkeypatch):
    """Nor will: it is kept for ever."""
    def close(address):
        _lib.lib.strew_agent_close(address)
        return -5
    monkeypatch.setattr(_agent, "lib", Instead(strew_agent_close=close))
    memory = ones()
    agent = strew.Agent("m", socket=broker.socket)
    agent.piece(agent.declare("a", memory), whole("a", memory))
    freed = weakref.ref(memory)
    for _ in range(2):
        with pytest.raises(strew.Error):
            agent.close()
    del agent, memory
    gc.collect()
    assert freed() is not None
    _lib._never_freed.clear()


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("gate", ["live", "held"])
def test_an_interpreter_ends_whose_broker_stands_still(broker, gate, closed):
    code = ("import os, signal, sys, strew\n"
            "memory = strew.host_empty((4,), 'float32')\n"
            "agent = strew.Agent('m', socket=sys.argv[1], gate=sys.argv[2], timeout=1.0)\n"
            "agent.piece(agent.declare('a', memory), strew.Piece('a', 'float32', (4,), (4,), (0,),"
            " (4,), 0, (1,)))\n"
            "agent.register(timeout=30)\n"
            "os.kill(int(sys.argv[3]), signal.SIGSTOP)\n"
            "try:\n"
            "    if sys.argv[4] == 'True': agent.close()\n"
            "except strew.Timeout: print('late')\n")
    try:
        run = subprocess.run([sys.executable, "-c", code, broker.socket, gate,
                              str(broker.process.pid), str(closed)], capture_output=True,
                             text=True, timeout=60, check=False)
    finally:
        broker.process.send_signal(signal.SIGCONT)
    assert (run.returncode, run.stdout, run.stderr) == (0, "late\n" if closed else "", "")
