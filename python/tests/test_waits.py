"""What waits: its timeouts, and the sentences when nothing has come; who a rank is."""

import math
import time

import numpy
import pytest
from conftest import Broker
from test_interrupted import ctrl_c, slow
from test_package import follow, host_copy, in_thread, live_agent, whole

import strew
from strew import _lib, _trainer


def ones():
    return host_copy(numpy.ones(4, "float32"))


NOBODY = {name: None for name in (
    "RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID",
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE")}
STEP = {"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "8"}


@pytest.mark.parametrize("said, want", [
    ({}, (0, 1)),
    ({"RANK": "3", "WORLD_SIZE": "4", **STEP}, (3, 4)),
    ({"RANK": "3"}, (0, 1)),
    (STEP, (5, 8)),
    # A batch script, in which nobody has called srun: one process of a job of eight tasks.
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "OMPI_COMM_WORLD_RANK": "2",
      "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3)),
    ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
    ({"PMI_RANK": "6", "PMI_SIZE": "7"}, (6, 7)),
])
def test_the_launchers_rank(broker, monkeypatch, said, want):
    for name, value in {**NOBODY, **said}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert _trainer.launcher_rank() == want
    with strew.Trainer("m", socket=broker.socket) as trainer:
        assert (trainer._rank, trainer._size) == want


@pytest.mark.parametrize("seconds, want", [(None, 50), (math.inf, 50), (1e9, 50), (0, 1),
                                           (0.0001, 1), (0.0101, 11)])
def test_timeouts_in_milliseconds(seconds, want):
    assert _lib.to_ms(seconds, "publish", 50) == want


@pytest.mark.parametrize("seconds", [-1, math.nan, "3"])
def test_timeouts_that_are_none(seconds):
    with pytest.raises(strew.InvalidArgument, match="publish: a timeout of .* seconds"):
        _lib.to_ms(seconds, "publish")


@pytest.mark.parametrize("timeout", [None, math.inf, 30])
def test_waiting_for_ever(broker, timeout):
    with live_agent(broker, "a", ones()) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket, timeout=math.inf) as trainer:
        trainer.declare({"a": ones()})
        assert trainer.publish(1, timeout=timeout).committed
        assert agent.wait_version(1, timeout=timeout).version == 1
        running = trainer.publish_async(2, timeout=timeout)
        running.wait_released(timeout)
        assert running.report(timeout).committed
        for call in (agent.withdraw, agent.close, trainer.close):
            call(timeout=timeout)


def test_sealing_and_reconnecting_for_ever(tmp_path):
    broker = Broker(tmp_path)
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"a": ones()})
        trainer.seal(timeout=math.inf)
        broker.process.kill()
        broker.process.wait()
        with pytest.raises(strew.BrokerLost):
            trainer.publish(1)
        join = in_thread(trainer.reconnect, math.inf)
        broker = Broker(tmp_path)
        join()
        with pytest.raises(strew.InvalidArgument, match="not gone"):
            trainer.reconnect(None)
    broker.stop()


def test_a_version_that_does_not_come(broker):
    """The sentences say which, at whom; one that is there already is not waited for."""
    source, target = ones(), ones()
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer, \
            strew.Agent("m", socket=broker.socket) as agent:
        trainer.declare({"a": source})
        agent.piece(agent.declare("a", target), whole("a", target))
        agent.register()
        join = in_thread(follow, agent, 1)
        trainer.publish(1)
        join()
        with agent.paused(timeout=20):
            begin = time.monotonic()
            event = agent.wait_version(1, timeout=20)
            assert (event.kind, event.version, event.outcome) == ("done", 1, "committed")
            assert time.monotonic() - begin < 5
            with pytest.raises(strew.Timeout, match="version 2 did not come in 0.2 s: the group is "
                               "CURRENT at version 1"):
                agent.wait_version(2, timeout=0.2)
        running = trainer.publish_async(2)
        for wait, words in ((running.report, "no report in 0.2 s"),
                            (running.wait_released, "not released in 0.2 s")):
            with pytest.raises(strew.Timeout, match=f"version 2 at trainer rank 0 of 1: {words}"):
                wait(0.2)
        follow(agent, 2)
        assert running.report(20).committed


def test_the_end_of_an_update_is_taken(broker, monkeypatch):
    """The broker's page may tell the version before its message does, which is waited for."""
    pending = _trainer.STATES.index("PENDING")
    with live_agent(broker, "a", ones()) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"a": ones()})
        with monkeypatch.context() as patch:
            patch.setattr(agent, "_state", lambda: (pending, 1))
            said = []
            join = in_thread(lambda: said.append(agent.wait_version(1, timeout=20)))
            time.sleep(0.2)
            assert not said
            assert trainer.publish(1).committed
            join()
            assert [(e.kind, e.version, e.outcome, e.state) for e in said] == [
                ("done", 1, "committed", "CURRENT")]
            assert agent.poll() is None
            # An update that takes longer than the caller has: the version is there all the same.
            event = agent.wait_version(1, timeout=0.2)
            assert (event.kind, event.version, event.state) == ("done", 1, "PENDING")


def test_the_end_of_an_update_is_taken_that_came_meanwhile(broker, monkeypatch):
    with live_agent(broker, "a", ones()) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer:
        trainer.declare({"a": ones()})
        look, current = agent._state, _trainer.STATES.index("CURRENT")

        def look_later():
            assert trainer.publish(1).committed
            while look() != (current, 1):
                time.sleep(0.001)
            return look()

        monkeypatch.setattr(agent, "_state", look_later)
        assert agent.wait_version(1, timeout=20).version == 1
        assert agent.poll() is None


def test_a_version_in_parts_that_could_not_be_given_up(broker, monkeypatch):
    """Ctrl-C, and the call that it has left behind does not come back: the next begins with it."""
    from strew import _parts
    shape = ("float32", (4,))
    with live_agent(broker, "a", ones()) as agent, \
            strew.Trainer("m", rank=0, size=1, socket=broker.socket, timeout=5) as trainer:
        trainer.declare_parts({"a": shape})
        with monkeypatch.context() as patch:
            patch.setattr(_parts, "lib", slow("strew_trainer_close_parts"))
            patch.setattr(_parts, "SETTLE_S", -4.9)
            with ctrl_c(0.5):
                trainer.publish(1, source=[("a", numpy.ones(4, "float32"))])
        with pytest.raises(strew.Busy):
            trainer.fileno()
        assert trainer.publish(2, source=[("a", numpy.ones(4, "float32"))]).committed
        assert agent.wait_version(2, 20).version == 2
