# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The backend for GPUs, without one: what it tells vLLM and relies on in vLLM.

That it stores and decodes is tested in test_triton_layer.py. vLLM's modules of Triton
kernels can be imported without a GPU; their kernels are then plain functions.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from vllm.config import (
    CacheConfig,
    ModelConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention import backend as vllm_backend
from vllm.v1.attention.backends import registry, triton_attn
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVQuantMode,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from tests.hashattn.paged_cases import random_level_maps
from tests.hashattn.test_triton_cases import random_maps
from vllm_hashattn import layer_cuda, serving
from vllm_hashattn.backend_cuda import (
    HashAttnCudaBackend,
    HashAttnCudaImpl,
    HashAttnCudaMetadata,
    HashAttnCudaMetadataBuilder,
    chosen_tokens,
)
from vllm_hashattn.budget import Budget
from vllm_hashattn.hash_file import HashFile

CPU = torch.device("cpu")
OPTIONS = {
    "density": 0.2,
    "min_tokens": 0,
    "sink_tokens": 4,
    "recent_tokens": 4,
    "dense_below": 32,
    "dense_layers": 2,
}


def configured(model_path: str, folder: Path, *, levels: bool) -> VllmConfig:
    """Return the configuration of a server that asks for the plugin."""
    path = folder / "hash.safetensors"
    make = random_level_maps if levels else random_maps
    layers = {i: make(9, 3, 64, 128, seed=i) for i in range(2, 30)}
    HashFile(layers, {}, {}).save(path)
    return VllmConfig(
        model_config=ModelConfig(model=model_path, dtype="float16"),
        cache_config=CacheConfig(block_size=16),
        additional_config={"hashattn": {"weights": str(path), **OPTIONS}},
    )


@pytest.fixture(scope="module")
def config(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> VllmConfig:
    return configured(model_path, tmp_path_factory.mktemp("hash"), levels=True)


@contextmanager
def current(config: VllmConfig) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with set_current_vllm_config(config):
            yield
    finally:
        torch.set_default_dtype(before)


def test_layers_of_other_kinds_are_left_to_vllm(config: VllmConfig) -> None:
    other = {
        "sinks": {"sinks": torch.zeros(9)},
        "alibi": {"alibi_slopes": [0.5] * 9},
        "cap": {"logits_soft_cap": 30.0},
        "encoder": {"attn_type": vllm_backend.AttentionType.ENCODER_ONLY},
        "cross": {"attn_type": vllm_backend.AttentionType.ENCODER_DECODER},
        "shared": {"kv_sharing_target_layer_name": "model.layers.4.self_attn.attn"},
    }
    layer = SimpleNamespace(layer_name="model.layers.5.self_attn.attn")
    first = 9, 64, 0.125, 3
    with current(config):
        for name, options in other.items():
            given = {"alibi_slopes": None, "sliding_window": None, **options}
            impl = HashAttnCudaImpl(*first, kv_cache_dtype="auto", **given)
            assert not impl._is_sparse(layer, CPU), name
        given = {"alibi_slopes": None, "sliding_window": None}
        impl = HashAttnCudaImpl(*first, kv_cache_dtype="auto", **given)
        assert impl._is_sparse(layer, CPU)


def test_batches_are_split(config: VllmConfig) -> None:
    spec = FullAttentionSpec(
        block_size=16, num_kv_heads=3, head_size=64, dtype=torch.float16
    )
    with current(config):
        builder = HashAttnCudaMetadataBuilder(spec, [], config, CPU)
    assert builder.reorder_batch_threshold == 1
    assert not builder.supports_draft_decode_metadata_update
    never = vllm_backend.AttentionCGSupport.NEVER
    assert builder.get_cudagraph_support(config, builder.kv_cache_spec) is never
    starts = torch.tensor([0, 1, 2, 7], dtype=torch.int32)
    mixed = vllm_backend.CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor([500, 31, 9], dtype=torch.int32),
        num_reqs=3,
        num_actual_tokens=7,
        max_query_len=5,
        max_seq_len=500,
        block_table_tensor=torch.arange(12, dtype=torch.int32).view(3, 4),
        slot_mapping=torch.arange(7),
    )
    step = builder.build(0, mixed)
    assert isinstance(step, HashAttnCudaMetadata)
    assert step.decodes == 2
    assert step.chosen.tolist() == [100, 31]
    assert step.prefill.num_actual_tokens == 5
    assert step.prefill.query_start_loc.tolist() == [0, 5]
    assert step.prefill.seq_lens.tolist() == [9]
    assert step.prefill.block_table.tolist() == [[8, 9, 10, 11]]
    assert step.prefill.slot_mapping.tolist() == [2, 3, 4, 5, 6]
    assert builder.build(0, replace(mixed, causal=False)).decodes == 0
    ranges = {0: [(0, 3)]}
    assert builder.build(0, replace(mixed, mm_req_doc_ranges=ranges)).decodes == 0


@pytest.mark.parametrize("density", [0.0625, 0.1, 1 / 3, 1.0])
def test_counts_on_the_device_are_those_of_the_budget(density: float) -> None:
    lengths = torch.arange(5000, dtype=torch.int32)
    for budget in (Budget(density, 0, 4, 4), Budget(density, 512)):
        wanted = [n if n < 100 else budget.tokens(n) for n in range(5000)]
        found = chosen_tokens(lengths, budget, 100)
        assert found.dtype == torch.int32
        assert found.tolist() == wanted


def test_specs_are_widened_by_the_code(config: VllmConfig) -> None:
    sizes = {"block_size": 16, "num_kv_heads": 3, "head_size": 64}
    plain = FullAttentionSpec(**sizes, dtype=torch.bfloat16)
    window = SlidingWindowSpec(**sizes, dtype=torch.bfloat16, sliding_window=64)
    latent = MLAAttentionSpec(**{**sizes, "num_kv_heads": 1}, dtype=torch.bfloat16)
    quantised = FullAttentionSpec(
        **sizes, dtype=torch.int8, kv_quant_mode=KVQuantMode.INT8_PER_TOKEN_HEAD
    )
    with current(config):
        wider = HashAttnCudaBackend.customize_spec(plain)
        assert wider == replace(plain, state_content_bytes=2 * 64 * 2 + 16)
        assert wider.page_size_bytes == 3 * 16 * (256 + 16)
        single = HashAttnCudaBackend.customize_spec(replace(plain, dtype=torch.float32))
        assert single.state_content_size_bytes == 512 + 16
        uneven = replace(plain, head_size_v=32)
        for other in (wider, window, latent, uneven):
            assert HashAttnCudaBackend.customize_spec(other) == other
        stock = triton_attn.TritonAttentionBackend.customize_spec(quantised)
        assert HashAttnCudaBackend.customize_spec(quantised) == stock


def test_vllm_finds_the_backend_and_knows_what_it_cannot_do() -> None:
    slot = registry.AttentionBackendEnum.CUSTOM
    path = "vllm_hashattn.backend_cuda.HashAttnCudaBackend"
    registry.register_backend(slot, path)
    try:
        assert slot.get_class() is HashAttnCudaBackend
    finally:
        del registry._ATTN_OVERRIDES[slot]
    assert registry.AttentionBackendEnum[HashAttnCudaBackend.get_name()] is slot
    assert not HashAttnCudaBackend.is_sparse()
    assert HashAttnCudaBackend.get_impl_cls() is HashAttnCudaImpl
    assert HashAttnCudaBackend.get_builder_cls() is HashAttnCudaMetadataBuilder
    usual = {
        "head_size": 128,
        "dtype": torch.bfloat16,
        "kv_cache_dtype": "auto",
        "block_size": 16,
        "use_mla": False,
        "has_sink": False,
        "use_sparse": False,
        "use_mm_prefix": False,
        "use_per_head_quant_scales": False,
        "device_capability": DeviceCapability(9, 0),
        "attn_type": vllm_backend.AttentionType.DECODER,
    }
    assert HashAttnCudaBackend.validate_configuration(**usual) == []
    refused = {
        "head_size": 80,
        "kv_cache_dtype": "fp8",
        "use_mla": True,
        "use_sparse": True,
        "use_kv_connector": True,
        "use_adaptive_verification": True,
        "use_batch_invariant": True,
        "use_dcp": True,
    }
    for name, value in refused.items():
        asked = {**usual, name: value}
        assert HashAttnCudaBackend.validate_configuration(**asked), name


def test_layers_are_made_by_servers_that_ask_for_the_plugin(config: VllmConfig) -> None:
    assert layer_cuda._limits(config) == (8192, 64)
    with pytest.raises(ValueError, match="outside of vLLM's configuration"):
        layer_cuda._limits(None)
    serving._CURRENT.clear()
    with pytest.raises(ValueError, match="without a hash file"):
        layer_cuda.serving()


def test_vllm_is_as_the_backend_takes_it_to_be() -> None:
    impl = triton_attn.TritonAttentionImpl
    builder = triton_attn.TritonAttentionMetadataBuilder
    parameters = {
        impl.forward: (
            *("self", "layer", "query", "key", "value", "kv_cache", "attn_metadata"),
            *("output", "output_scale", "output_block_scale"),
        ),
        impl.do_kv_cache_update: (
            *("self", "layer", "key", "value", "kv_cache", "slot_mapping"),
        ),
        impl.fused_output_quant_supported: ("self", "quant_key"),
        impl.fused_rope_kvcache_supported: ("self",),
        builder.build: (
            *("self", "common_prefix_len", "common_attn_metadata", "fast_build"),
        ),
        triton_attn.TritonAttentionBackend.customize_spec: ("spec",),
    }
    for function, names in parameters.items():
        found = tuple(inspect.signature(function).parameters)
        assert found == names, function.__qualname__
    split = inspect.signature(split_decodes_and_prefills).parameters
    assert tuple(split)[:2] == ("common_attn_metadata", "decode_threshold")
    used = {"sinks", "alibi_slopes", "sliding_window", "logits_soft_cap", "attn_type"}
    used |= {"chunk_lookback", "kv_sharing_target_layer_name"}
    assert used <= set(inspect.signature(impl.__init__).parameters)
    step = {each.name for each in fields(triton_attn.TritonAttentionMetadata)}
    ours = {each.name for each in fields(HashAttnCudaMetadata)} - step
    assert ours == {"decodes", "chosen", "prefill"}
    sliced = {"num_actual_tokens", "query_start_loc", "seq_lens", "block_table"}
    whole = {"max_query_len", "max_seq_len", "seq_threshold_3D", "causal"}
    whole |= {"num_par_softmax_segments", "softmax_segm_output", "softmax_segm_max"}
    whole |= {"softmax_segm_expsum", "scheduler_metadata", "mm_prefix_range"}
    whole |= {"mm_prefix_range_tensor", "rswa_prefix_lens", "rswa_window"}
    # A new field might be one to slice, too.
    assert step == sliced | whole | {"slot_mapping"}
