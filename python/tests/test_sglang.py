"""strew.sglang.load, called as SGLang calls it: by its own WeightUpdater where the package sglang
can be imported (no GPU is needed for that class), and by a stand-in that does the same everywhere.

Whole engines and servers are run on the CPU where the package can do that (without sgl_kernel).
"""

import base64
import http.server
import importlib
import importlib.util
import inspect
import json
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import types

import pytest

torch = pytest.importorskip("torch")

from conftest import Broker  # noqa: E402
from torch import nn  # noqa: E402

import strew  # noqa: E402
import strew.sglang  # noqa: E402
from loaders import (  # noqa: E402
    Fused,
    assert_filled,
    free_port,
    in_threads,
    poisoned_twin,
    random_values,
)
from strew._engine import write_described  # noqa: E402

DESCRIBED = Fused.checkpoint()
for _name in ("scaled", "extra"):  # computed after loading; put nowhere
    del DESCRIBED[_name]


class Filled(Fused):
    """Without the parameters that none of these tensors fills: an engine's must all be."""

    def __init__(self, rank, size):
        super().__init__(rank, size)
        del self.derived, self.never


def stand_in(model, load_format):
    """What calls the hook in SGLang 0.4.10 to 0.5.23, word for word but for its other cases."""
    def update_weights_from_tensor(named_tensors, load_format=None):
        named_tensors = [(name, tensor.to("cpu")) for name, tensor in named_tensors]
        assert load_format in [strew.sglang.LOADER]
        module, _, function = load_format.rpartition(".")
        custom_loader = getattr(importlib.import_module(module), function)
        custom_loader(model, named_tensors)
        return True, "Success"
    return update_weights_from_tensor


def of_sglang(monkeypatch):
    """SGLang's own: the class that its schedulers have, and what it reads of the process."""
    updaters = pytest.importorskip(
        "sglang.srt.model_executor.model_runner_components.weight_updater",
        reason="the package sglang is not installed, or is too old to have this class",
        exc_type=ImportError)
    monkeypatch.setattr(updaters, "get_parallel", lambda: types.SimpleNamespace(tp_rank=0))
    monkeypatch.setattr(updaters, "get_model",
                        lambda: types.SimpleNamespace(weight_cache_mode="off"))

    def make(model, load_format):
        return updaters.WeightUpdater(
            tp_rank=0, device="cpu", gpu_id=0, model_config=None,
            custom_weight_loaders=[load_format], get_model=lambda: model,
            update_model_fields=None, recapture_cuda_graph=None, get_model_runner=None,
        ).update_weights_from_tensor
    return make


@pytest.fixture(params=["stand-in", "sglang"])
def caller(request, monkeypatch):
    world = types.SimpleNamespace(world_size=1, rank_in_group=0, cpu_group=None)
    monkeypatch.setattr(strew.sglang, "_groups", lambda: (world, 0))
    if request.param == "stand-in":
        return stand_in
    return of_sglang(monkeypatch)


class Engine:
    """What strew.sglang uses of sglang.Engine; its scheduler is in this process."""

    def __init__(self, module, caller, path):
        self.module, self.calls, self.session = module, [], False
        self.server_args = types.SimpleNamespace(load_format="auto", model_path=path)
        self._update = caller(module, strew.sglang.LOADER)

    def begin_weight_update(self):
        assert not self.session
        self.session = True
        return True, "Success"

    def end_weight_update(self):
        self.session = False
        return True, "Success"

    def update_weights_from_tensor(self, named_tensors, load_format=None, flush_cache=True):
        assert self.session and not flush_cache
        self.calls.append(json.loads(named_tensors[0][0].removeprefix("strew:"))["do"])
        sent = strew.sglang.pickled(named_tensors)  # it goes to another process
        return self._update(pickle.loads(sent), load_format)

    def flush_cache(self):
        self.calls.append("flush")

    def release_memory_occupation(self, tags=None):
        self.calls.append("release")

    def resume_memory_occupation(self, tags=None):
        self.calls.append("resume")


class Policy(nn.Module):
    """What the trainer has: tensors by the checkpoint's names."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def named_parameters(self, *_, **__):
        return iter(self.values.items())

    def change(self, seed):
        for name, value in random_values(DESCRIBED, seed).items():
            self.values[name].copy_(value)
        return self.values


def save(folder, values):
    from safetensors.torch import save_file
    save_file(values, folder / "model.safetensors")
    return str(folder)


@pytest.fixture
def loaded(tmp_path):
    """An engine's module with a checkpoint in it, that checkpoint, and the trainer's model."""
    pytest.importorskip("safetensors")
    values = random_values(DESCRIBED, 0)
    module = poisoned_twin(lambda: Filled(0, 1))
    module.load_weights(values.items())
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    return module, save(folder, values), Policy(values)


def expected(values):
    want = Filled(0, 1)
    want.load_weights(values.items())
    return want


def filled(module, policy):
    layout = strew.sglang._receivers[module]._layout
    assert_filled(module, expected(policy.values), layout)


def test_updates(broker, caller, loaded):
    module, path, policy = loaded
    engine = Engine(module, caller, path)
    trainer = strew.sglang.EngineTrainer(engine, policy, socket=broker.socket,
                                         engine_socket=str(broker.socket))
    for version in (1, 2):
        policy.change(version)
        report = trainer.send_weights()
        assert report.committed and report.version == version
        filled(module, policy)
    assert engine.calls == ["init"] + ["prepare", "update", "flush"] * 2 and not engine.session
    trainer.close()


@pytest.mark.parametrize("late, failure", [(0, None), (2, None), (1, strew.Error(5, "no"))])
def test_sleep_returns_when_the_memory_may_go(caplog, monkeypatch, late, failure):
    """SGLang lets go of it behind load(): one whose broker hangs waits, or ends its scheduler."""
    ends = [strew.Timeout(110, "late")] * late + [failure]

    class Sleeper:
        def sleep(self):
            end = ends.pop(0)
            if end is not None:
                raise end

    model = nn.Linear(1, 1)
    monkeypatch.setitem(strew.sglang._receivers, model, Sleeper())
    named = [(strew.sglang._MARK + '{"do": "sleep"}', torch.empty(0))]
    if failure is None:
        strew.sglang.load(model, named)
    else:
        with pytest.raises(strew.Dirty, match="does not give the parameters back: no"):
            strew.sglang.load(model, named)
    assert not ends and len(caplog.records) == late


def test_asleep_among_others(broker, caller, loaded):
    module, path, policy = loaded
    other = twin_of(policy)
    engines = [Engine(module, caller, path), Engine(other, caller, path)]
    trainer = strew.sglang.EngineTrainer(engines, policy, socket=broker.socket,
                                         engine_socket=str(broker.socket))
    policy.change(1)
    assert {g.replica for g in trainer.send_weights().groups} == {0, 1}
    old = {name: p.data.clone() for name, p in module.named_parameters()}
    trainer.release_memory_occupation(0)
    policy.change(2)
    report = trainer.send_weights()
    assert report.committed and [g.replica for g in report.groups] == [1]
    filled(other, policy)
    assert all(torch.equal(p.data, old[n]) for n, p in module.named_parameters())
    trainer.resume_memory_occupation(0)
    policy.change(3)
    assert len(trainer.send_weights().groups) == 2
    filled(module, policy)
    filled(other, policy)
    assert engines[0].calls == ["init", "prepare", "update", "flush", "sleep", "release", "resume",
                                "wake", "prepare", "update", "flush"]
    trainer.close()


def test_what_goes_wrong_leaves_the_old_weights(broker, caller, loaded, caplog):
    """The hook raises nothing for it, as that would end the server: the trainer raises."""
    module, path, policy = loaded
    engine = Engine(module, caller, path)
    trainer = strew.sglang.EngineTrainer(engine, policy, socket=broker.socket,
                                         engine_socket="/nowhere/nobody")
    assert "no broker serves /nowhere/nobody" in caplog.text
    policy.change(1)
    old = {name: p.data.clone() for name, p in module.named_parameters()}
    with pytest.raises(strew.NotCommitted):
        trainer.send_weights()
    assert "init has failed" in caplog.text and trainer.version == 0
    engine.server_args.model_path = "/nowhere/checkpoint"
    trainer.close()
    trainer = strew.sglang.EngineTrainer(engine, policy, socket=broker.socket,
                                         engine_socket=str(broker.socket))
    assert "/nowhere/checkpoint: the checkpoint that the engine has loaded is not" in caplog.text
    trainer.close()
    assert all(torch.equal(p.data, old[n]) for n, p in module.named_parameters())


@pytest.mark.parametrize("name, words", [
    ("a.weight", "takes no tensors, but a.weight was sent"),
    ("strew:{", "a request: the weights are as they were: JSONDecodeError"),
    ("strew:7", "AttributeError"),
    ('strew:{"version": 1}', "TypeError"),
    ('strew:{"do": "dance"}', "dance came before init"),
    ('strew:{"do": "init", "colour": "red"}', "init: the weights are as they were: TypeError")])
def test_requests_that_are_no_good(caller, loaded, caplog, name, words):
    """An exception would end the scheduler."""
    module = loaded[0]
    caller(module, strew.sglang.LOADER)([(name, torch.zeros(2))], strew.sglang.LOADER)
    assert words in caplog.text


def test_a_shard_that_is_missing(broker, caller, loaded, caplog):
    module, path, policy = loaded
    index = {"weight_map": {name: "model-00001-of-00001.safetensors" for name in policy.values}}
    folder = pathlib.Path(path)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    engine = Engine(module, caller, path)
    trainer = strew.sglang.EngineTrainer(engine, policy, socket=broker.socket,
                                         engine_socket=str(broker.socket))
    assert "init: the weights are as they were" in caplog.text
    assert module not in strew.sglang._receivers
    trainer.close()


@pytest.mark.parametrize("do", ["prepare", "update"])
def test_a_scheduler_that_may_run_no_step_ends(broker, caller, loaded, monkeypatch, do):
    """Whatever else was raised meanwhile: it is not said that the weights are as they were."""
    module, path, policy = loaded
    trainer = strew.sglang.EngineTrainer(Engine(module, caller, path), policy,
                                         socket=broker.socket, engine_socket=str(broker.socket))
    receiver = strew.sglang._receivers[module]
    receiver._failed = strew.Dirty(117, "written in part")
    monkeypatch.setattr(receiver, "_ask", lambda _: None)
    said = {"do": do, **({"colour": "red"} if do == "update" else {})}
    with pytest.raises(strew.Dirty, match="written in part"):
        caller(module, strew.sglang.LOADER)([("strew:" + json.dumps(said), torch.zeros(0))],
                                            strew.sglang.LOADER)
    trainer.close()


def twin_of(policy):
    module = poisoned_twin(lambda: Filled(0, 1))
    module.load_weights(policy.values.items())
    return module


@pytest.fixture
def two(broker, loaded, monkeypatch):
    """A trainer with two engines, of which the second can be made to fail."""
    world = types.SimpleNamespace(world_size=1, rank_in_group=0, cpu_group=None)
    monkeypatch.setattr(strew.sglang, "_groups", lambda: (world, 0))
    module, path, policy = loaded
    engines = [Engine(module, stand_in, path), Engine(twin_of(policy), stand_in, path)]
    trainer = strew.sglang.EngineTrainer(engines, policy, socket=broker.socket, timeout=3,
                                         engine_socket=str(broker.socket))
    trainer.send_weights()
    policy.change(1)
    running = {0: True, 1: True}
    for index, one in enumerate(trainer._engines):
        monkeypatch.setattr(one, "pause", lambda i=index: running.update({i: False}))
        monkeypatch.setattr(one, "resume", lambda i=index: running.update({i: True}))
    yield types.SimpleNamespace(trainer=trainer, engines=engines, policy=policy, running=running)
    trainer.close()


def spoil(engine, monkeypatch, when, failure):
    """That call fails, once it is made."""
    call = engine.call

    def fails(*args, **_):
        if when in ("prepare", "update") and args[:1] != (when,):
            return call(*args, **_)
        raise failure
    monkeypatch.setattr(engine, "call" if when in ("prepare", "update") else when, fails)


def works(two, seed):
    two.policy.change(seed)
    report = two.trainer.send_weights()
    assert report.committed and len(report.groups) == 2 and not two.trainer.failures
    for one in two.engines:
        filled(one.module, two.policy)
    assert two.running == {0: True, 1: True}


@pytest.mark.parametrize("when", ["prepare", "pause", "update", "flush", "label", "resume"])
def test_one_bad_engine(two, when):
    """The other one is not held up, nobody stays paused for it, and the next update is like any."""
    with pytest.MonkeyPatch.context() as patch:
        spoil(two.trainer._engines[1], patch, when, OSError("no route to host"))
        report = two.trainer.send_weights()
    assert {g.replica: g.outcome for g in report.groups}[0] == "committed"
    filled(two.engines[0].module, two.policy)
    assert "no route to host" in str(two.trainer.failures[1]) and 0 not in two.trainer.failures
    # One with a cache of the old weights must not run.
    assert two.running == {0: True, 1: when not in ("flush", "resume")}
    works(two, 2)


@pytest.mark.parametrize("when", ["prepare", "pause", "update", "flush", "label", "resume"])
def test_ctrl_c(two, when):
    with pytest.MonkeyPatch.context() as patch:
        spoil(two.trainer._engines[1], patch, when, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            two.trainer.send_weights()
        if when == "flush":
            assert two.running == {0: True, 1: False}
        elif when != "resume":
            assert two.running == {0: True, 1: True}
    works(two, 2)


def test_a_publish_that_is_refused(two):
    with pytest.raises(strew.InvalidArgument, match="version 0"):
        two.trainer.send_weights(0)
    assert two.running == {0: True, 1: True}
    works(two, 2)


def test_all_engines_are_bad(two):
    with pytest.MonkeyPatch.context() as patch:
        for one in two.trainer._engines:
            spoil(one, patch, "prepare", OSError("no route to host"))
        with pytest.raises(OSError, match="no route"):
            two.trainer.send_weights()
    works(two, 2)


def test_another_broker_between_two_updates(tmp_path, loaded, monkeypatch):
    """Both faces find it out by themselves."""
    world = types.SimpleNamespace(world_size=1, rank_in_group=0, cpu_group=None)
    monkeypatch.setattr(strew.sglang, "_groups", lambda: (world, 0))
    module, path, policy = loaded
    broker = Broker(tmp_path)
    trainer = strew.sglang.EngineTrainer(Engine(module, stand_in, path), policy,
                                         socket=broker.socket, engine_socket=str(broker.socket))
    for seed in range(2):
        policy.change(seed)
        assert trainer.send_weights().committed
        filled(module, policy)
        broker.stop()
        broker = Broker(tmp_path)
    trainer.close()
    broker.stop()


def test_a_worker_that_could_not_register_tries_again_alone(broker, loaded, monkeypatch, caplog):
    """Where it belongs was found by all together the first time, and is not asked again."""
    module, path, policy = loaded
    other = twin_of(policy)
    modules, meets, said = [module, other], threading.Barrier(2, timeout=5), [None, None]
    mine = threading.local()

    def gather(out, one, group):
        said[mine.rank] = one
        meets.wait()
        out[:] = said
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(strew.sglang, "_groups", lambda: (types.SimpleNamespace(
        world_size=2, rank_in_group=mine.rank, cpu_group=None), 0))
    request = "strew:" + json.dumps({
        "do": "init", "name": "policy", "replica": 0, "tensors": write_described(policy.values),
        "checkpoint": path, "apply": "staged", "socket": str(broker.socket), "timeout": 5.0})

    def init(rank):
        mine.rank = rank
        strew.sglang.load(modules[rank], [(request, None)])
    other.o.data.mul_(2)  # it cannot be proved
    in_threads([lambda r=r: init(r) for r in range(2)])
    assert module in strew.sglang._receivers and other not in strew.sglang._receivers
    other.o.data.div_(2)
    in_threads([lambda r=r: init(r) for r in range(2)])
    assert "BrokenBarrier" not in caplog.text
    assert strew.sglang._receivers[other].state == "CURRENT"
    for one in modules:
        strew.sglang._receivers[one].close()


def test_what_is_changed_after_loading_is_refused(broker, caller, loaded, caplog):
    module, path, policy = loaded
    module.o.data.mul_(2)
    trainer = strew.sglang.EngineTrainer(Engine(module, caller, path), policy,
                                         socket=broker.socket, engine_socket=str(broker.socket))
    assert "o: its live values are not those of tensor o.weight" in caplog.text
    assert module not in strew.sglang._receivers
    trainer.close()


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
@pytest.mark.parametrize("lacks, words", [
    ("up.weight", "gate_up lacks up.weight"), ("experts.2.w3", "w13 lacks experts.2.w3"),
    ("k.bias", "qkv_bias lacks k.bias")])
def test_half_of_a_fused_parameter_is_missing(broker, caller, loaded, caplog, load_format, lacks,
                                              words):
    """Or is called otherwise: no version of which a half is the old one's gets in."""
    module, path, policy = loaded
    policy.values["called." + lacks] = policy.values.pop(lacks)
    engine = Engine(module, caller, path)
    engine.server_args.load_format = load_format
    trainer = strew.sglang.EngineTrainer(engine, policy, socket=broker.socket,
                                         engine_socket=str(broker.socket))
    assert f"in part: {words} (1 parameters)" in caplog.text
    assert module not in strew.sglang._receivers
    trainer.close()


def test_a_checkpoint_that_has_more(broker, caller, loaded):
    """What the engine's loader puts nowhere is not missed; the vocabulary's padding is none."""
    module, path, policy = loaded
    save(pathlib.Path(path), {**policy.values, "extra": torch.zeros(2, 2)})
    trainer = strew.sglang.EngineTrainer(Engine(module, caller, path), policy,
                                         socket=broker.socket, engine_socket=str(broker.socket))
    policy.change(1)
    assert trainer.send_weights().committed
    filled(module, policy)
    trainer.close()


def test_random_weights_prove_themselves(broker, caller, loaded):
    module, path, policy = loaded
    engine = Engine(module, caller, path)
    engine.server_args.load_format = "dummy"
    trainer = strew.sglang.EngineTrainer(engine, policy, socket=broker.socket,
                                         engine_socket=str(broker.socket))
    policy.change(1)
    assert trainer.send_weights().committed
    filled(module, policy)
    trainer.close()


class Server:
    """An HTTP server with the routes that strew.sglang asks for; an older one has fewer."""

    def __init__(self, engine, old):
        self.asked = asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, body, code=200):
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode() if body is not None else b"well")

            def do_GET(self):
                asked.append(self.path[1:])
                self.answer({"tp_size": 1, "load_format": "auto",
                             "model_path": engine.server_args.model_path})

            def do_POST(self):
                asked.append(self.path[1:])
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if old and self.path in ("/begin_weight_update", "/end_weight_update",
                                         "/update_weight_version"):
                    self.answer({"detail": "Not Found"}, 404)
                elif self.path == "/update_weights_from_tensor":
                    engine.session = True
                    tensors = pickle.loads(base64.b64decode(said["serialized_named_tensors"][0]))
                    asked[-1] = json.loads(tensors[0][0].removeprefix("strew:"))["do"]
                    success, message = engine.update_weights_from_tensor(
                        tensors, said["load_format"], said["flush_cache"])
                    self.answer({"success": success, "message": message})
                elif self.path == "/flush_cache":
                    self.answer(None)
                else:
                    self.answer({"success": True, **said})

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.mark.parametrize("old", [False, True])
def test_a_server(broker, loaded, monkeypatch, old):
    world = types.SimpleNamespace(world_size=1, rank_in_group=0, cpu_group=None)
    monkeypatch.setattr(strew.sglang, "_groups", lambda: (world, 0))
    module, path, policy = loaded
    server = Server(Engine(module, stand_in, path), old)
    try:
        trainer = strew.sglang.EngineTrainer(server.url, policy, socket=broker.socket,
                                             engine_socket=str(broker.socket))
        policy.change(1)
        assert trainer.send_weights().committed
        filled(module, policy)
        trainer.close()
    finally:
        server.close()
    begin, end = "begin_weight_update", "end_weight_update"
    assert server.asked == ["get_server_info", begin, "init", end, begin, "prepare", end,
                            "pause_generation", begin, "update", end, "flush_cache",
                            "update_weight_version", "continue_generation"]


def test_sglangs_source_has_what_is_called():
    """The real files, also where SGLang cannot be imported: who calls the hook, and how."""
    found = importlib.util.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package sglang is not installed")
    root = pathlib.Path(list(found.submodule_search_locations)[0]) / "srt"
    whole = "\n".join(path.read_text() for part in ("model_executor", "managers")
                      for path in (root / part).rglob("*.py"))
    assert "custom_loader = dynamic_import(load_format)" in whole
    assert ("custom_loader(self.get_model(), named_tensors)" in whole
            or "custom_loader(self.model, named_tensors)" in whole)
    server = (root / "entrypoints" / "http_server.py").read_text()
    for route in ("update_weights_from_tensor", "pause_generation", "continue_generation",
                  "flush_cache", "get_server_info"):
        assert f'"/{route}"' in server, route
    assert list(inspect.signature(strew.sglang.load).parameters) == ["model", "named_tensors"]


def test_sglangs_safe_unpickler_takes_what_is_sent():
    utils = pytest.importorskip("sglang.srt.utils", reason="the package sglang is not installed",
                                exc_type=ImportError)
    patch = pytest.importorskip("sglang.srt.utils.patch_torch", exc_type=ImportError)
    patch.monkey_patch_torch_reductions()  # as in a trainer that also sends tensors by SGLang
    payload = base64.b64encode(strew.sglang.pickled([("strew:{}", torch.empty(0))])).decode()
    (name, tensor), = utils.MultiprocessingSerializer.deserialize(payload)
    assert name == "strew:{}" and tensor.numel() == 0


CONFIG = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 151, "head_dim": 16,
          "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def sglangs_llama(tmp_path_factory):
    """SGLang's own class of Llama, on the CPU, in a process that is set up as a scheduler is."""
    context = pytest.importorskip(
        "sglang.srt.runtime_context", exc_type=ImportError,
        reason="the package sglang is not installed, or is too old to be set up so")
    pytest.importorskip("sglang.srt.model_executor.model_runner_components.weight_updater",
                        exc_type=ImportError)
    transformers = pytest.importorskip("transformers")
    from sglang.srt.distributed import parallel_state
    from sglang.srt.server_args import ServerArgs
    torch.manual_seed(0)
    policy = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).float()
    folder = tmp_path_factory.mktemp("llama")
    policy.save_pretrained(folder)
    context.publish(ServerArgs(model_path=str(folder), device="cpu", skip_tokenizer_init=True,
                               custom_weight_loader=[strew.sglang.LOADER]),
                    role="scheduler", ranks=context.SpawnRanks(world_rank=0, gpu_id=0))
    parallel_state.init_distributed_environment(
        world_size=1, rank=0, local_rank=0, backend="gloo",
        distributed_init_method=f"tcp://127.0.0.1:{free_port()}")
    parallel_state.initialize_model_parallel()
    yield str(folder), policy
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


def test_sglangs_own_llama(broker, sglangs_llama):
    """Its model, its WeightUpdater, its groups and its settings; nothing of it is stubbed."""
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater
    from sglang.srt.models.llama import LlamaForCausalLM
    from sglang.srt.runtime_context import get_model
    path, policy = sglangs_llama

    def make():
        return LlamaForCausalLM(policy.config)

    def updates(module, _):
        return WeightUpdater(
            tp_rank=0, device="cpu", gpu_id=0, model_config=None,
            custom_weight_loaders=get_model().custom_weight_loader, get_model=lambda: module,
            update_model_fields=None, recapture_cuda_graph=None, get_model_runner=None,
        ).update_weights_from_tensor
    module = poisoned_twin(make)
    for parameter in module.parameters():
        parameter.data.zero_()
    module.load_weights(list(policy.named_parameters()))
    trainer = strew.sglang.EngineTrainer(Engine(module, updates, path), policy,
                                         socket=broker.socket, engine_socket=str(broker.socket))
    for _ in range(2):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.normal_()
        assert trainer.send_weights().committed
        want = make()
        for parameter in want.parameters():
            parameter.data.zero_()
        want.load_weights(list(policy.named_parameters()))
        assert all(torch.equal(p.data, want.get_parameter(n).data)
                   for n, p in module.named_parameters())
    trainer.close()


@pytest.mark.parametrize("kind", ["engine", "server"])
def test_a_whole_engine(tmp_path, kind):
    """On the CPU: what it generates after an update is what one generates that was started so."""
    pytest.importorskip("sglang.srt.entrypoints.engine", exc_type=ImportError,
                        reason="the package sglang is not installed, or not for this machine")
    pytest.importorskip("transformers")
    script = pathlib.Path(__file__).with_name("sglang_whole.py")
    paths = [str(pathlib.Path(strew.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    with open(tmp_path / "log", "wb") as log:  # its schedulers may outlive it, with its pipes
        run = subprocess.run([sys.executable, script, kind, tmp_path], timeout=900, check=False,
                             env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                             stdout=log, stderr=log)
    said = (tmp_path / "log").read_text(errors="replace")
    assert run.returncode == 0 and "equal" in said.splitlines(), said[-8000:]
