"""examples/bridge.py: the class that trainers know, over a broker of our own."""

import importlib.util
import pathlib
import subprocess
import sys
import types

import pytest

torch = pytest.importorskip("torch")

from torch import nn

import strew
from loaders import in_threads, poisoned_twin, same_bits

PATH = pathlib.Path(__file__).resolve().parents[2] / "examples" / "bridge.py"
spec = importlib.util.spec_from_file_location("bridge", PATH)
bridge = importlib.util.module_from_spec(spec)
sys.modules["bridge"] = bridge
spec.loader.exec_module(bridge)


def make():
    return nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 5, bias=False))


@pytest.fixture
def environment(broker, monkeypatch):
    monkeypatch.setenv("STREW_SOCKET", str(broker.socket))
    monkeypatch.setenv("NUM_INFERENCE_NODES", "0")
    return types.SimpleNamespace(model_name="policy", device="cpu")


def test_updates_by_the_bridge(environment, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHT_UPDATER_DEBUG", "1")
    model, engine = make(), poisoned_twin(make)
    names = {n: (p.dtype, tuple(p.shape)) for n, p in model.named_parameters()}
    one = bridge.create_bridge_from_training_config(environment)
    one.set_param_list_from_model(model)  # leaves the buffers of BatchNorm out
    reports = []
    with strew.Agent("policy", gate="live") as agent:
        layout = strew.record_layout(
            engine, lambda w: engine.load_state_dict(dict(w), strict=False), names)
        # The first update waits for an engine, whichever comes first.
        in_threads([lambda: reports.append(one.broadcast_weights(model)),
                    lambda: agent.register(layout)])
        for _ in range(2):
            for name, parameter in engine.named_parameters():
                assert same_bits(parameter.data, model.get_parameter(name).data), name
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_()
            reports.append(one.broadcast_weights(model))
        assert [r.version for r in reports] == [1, 2, 3]
        before = engine[0].bias.detach().clone()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        assert one.broadcast_single_param(model, "0.weight").version == 4
        assert same_bits(engine[0].weight.data, model[0].weight.data)
        assert same_bits(engine[0].bias.data, before)
        one.send_heartbeat()
        one.notify_update()
        with pytest.raises(ValueError, match="another model"):
            one.broadcast_weights(make())
        one.cleanup()
        # A trainer that was started again goes on behind the last version.
        environment.start_version = 4
        two = bridge.create_bridge_from_training_config(environment)
        two.set_param_list_from_model(model)
        assert two.broadcast_weights(model).version == 5
        assert same_bits(engine[0].bias.data, model[0].bias.data)
        two.cleanup()
    said = capsys.readouterr().out
    assert "update #3: committed, 5 tensors" in said and "node 0 replica 0: committed" in said
    with pytest.raises(RuntimeError, match="initialize"):
        one.broadcast_weights(model)


def test_an_engine_that_never_comes_is_an_error(environment):
    one = bridge.VLLMWeightBridge(bridge.BridgeConfig(model_name="policy", timeout_seconds=0.5))
    one.initialize()
    with pytest.raises(strew.NotCommitted, match="no worker"):
        one.broadcast_weights(make())
    one.cleanup()


@pytest.mark.parametrize("outcome, ranks, spent", [
    ("aborted", 1, False), ("lost", 1, True), ("lost", 2, True), ("late", 1, True),
    ("late", 2, False)])
def test_a_version_that_is_spent(environment, monkeypatch, outcome, ranks, spent):
    """A number comes again only where nobody can have it."""
    one = bridge.VLLMWeightBridge(bridge.BridgeConfig(model_name="policy", world_size=ranks))
    one.initialize()
    model, tried = make(), []

    def publish(version, **_):
        tried.append(version)
        if outcome == "late":
            raise strew.Timeout(110, "late")
        raise strew.NotCommitted(types.SimpleNamespace(outcome=outcome, groups=(1,)), outcome)

    monkeypatch.setattr(one._trainer, "publish", publish)
    for _ in range(2):
        with pytest.raises(strew.Error):
            one.broadcast_weights(model)
    assert tried == [1, 2 if spent else 1]
    one.cleanup()


@pytest.mark.parametrize("nodelist, hosts", [
    ("a", ["a"]), ("a,b", ["a", "b"]), ("n[1-3]", ["n1", "n2", "n3"]),
    ("n[08-10,12],x", ["n08", "n09", "n10", "n12", "x"]),
    ("a[1-2]-b[3,5].z,c", ["a1-b3.z", "a1-b5.z", "a2-b3.z", "a2-b5.z", "c"])])
def test_slurm_names(nodelist, hosts):
    assert bridge.hostnames(nodelist) == hosts


def test_the_command_of_each_node(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[01-04]")
    assert bridge.get_inference_urls(2)[3] == ["gpu03", "gpu04"]
    monkeypatch.setenv("NUM_INFERENCE_NODES", "2")
    for host, words in (("gpu01.site", "--listen gpu01:26756"), ("gpu02", "--join gpu01:26756"),
                        ("gpu04", "--join gpu01:26756")):
        monkeypatch.setenv("SLURMD_NODENAME", host)
        run = subprocess.run([sys.executable, PATH, "--key-file", "k"], check=True,
                             capture_output=True, text=True)
        assert run.stdout == f"strew run {words} --key-file k\n"
    run = subprocess.run([sys.executable, PATH, "--bogus"], check=False, capture_output=True,
                         text=True)
    assert run.returncode == 2 and run.stdout == "" and "--bogus" in run.stderr, run
    with pytest.raises(ValueError, match="has 4 hosts"):
        bridge.get_inference_urls(4)
    with pytest.raises(ValueError, match="negative"):
        bridge.get_inference_urls(-1)
