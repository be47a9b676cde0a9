# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Options are checked when a server starts, and mistakes are named."""

import json
from pathlib import Path
from types import SimpleNamespace as Values
from typing import Any

import pytest

from moe_offload.checkpoint_key import checkpoint_key
from moe_offload.config import MoeOffloadConfig
from moe_offload.schedule_rivals import NAMES
from moe_offload.start_checks import UnsupportedError, check


def read(**options: object) -> MoeOffloadConfig:
    return MoeOffloadConfig.from_additional_config({"moe_offload": options})


def test_nothing_is_off() -> None:
    assert not MoeOffloadConfig.from_additional_config({}).enabled
    assert not MoeOffloadConfig.from_additional_config(None).enabled
    assert not read().enabled
    assert read(enabled=True, device_memory_gib=2).device_memory_gib == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"enabled": 1}, "enabled=1 cannot be used: give true or false"),
        ({"enabled": True}, "say how many GiB experts may be computed from"),
        (
            {"device_memory_gib": "16"},
            "device_memory_gib='16' cannot be used: give a n",
        ),
        ({"device_memory_gib": -1}, "device_memory_gib=-1"),
        ({"device_memory_gib": float("nan")}, "device_memory_gib=nan"),
        ({"micro_batches": 1.5}, "micro_batches=1.5 cannot be used: give an integer"),
        ({"micro_batches": True}, "micro_batches=True"),
        ({"read_threads": 0}, "give an integer from 1 to 64"),
        ({"disk": 3}, "disk=3 cannot be used: give a string"),
        ({"schedule": "s9"}, "schedule='s9' cannot be used: give one of"),
        ({"device_memory": 3}, "Did you mean 'device_memory_gib'?"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"moe_offload") as raised:
        read(**options)
    assert sentence in str(raised.value)


def test_schedules_that_may_be_named_exist() -> None:
    from moe_offload.config import SCHEDULES

    # The other one attends on the device, which a server here does not.
    assert set(SCHEDULES) == set(NAMES) - {"s4"}


def engine(**changes: object) -> Any:  # noqa: ANN401
    """The parts of vLLM's configuration that are looked at."""
    shape = Values(**{"num_experts": 8, **_of(changes, "shape")})
    model = Values(
        **{
            "use_mla": False,
            "enable_prompt_embeds": False,
            "quantization": None,
            "hf_config": shape,
            "architectures": ["Qwen3MoeForCausalLM"],
            **_of(changes, "model"),
        }
    )
    parallel = Values(
        **{
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "data_parallel_size": 1,
            "enable_expert_parallel": False,
            "enable_eplb": False,
            "worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker",
            **_of(changes, "parallel"),
        }
    )
    return Values(
        model_config=model,
        parallel_config=parallel,
        cache_config=Values(cache_dtype=changes.get("cache", "auto")),
        lora_config=changes.get("lora"),
        speculative_config=changes.get("speculative"),
        kv_transfer_config=changes.get("transfer"),
    )


def _of(changes: dict[str, object], name: str) -> dict[str, object]:
    found = changes.get(name, {})
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora": object()}, "LoRA adapters"),
        ({"speculative": object()}, "speculative decoding"),
        ({"transfer": object()}, "a KV connector"),
        ({"cache": "fp8"}, "a quantised KV cache"),
        ({"parallel": {"tensor_parallel_size": 2}}, "tensor parallelism"),
        ({"model": {"enable_prompt_embeds": True}}, "prompts that are embeddings"),
        ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline parallelism"),
        ({"parallel": {"data_parallel_size": 2}}, "data parallelism"),
        ({"parallel": {"enable_expert_parallel": True}}, "expert parallelism"),
        ({"parallel": {"worker_cls": "some.Worker"}}, "the worker some.Worker"),
        ({"model": {"use_mla": True}}, "models with latent attention"),
        ({"model": {"quantization": "fp8"}}, "quantised checkpoints"),
        ({"model": {"architectures": ["DbrxForCausalLM"]}}, "DbrxForCausalLM has no"),
        ({"shape": {"mlp_only_layers": [0]}}, "layers without experts"),
        ({"shape": {"decoder_sparse_step": 2}}, "layers without experts"),
        ({"shape": {"sliding_window": 4096}}, "sliding windows"),
        ({"shape": {"shared_expert_intermediate_size": 64}}, "shared experts"),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    changes: dict[str, object], reason: str
) -> None:
    check(engine())
    with pytest.raises(UnsupportedError) as raised:
        check(engine(**changes))
    assert f"cannot run here: {reason}" in str(raised.value)
    assert "to serve without offloading" in str(raised.value)


def test_the_key_of_a_checkpoint_changes_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}", "utf-8")
    model = str(tmp_path)
    first = checkpoint_key(model, None, "bfloat16")
    assert checkpoint_key(model, None, "bfloat16") == first
    assert checkpoint_key(model, None, "float16")["name"] != first["name"]
    (tmp_path / "notes.txt").write_text("not a weight", "utf-8")
    assert checkpoint_key(model, None, "bfloat16") == first
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert checkpoint_key(model, None, "bfloat16")["name"] != first["name"]
    json.dumps(first)


def test_the_key_of_a_model_on_a_hub_is_its_commit() -> None:
    first = checkpoint_key("someone/model", "abc", "bfloat16")
    assert checkpoint_key("someone/model", "abc", "bfloat16") == first
    assert first["name"].startswith("model-")
    assert checkpoint_key("someone/model", "def", "bfloat16") != first
    # Nobody knows which weights these are.
    unknown = [checkpoint_key("someone/model", None, "bfloat16") for _ in range(2)]
    assert unknown[0] != unknown[1]
