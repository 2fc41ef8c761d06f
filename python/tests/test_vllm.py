"""record_layout against vLLM's own model classes and loaders, for each rank of TP 1, 2 and 4.

Needs the package vllm (its CPU build, or any where torch can be imported without a GPU); nothing is
run but constructors and load_weights. Each rank is made in this process: only the group's size and
rank are stubbed, for neither constructing nor loading talks to other ranks.
"""

import os
import types

import pytest

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
vllm = pytest.importorskip("vllm", reason="vllm is not installed")

import torch  # noqa: E402
import transformers  # noqa: E402
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.distributed import parallel_state  # noqa: E402
from vllm.model_executor.models.registry import ModelRegistry  # noqa: E402

import strew  # noqa: E402
from loaders import assert_filled, free_port, poisoned_twin, publish, random_values  # noqa: E402

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 151, "head_dim": 8,
         "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "llama": transformers.LlamaConfig(architectures=["LlamaForCausalLM"], **SMALL),
    "llama_tied": transformers.LlamaConfig(architectures=["LlamaForCausalLM"],
                                           tie_word_embeddings=True, **SMALL),
    "qwen2": transformers.Qwen2Config(architectures=["Qwen2ForCausalLM"], **SMALL),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        architectures=["Qwen3MoeForCausalLM"], num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, decoder_sparse_step=1, mlp_only_layers=[], **SMALL),
}


def checkpoint(config, dtype):
    """Names and shapes as checkpoints of these models have them: one tensor for each expert."""
    h, heads = config.hidden_size, config.num_attention_heads
    kv, d = config.num_key_value_heads, config.head_dim
    shapes = {"model.embed_tokens.weight": (config.vocab_size, h), "model.norm.weight": (h,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, h)
    moe = getattr(config, "num_experts", 0)
    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}."
        shapes.update({f"{at}input_layernorm.weight": (h,),
                       f"{at}post_attention_layernorm.weight": (h,),
                       f"{at}self_attn.q_proj.weight": (heads * d, h),
                       f"{at}self_attn.k_proj.weight": (kv * d, h),
                       f"{at}self_attn.v_proj.weight": (kv * d, h),
                       f"{at}self_attn.o_proj.weight": (h, heads * d)})
        if config.model_type == "qwen2":
            shapes.update({f"{at}self_attn.{p}_proj.bias": (n * d,)
                           for p, n in (("q", heads), ("k", kv), ("v", kv))})
        if moe:
            shapes.update({f"{at}self_attn.q_norm.weight": (d,),
                           f"{at}self_attn.k_norm.weight": (d,), f"{at}mlp.gate.weight": (moe, h)})
        inner = config.moe_intermediate_size if moe else config.intermediate_size
        for prefix in ([f"{at}mlp.experts.{e}." for e in range(moe)] or [f"{at}mlp."]):
            shapes.update({f"{prefix}gate_proj.weight": (inner, h),
                           f"{prefix}up_proj.weight": (inner, h),
                           f"{prefix}down_proj.weight": (h, inner)})
    return {name: (dtype, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def world():
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    with set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(
            world_size=1, rank=0, local_rank=0, backend="gloo",
            distributed_init_method=f"tcp://127.0.0.1:{free_port()}")
        parallel_state.initialize_model_parallel(1)
    yield
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


@pytest.fixture
def tensor_parallel(world, monkeypatch):
    """Calls a function as that rank of a group of that size."""
    real = parallel_state._TP

    def run(rank, size, function):
        stub = types.SimpleNamespace(world_size=size, rank_in_group=rank, rank=rank,
                                     ranks=list(range(size)), unique_name="tp:0",
                                     device_group=real.device_group, cpu_group=real.cpu_group,
                                     device_communicator=None)
        monkeypatch.setattr(parallel_state, "_TP", stub)
        try:
            return function()
        finally:
            monkeypatch.setattr(parallel_state, "_TP", real)
    return run


def build(config, folder, dtype):
    """vLLM's module for the config, as its loader makes it before loading."""
    config.save_pretrained(folder)
    settings = VllmConfig(model_config=ModelConfig(
        model=str(folder), tokenizer=str(folder), skip_tokenizer_init=True, dtype=dtype,
        enforce_eager=True, max_model_len=64))
    model, _ = ModelRegistry.resolve_model_cls(config.architectures, settings.model_config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with set_current_vllm_config(settings):
            return model(vllm_config=settings)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("which", list(MODELS))
def test_what_strew_fills_is_what_vllm_loads(broker, tmp_path, tensor_parallel, which, size):
    config, dtype = MODELS[which], torch.bfloat16
    described = checkpoint(config, dtype)
    values = random_values(described)
    want, got, layouts = [], [], []
    for rank in range(size):
        def load(module):
            module.load_weights(iter(values.items()))
            return module
        want.append(tensor_parallel(rank, size, lambda: load(build(config, tmp_path, dtype))))
        got.append(tensor_parallel(
            rank, size, lambda: poisoned_twin(lambda: build(config, tmp_path, dtype))))
        layouts.append(tensor_parallel(rank, size, lambda: strew.record_layout(
            got[-1], got[-1].load_weights, described)))
    for rank, layout in enumerate(layouts):
        assert not layout.refused and not layout.unused, (layout.refused, layout.unused)
        filled = {n for p in layout.parameters.values() for n in p.names}
        missing = set(dict(got[rank].named_parameters())) - filled
        assert not missing, missing
        print(which, f"rank {rank} of {size}:", layout.status(), "pieces",
              sum(len(p.pieces) for p in layout.parameters.values()))
    assert publish(broker, values, layouts).committed
    for rank in range(size):
        assert_filled(got[rank], want[rank], layouts[rank])
        assert not layouts[rank].prove(values)
        # Proved against other values, everything is refused: the proof looks.
        assert layouts[rank].prove(random_values(described)) and not layouts[rank].parameters
