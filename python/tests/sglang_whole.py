"""Run by test_sglang.py: whole engines of SGLang on the CPU. Prints "equal" at the end.

    python sglang_whole.py engine|server FOLDER
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import time
import urllib.request

import torch
import transformers
from conftest import Broker

import strew
import strew.sglang
from loaders import free_port

CONFIG = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32,
          "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 151,
          "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}
OPTIONS = {"device": "cpu", "dtype": "float32", "skip_tokenizer_init": True,
           "custom_weight_loader": [strew.sglang.LOADER], "mem_fraction_static": 0.5,
           "max_total_tokens": 512, "max_running_requests": 4, "disable_overlap_schedule": True,
           "attention_backend": "torch_native", "sampling_backend": "pytorch",
           "log_level": "error"}
PROMPT = list(range(3, 43))
ASK = {"input_ids": PROMPT, "return_logprob": True,
       "sampling_params": {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}}


def outcome(said):
    return said["output_ids"], [row[0] for row in said["meta_info"]["output_token_logprobs"]]


class InProcess:
    """sglang.Engine."""

    def __init__(self, path):
        import sglang
        self.engine = sglang.Engine(model_path=path, **OPTIONS)

    def generate(self):
        return self.engine.generate(**ASK)

    def close(self):
        self.engine.shutdown()


class Server:
    """sglang.launch_server, by its URL."""

    def __init__(self, path):
        port = free_port()
        self.engine = f"http://127.0.0.1:{port}"
        options = [one for name, value in OPTIONS.items() for one in (
            f"--{name.replace('_', '-')}", *([] if value is True else
                                             value if isinstance(value, list) else [str(value)]))]
        self.process = subprocess.Popen([sys.executable, "-m", "sglang.launch_server",
                                         "--model-path", path, "--port", str(port), *options])
        end = time.monotonic() + 500
        while True:
            with contextlib.suppress(OSError):
                self.ask("health")
                break
            assert self.process.poll() is None and time.monotonic() < end, "it did not start"
            time.sleep(0.5)

    def ask(self, path, body=None):
        request = urllib.request.Request(
            f"{self.engine}/{path}", data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            said = answer.read()
        return json.loads(said) if said else None

    def generate(self):
        return self.ask("generate", ASK)

    def close(self):
        self.process.terminate()
        self.process.wait(60)


def main():
    kind, folder = {"engine": InProcess, "server": Server}[sys.argv[1]], pathlib.Path(sys.argv[2])
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(transformers.LlamaForCausalLM(transformers.LlamaConfig(
            architectures=["LlamaForCausalLM"], **CONFIG)).float())
        models[-1].save_pretrained(folder / f"model{seed}")
    one = kind(str(folder / "model2"))
    want = outcome(one.generate())
    one.close()

    broker = Broker(folder)
    one = kind(str(folder / "model0"))
    policy = models[0]
    trainer = strew.sglang.EngineTrainer(one.engine, policy, socket=broker.socket,
                                         engine_socket=str(broker.socket))

    def send(which):
        with torch.no_grad():
            for mine, its in zip(policy.parameters(), models[which].parameters()):
                mine.copy_(its)
        report = trainer.send_weights()
        assert report.committed and len(report.groups) == 1, report
    old = outcome(one.generate())
    send(1)
    between = outcome(one.generate())
    assert one.generate()["meta_info"]["cached_tokens"] > 0
    send(2)
    said = one.generate()
    assert said["meta_info"]["cached_tokens"] == 0, said  # flushed behind the commit
    got = outcome(said)
    assert got == want and want not in (old, between) and old != between, (got, want)
    if kind is Server:
        assert said["meta_info"]["weight_version"] == "2", said
    trainer.release_memory_occupation(tags=["weights"])
    try:
        trainer.send_weights()
        raise AssertionError("somebody took it")
    except strew.NotCommitted:
        pass
    trainer.resume_memory_occupation(tags=["weights"])
    send(1)
    send(2)
    assert outcome(one.generate()) == want
    trainer.close()
    broker.stop()
    one.close()  # an Engine ends all children of this process
    print("equal", flush=True)


if __name__ == "__main__":
    main()
