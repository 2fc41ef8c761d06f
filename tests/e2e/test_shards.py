"""A checkpoint in several shards, with the index that says which tensor is where, by strew push."""

import json
import os
import sys

import scene
from scene import CONFIGS, safetensors
from test_bad import refused

CONFIG = CONFIGS / "tiny-llama.json"
INDEX = "model.safetensors.index.json"
COUNT = 3


def llama():
    """Every tensor of the small Llama, random, as {name: (dtype, shape, bytes)}."""
    config = json.loads(CONFIG.read_text())
    hidden, inner, vocabulary = (config[key] for key in ("hidden_size", "intermediate_size",
                                                         "vocab_size"))
    queries, values = (config[key] * config["head_dim"] for key in ("num_attention_heads",
                                                                    "num_key_value_heads"))
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden],
              "lm_head.weight": [vocabulary, hidden]}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in (("input_layernorm", [hidden]), ("post_attention_layernorm", [hidden]),
                            ("self_attn.q_proj", [queries, hidden]),
                            ("self_attn.k_proj", [values, hidden]),
                            ("self_attn.v_proj", [values, hidden]),
                            ("self_attn.o_proj", [hidden, queries]),
                            ("mlp.gate_proj", [inner, hidden]), ("mlp.up_proj", [inner, hidden]),
                            ("mlp.down_proj", [hidden, inner])):
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return {name: ("BF16", shape, os.urandom(2 * shape[0] * (shape + [1])[1]))
            for name, shape in shapes.items()}


def shard(number):
    return f"model-{number + 1:05}-of-{COUNT:05}.safetensors"


def write(folder, tensors, **changed):
    """Shards of every third tensor, so that no fused parameter has its parts in one of them; the
    index is as it should be, but for the changes of its map: {tensor: shard, or None: unnamed}."""
    folder.mkdir(exist_ok=True)
    places = {name: shard(number % COUNT) for number, name in enumerate(tensors)}
    for number in range(COUNT):
        safetensors(folder / shard(number), {name: tensors[name] for name, place in places.items()
                                             if place == shard(number)})
    places.update(changed)
    (folder / INDEX).write_text(json.dumps({
        "metadata": {"total_size": sum(len(content) for _, _, content in tensors.values())},
        "weight_map": {name: place for name, place in places.items() if place is not None}}))
    return folder


def compare(stage, tensors, size):
    """The workers' dumps with one file of the same tensors, by checkpoint.py."""
    whole = safetensors(stage.dir / "whole.safetensors", tensors)
    result = stage.run(sys.executable, scene.ROOT / "tests/e2e/checkpoint.py", whole, CONFIG,
                       *(stage.dir / f"dump{rank}" for rank in range(size)))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"tensors={len(tensors)} "), result.stdout
    assert "mismatches=0" in result.stdout, result.stdout


def dumping(stage, size, **named):
    return [stage.workers(1, "--rank", rank, "--size", size, "--versions", 1, "--dump",
                          stage.dir / f"dump{rank}", prefix=f"{rank}-", **named)[0]
            for rank in range(size)]


def push_and_compare(stage, path_of, broker, reader):
    tensors = llama()
    workers = dumping(stage, 4, broker=reader)
    result = stage.push(path_of(write(stage.dir / "checkpoint", tensors)), 1, broker=broker)
    assert result.returncode == 0 and result.stderr == "", result
    assert f"{len(tensors)} tensors" in result.stdout, result.stdout
    for worker in workers:
        worker.end()
    compare(stage, tensors, 4)


def test_directory(stage):
    stage.broker(slot="64K")
    push_and_compare(stage, lambda folder: folder, "broker", "broker")


def test_index_by_name(stage):
    """The same by the index's own path, and to another node."""
    stage.two_nodes()
    push_and_compare(stage, lambda folder: folder / INDEX, "lead", "node")


def test_refused(stage):
    """One sentence that names the thing, the broker never hears of it; the right one is taken."""
    stage.broker()
    workers = stage.workers(2)
    tensors = llama()
    first, second, *_ = tensors  # in the first shard, in the second
    folder = stage.dir / "checkpoint"

    def push_refused(*names, **changed):
        refused(stage, stage.push(write(folder, tensors, **changed), 1), 1, *names)
        assert stage.status()["updates"] == 0

    push_refused("absent.safetensors: cannot be opened: No such file",
                 **{first: "absent.safetensors"})
    push_refused(INDEX, f'"ghost.weight" is missing: the index says in {shard(1)}',
                 **{"ghost.weight": shard(1)})
    push_refused(INDEX, f'"{first}" is in {shard(0)}, the index says in {shard(2)}',
                 **{first: shard(2)})
    push_refused(INDEX, f'"{second}" of {shard(1)} is not named in the index', **{second: None})
    # Files that are there, and right: that they lie elsewhere is what is refused.
    outside = safetensors(stage.dir / "outside.safetensors", {first: tensors[first]})
    (folder / "inner").mkdir()
    safetensors(folder / "inner" / "s.safetensors", {first: tensors[first]})
    for place in ("../outside.safetensors", str(outside), "inner/s.safetensors",
                  f"../checkpoint/{shard(0)}", "..", ""):
        push_refused(INDEX, f'"{first}": the shard "{place[:80]}', "is not the plain name of a file",
                     **{first: place})
    # Twice, in one shard that the index says and in another.
    write(folder, tensors)
    safetensors(folder / shard(2), {name: tensors[name] for number, name in enumerate(tensors)
                                    if number % COUNT == 2 or name == first})
    refused(stage, stage.push(folder, 1), 1, f'"{first}" is there twice', shard(0), shard(2))
    # Neither an index nor the one file that needs none.
    write(folder, tensors)
    (folder / INDEX).unlink()
    refused(stage, stage.push(folder, 1), 1, "3 .safetensors files and no " + INDEX)
    assert stage.status()["updates"] == 0 and stage.status()["groups"][0]["version"] == 0
    scene.untouched(workers)
    scene.wait_until("no group", lambda: not stage.status()["groups"])
    workers = dumping(stage, 2)
    result = stage.push(write(folder, tensors), 1)
    assert result.returncode == 0 and result.stderr == "", result
    for worker in workers:
        worker.end()
    compare(stage, tensors, 2)


if __name__ == "__main__":
    scene.main(globals())
