"""PublishCallback in transformers' own Trainer, and examples/trl_grpo.py where TRL is installed."""

import pathlib

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from conftest import run_script  # noqa: E402

import strew  # noqa: E402
from loaders import same_bits  # noqa: E402

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
CONFIG = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 11}


def make():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))


def test_grpo():
    pytest.importorskip("trl", reason="trl is not installed")
    run = run_script(EXAMPLES / "trl_grpo.py", "--steps", "3", timeout=500)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("committed in 2 workers") == 3
    assert "versions [1, 2, 3, 4]: logits equal in both workers" in run.stdout


def train(tmp_path, model, callback, steps=3):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]} for _ in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=steps, per_device_train_batch_size=2,
        learning_rate=1e-2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True)
    transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, callbacks=[callback],
        data_collator=lambda some: {k: torch.tensor([one[k] for one in some]) for k in rows[0]},
    ).train()


def test_each_step_is_a_version(broker, tmp_path):
    from strew.callback import PublishCallback
    model, engine = make(), make()
    seen = []

    class Looks(PublishCallback):
        def on_step_end(self, args, state, control, **kwargs):
            before = [p.data.clone() for p in engine.parameters()]
            super().on_step_end(args, state, control, **kwargs)
            mine = kwargs["model"].named_parameters()
            assert all(same_bits(engine.get_parameter(n).data, p.data) for n, p in mine)
            assert any(not torch.equal(a, b.data) for a, b in zip(before, engine.parameters()))
            seen.append(self.report.version)

    layout = strew.record_layout(
        engine, lambda weights: engine.load_state_dict(dict(weights), strict=False),
        dict(model.named_parameters()))
    callback = Looks(socket=broker.socket, start_version=10)
    with strew.Agent("policy", gate="live", socket=broker.socket) as agent:
        agent.register(layout)
        train(tmp_path, model, callback)
    assert seen == [11, 12, 13] and callback._sender is None


def test_nobody_takes_it(broker, tmp_path):
    from strew.callback import PublishCallback
    with pytest.raises(strew.NotCommitted):
        train(tmp_path, make(), PublishCallback(socket=broker.socket))


def test_another_sender(tmp_path):
    """An engine's trainer class in place of plain publishing."""
    from strew.callback import PublishCallback
    calls = []

    class Sender:
        def __init__(self, model):
            calls.append(type(model).__name__)

        def send_weights(self, version):
            calls.append(version)

        def close(self):
            calls.append("closed")
    train(tmp_path, make(), PublishCallback(Sender), steps=2)
    assert calls == ["LlamaForCausalLM", 1, 2, "closed"]


def test_zero_3_is_refused(broker):
    """DeepSpeed's parameters between two steps: no memory of their own, and a mark."""
    import strew.sglang
    import strew.vllm
    from strew.callback import PublishCallback
    model = make()
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.ds_shape = number, parameter.shape
        parameter.data = torch.empty(0)
    for connect in (None, lambda module: strew.sglang.EngineTrainer([], module),
                    lambda module: strew.vllm.StrewTrainerEngine.connect(
                        strew.vllm.StrewTrainerInitInfo(), client=[], source=module)):
        callback = PublishCallback(connect, socket=broker.socket)
        with pytest.raises(strew.NotShareable, match="embed_tokens.*ZeRO-3.*declare_parts"):
            callback.on_train_begin(None, None, None, model=model)
