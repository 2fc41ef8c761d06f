"""strew.vllm's trainer among engines that fail: in this process, with vLLM's workers stood in for.

The stand-in keeps a worker's session as vLLM 0.32 does (start_weight_update() of its GPU worker and
the siblings of that).
"""

import threading

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import strew  # noqa: E402
import strew.vllm  # noqa: E402
from loaders import random_values, same_bits  # noqa: E402
from strew._engine import Receiver  # noqa: E402

SHAPES = {"a": (torch.float32, (6, 5)), "b": (torch.bfloat16, (7,))}


class Worker:
    """One of vLLM's, with strew's transfer engine."""

    def __init__(self, broker, replica, rank, size):
        self.module, self.active = nn.Module(), False
        for name, (dtype, shape) in SHAPES.items():
            self.module.register_parameter(name, nn.Parameter(
                torch.zeros(shape, dtype=dtype), requires_grad=False))
        layout = strew.record_layout(
            self.module, lambda w: self.module.load_state_dict(dict(w), strict=False), SHAPES)
        self.receiver = Receiver(layout, lambda: strew.Agent(
            "policy", replica=replica, rank=rank, size=size, socket=broker.socket), lambda: None)

    def start(self):
        if self.active:
            raise RuntimeError("start_weight_update called while a weight update is already active")
        self.receiver.prepare()
        self.active = True

    def update(self, version, timeout):
        if not self.active:
            raise RuntimeError("start_weight_update must be called before update_weights.")
        try:
            self.receiver.receive(version, timeout)
        except BaseException:
            self.active = False
            raise

    def finish(self):
        if not self.active:
            raise RuntimeError("finish_weight_update called without a matching start_weight_update")
        self.receiver.finish()
        self.active = False


class Client:
    """An engine, as a client of vLLM's shows it to a trainer. bad: call -> what it does first."""

    def __init__(self, broker, replica, size=1):
        self.workers = [Worker(broker, replica, rank, size) for rank in range(size)]
        self.paused, self.calls, self.bad, self.stale = False, [], {}, False

    def _all(self, call, function):
        self.calls.append(call)
        if call in self.bad:
            self.bad[call]()
        failures = []

        def run(worker):
            try:
                function(worker)
            except Exception as failure:
                failures.append(failure)
        threads = [threading.Thread(target=run, args=(one,)) for one in self.workers]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        if failures:
            raise failures[0]

    def init_weight_transfer_engine(self, init_info):
        self._all("init", lambda worker: worker.receiver.register())

    def start_weight_update(self):
        self._all("start", Worker.start)

    def update_weights(self, update_info):
        assert self.paused or update_info["version"] == 0
        self._all("update", lambda worker: worker.update(**update_info))
        self.stale = True

    def finish_weight_update(self, weight_version=None):
        self._all("finish", Worker.finish)

    def pause_generation(self, mode):
        self._all("pause", lambda _: None)
        self.paused = True

    def resume_generation(self):
        self._all("resume", lambda _: None)
        assert not self.stale
        self.paused = False

    def reset_prefix_cache(self):
        self._all("reset", lambda _: None)
        self.stale = False
        return True

    def has(self, values):
        return all(same_bits(getattr(one.module, n).data, v) for one in self.workers
                   for n, v in values.items())

    def close(self):
        for one in self.workers:
            one.receiver.close()


def fail(failure):
    def raises():
        raise failure
    return raises


class Setup:
    """A trainer with engines, and the values that it publishes."""

    def __init__(self, broker, sizes):
        self.values = random_values(SHAPES, 1)
        self.clients = [Client(broker, i, size) for i, size in enumerate(sizes)]
        self.trainer = strew.vllm.StrewTrainerEngine.connect(
            strew.vllm.StrewTrainerInitInfo(rank=0, size=1, socket=str(broker.socket), timeout=3),
            client=self.clients, source=self.values)

    def change(self, seed):
        for name, value in random_values(SHAPES, seed).items():
            self.values[name].copy_(value)

    def works(self, seed):
        """The next update is like any."""
        self.change(seed)
        report = self.trainer.send_weights()
        assert report.committed and len(report.groups) == len(self.clients)
        assert not self.trainer.failures
        for one in self.clients:
            assert one.has(self.values) and not one.paused and not one.bad
            assert not any(worker.active for worker in one.workers)


@pytest.fixture
def setup(broker, request):
    one = Setup(broker, getattr(request, "param", (1, 1)))
    yield one
    one.trainer.shutdown()
    for client in one.clients:
        client.close()


def test_a_publish_that_is_refused(setup):
    """No engine is left in an update that nobody publishes."""
    setup.works(2)
    with pytest.raises(strew.InvalidArgument, match="versions? 0"):
        setup.trainer.send_weights(0)
    setup.works(3)
    tensor = setup.values["a"]
    address = tensor.data
    tensor.data = tensor.data.clone()
    with pytest.raises(strew.Moved):
        setup.trainer.send_weights()
    tensor.data = address
    assert all("pause" not in one.calls[-4:] and not one.paused for one in setup.clients)
    setup.works(4)


@pytest.mark.parametrize("setup", [(1,), (1, 1)], indirect=True)
@pytest.mark.parametrize("when", ["start", "pause", "update", "finish", "reset", "resume"])
def test_ctrl_c(setup, when):
    """Nobody is left paused, and what was published is reported."""
    setup.works(2)
    setup.change(3)

    def interrupted():
        del setup.clients[-1].bad[when]
        raise KeyboardInterrupt
    setup.clients[-1].bad[when] = interrupted
    with pytest.raises(KeyboardInterrupt):
        setup.trainer.send_weights()
    for one in setup.clients:
        assert not one.paused and not any(worker.active for worker in one.workers)
    # A number that somebody has, or may have, is not given to other weights.
    assert setup.trainer.version == (1 if when in ("start", "pause") else 2)
    setup.works(4)


@pytest.mark.parametrize("when", ["start", "pause", "update", "finish", "reset", "resume"])
def test_one_bad_engine(setup, when):
    """The other one is not held up, and the bad one takes the next version."""
    setup.works(2)
    setup.change(3)
    good, bad = setup.clients
    bad.bad[when] = fail(RuntimeError("out of order"))
    report = setup.trainer.send_weights()
    assert {g.replica: g.outcome == "committed" for g in report.groups}[0]
    assert good.has(setup.values) and not good.paused
    assert "out of order" in str(setup.trainer.failures[1])
    assert bad.paused == (when in ("finish", "reset", "resume"))
    bad.bad.clear()
    setup.works(4)


@pytest.mark.parametrize("setup", [(2, 1)], indirect=True)
def test_an_engine_of_which_one_worker_cannot_start(setup):
    """The other worker has begun: that ends too."""
    setup.works(2)
    setup.clients[0].workers[1].receiver.sleep()
    setup.change(3)
    assert setup.trainer.send_weights().outcome == "sat out"
    assert setup.clients[1].has(setup.values)
    assert "asleep" in str(setup.trainer.failures[0])
    assert not any(worker.active for worker in setup.clients[0].workers)
    setup.clients[0].workers[1].receiver.wake()
    setup.works(4)


def test_an_engine_that_may_run_no_step_is_healed_by_the_next_version(setup):
    """vLLM keeps a session open that it could not finish."""
    setup.works(2)
    good, bad = setup.clients
    receiver = bad.workers[0].receiver
    finish = receiver.finish
    receiver.finish = fail(strew.Dirty(117, "written in part"))

    def once():
        del bad.bad["update"]
        raise RuntimeError("the broker was lost")
    bad.bad["update"] = once
    setup.change(3)
    setup.trainer.send_weights()
    assert bad.paused and not good.paused and good.has(setup.values)
    receiver.finish = finish
    setup.works(4)


def test_all_engines_are_bad(setup):
    setup.works(2)
    for one in setup.clients:
        one.bad["start"] = fail(RuntimeError("out of order"))
    with pytest.raises(RuntimeError, match="out of order"):
        setup.trainer.send_weights()
    for one in setup.clients:
        one.bad.clear()
        assert "pause" not in one.calls[-3:] and not one.paused
    setup.works(3)
