#!/usr/bin/env python3
"""TRL's GRPOTrainer, whose rollouts come from two workers that always have the newest weights.

    python3 examples/trl_grpo.py --steps 3

The model is small and random, as is its tokenizer; the reward is for completions with many even
tokens. One line makes it strew's: callbacks=[PublishCallback()], which publishes the model after
each optimizer step into two inference processes (transformers models, each a replica of its own).
They let an update in between two completions. Before each rollout the workers' logits are compared
bit for bit with the trainer's own.

Needs torch, transformers, trl, and the package strew (its wheel has the broker in it). No GPU.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import queue
import subprocess
import sys
import tempfile

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import tokenizers
import torch
import transformers
import trl

import strew
from strew.callback import PublishCallback

WORKERS, GENERATIONS, LENGTH = 2, 4, 6
WORDS = [f"w{i}" for i in range(60)]
CONFIG = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 64,
          "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
IDS = torch.arange(3, 19)[None]  # what logits are compared on


def make_model():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))


def make_tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        unk_token="<unk>")


@torch.no_grad()
def logits_of(model):
    return model(input_ids=IDS).logits[0]


@torch.no_grad()
def complete(model, prompt):
    """A sampled completion, and the log-probability of each of its tokens."""
    ids, logprobs = list(prompt), []
    for _ in range(LENGTH):
        scores = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        token = int(torch.multinomial(scores.exp(), 1))
        ids.append(token)
        logprobs.append(float(scores[token]))
        if token == CONFIG["eos_token_id"]:
            break
    return ids[len(prompt):], logprobs


def worker(replica, folder, jobs, answers):
    """An inference engine: takes prompts, and updates between two completions."""
    torch.set_num_threads(1)
    model = make_model().eval()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))  # nothing but updates fills it
    names = dict(make_model().named_parameters())
    layout = strew.record_layout(
        model, lambda weights: model.load_state_dict(dict(weights), strict=False), names)
    torch.manual_seed(replica)
    with strew.Agent("policy", replica=replica, socket=folder / "s") as agent:
        agent.register(layout)
        answers.put(("ready", layout.status()))
        while True:
            agent.between_steps()
            with contextlib.suppress(queue.Empty):
                job = jobs.get(timeout=0.01)
                if job is None:
                    return
                if job == "logits":
                    answers.put((agent.version, logits_of(model).numpy()))
                else:
                    answers.put((agent.version, [complete(model, prompt) for prompt in job]))


class Engines:
    """The two workers, as the trainer's process sees them."""

    def __init__(self, folder, tokenizer):
        self.tokenizer, self.compared = tokenizer, []
        context = multiprocessing.get_context("spawn")
        self.queues = [(context.Queue(), context.Queue()) for _ in range(WORKERS)]
        self.processes = [context.Process(target=worker, args=(i, folder, *self.queues[i]),
                                          daemon=True) for i in range(WORKERS)]
        for one in self.processes:
            one.start()
        for i in range(WORKERS):
            print(f"worker {i}: {self.take(i)[1]}")

    def take(self, i):
        while True:
            try:
                return self.queues[i][1].get(timeout=1)
            except queue.Empty:
                if self.processes[i].exitcode is not None:
                    raise SystemExit(f"worker {i} has ended") from None

    def compare(self, model, version):
        """Both workers compute what the trainer computes, bit for bit."""
        training = model.training
        want = logits_of(model.eval())
        model.train(training)
        for jobs, _ in self.queues:
            jobs.put("logits")
        for i in range(WORKERS):
            has, got = self.take(i)
            if has != version or not torch.equal(torch.from_numpy(got), want):
                raise AssertionError(f"worker {i} at version {has}: other logits than the "
                                     f"trainer's at {version}")
        self.compared.append(version)

    def rollout(self, prompts, trainer):
        """TRL's rollout_func: each prompt comes as often as completions are wanted."""
        version = trainer.state.global_step + 1  # 1 is what the model was at the start
        self.compare(trainer.model, version)
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        for i, (jobs, _) in enumerate(self.queues):
            jobs.put(ids[i::WORKERS])
        done = [None] * len(ids)
        for i in range(WORKERS):
            has, done[i::WORKERS] = self.take(i)
            if has != version:
                raise AssertionError(f"worker {i} used version {has} instead of {version}")
        return {"prompt_ids": ids, "completion_ids": [one[0] for one in done],
                "logprobs": [one[1] for one in done]}

    def close(self):
        for jobs, _ in self.queues:
            jobs.put(None)
        for one in self.processes:
            one.join(20)


class Publish(PublishCallback):
    """From the model as it is at the start: the workers have loaded nothing."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.report = self._sender.send_weights(1)

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        print(f"step {state.global_step}: {self.report.outcome} in {len(self.report.groups)} "
              f"workers, {self.report.bytes} bytes in {self.report.total_s * 1e3:.1f} ms",
              flush=True)


def reward(completion_ids, **_):
    return [sum(token % 2 == 0 for token in ids) / LENGTH for ids in completion_ids]


@contextlib.contextmanager
def broker(folder):
    read, write = os.pipe()
    with open(folder / "strewd.log", "wb") as log:
        process = subprocess.Popen([strew.program("strewd"), "--socket", folder / "s", "--backend",
                                    "host", "--slot", "1M", "--ready-fd", str(write)],
                                   pass_fds=(write,), stderr=log)
    os.close(write)
    with os.fdopen(read) as pipe:
        if pipe.read() != "READY=1\n":
            sys.exit((folder / "strewd.log").read_text())
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="strew-trl-") as name:
        folder = pathlib.Path(name)
        with broker(folder):
            tokenizer = make_tokenizer()
            engines = Engines(folder, tokenizer)
            arguments = trl.GRPOConfig(
                output_dir=str(folder / "out"), max_steps=steps, learning_rate=1e-2,
                per_device_train_batch_size=GENERATIONS, num_generations=GENERATIONS,
                max_completion_length=LENGTH, use_cpu=True, report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, bf16=False, seed=1)
            prompts = [{"prompt": " ".join(WORDS[i:i + 4])} for i in range(16)]
            trainer = trl.GRPOTrainer(
                make_model(), reward, args=arguments, processing_class=tokenizer,
                train_dataset=datasets.Dataset.from_list(prompts), rollout_func=engines.rollout,
                callbacks=[Publish(socket=folder / "s", start_version=1)])
            trainer.train()
            engines.compare(trainer.model, steps + 1)
            engines.close()
            print(f"versions {engines.compared}: logits equal in both workers")


if __name__ == "__main__":
    main()
