"""Which GPU tensors are on, by a stand-in of the driver's calls: no GPU is needed."""

import ctypes

import numpy
import pytest
from test_package import CudaInterface, host_copy, whole

import strew
from strew import _tensors
from strew._tensors import describe


class Driver:
    """Of the driver: whose memory an address is, and waiting for a stream."""

    def __init__(self):
        self.gpus, self.waited, self.fails = {}, [], 0

    def cuPointerGetAttribute(self, out, which, pointer):
        assert which == 9
        if pointer.value not in self.gpus:
            return 1
        out._obj.value = self.gpus[pointer.value]
        return 0

    def cuStreamSynchronize(self, stream):
        assert isinstance(stream, ctypes.c_void_p)
        self.waited.append(stream.value)
        return self.fails


@pytest.fixture
def driver(monkeypatch):
    one = Driver()
    monkeypatch.setattr(_tensors, "_driver", one)
    return one


def cuda_array(driver, gpu, **more):
    array = host_copy(numpy.ones(4, "float32"))
    said = array.__array_interface__
    driver.gpus[said["data"][0]] = gpu
    made = CudaInterface(shape=(4,), typestr="<f4", data=said["data"], **more)
    made.array = array
    return made


def test_the_gpu_is_the_drivers(driver):
    assert [describe("a", cuda_array(driver, gpu)).cuda for gpu in (0, 3)] == [0, 3]
    wrong = cuda_array(driver, 0)
    driver.gpus.clear()
    with pytest.raises(strew.NotShareable, match="tensor a: address .* on no GPU.*CUDA error 1"):
        describe("a", wrong)


def test_two_gpus_are_refused_by_name(broker, driver):
    words = (r"tensor second is on cuda:1 and tensor first on cuda:0: a.* has tensors on one GPU")
    first, second = (cuda_array(driver, gpu) for gpu in (0, 1))
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer, \
            strew.Agent("m", socket=broker.socket) as agent:
        trainer.declare({"host": first.array, "first": first})
        with pytest.raises(strew.NotShareable, match=words):
            trainer.declare({"second": second})
        agent.declare("first", first)
        with pytest.raises(strew.NotShareable, match=words):
            agent.declare("second", second)


def test_streams_of_other_libraries_are_waited_for(broker, driver):
    source, target = (cuda_array(driver, 0, stream=stream) for stream in (0x70, 2))
    idle = cuda_array(driver, 0, stream=None)
    for bad in (0, "s"):
        with pytest.raises(strew.InvalidArgument, match="tensor a: stream"):
            describe("a", cuda_array(driver, 0, stream=bad))
    with strew.Trainer("m", rank=0, size=1, socket=broker.socket) as trainer, \
            strew.Agent("m", socket=broker.socket) as agent:
        trainer.declare({"a": source, "b": idle})
        agent.piece(agent.declare("a", target), whole("a", target.array))
        agent.register()
        with agent.paused(stream=1, timeout=20):
            assert driver.waited == [2]
            source.__cuda_array_interface__["stream"] = 0x71
            running = trainer.publish_async(1, stream=1)
            assert driver.waited == [2, 0x71]
            agent.wait_version(1, 20)
        assert running.report(20).committed
        driver.fails = 700
        with pytest.raises(strew.Error, match="tensor a: its stream 0x71 .* error 700"):
            trainer.publish(2)
