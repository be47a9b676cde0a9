# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a server refuses before it loads anything."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "missing.safetensors"}, "cannot be read as a hash file"),
        ({"weights": 3}, "give the path of a hash file"),
        ({"density": 0.0}, "density=0.0 cannot be used"),
        ({"densty": 0.1}, "Did you mean 'density'"),
    ],
)
def test_options_that_cannot_work_are_refused_at_start(
    model_path: str, options: dict[str, Any], reason: str
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(model_path, additional_config={"hashattn": options})
    with pytest.raises(ValueError, match=reason):
        arguments.create_engine_config()


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"kv_cache_dtype": "fp8"}, "quantised KV cache"),
        (
            {
                "kv_transfer_config": {
                    "kv_connector": "ExampleConnector",
                    "kv_role": "kv_both",
                }
            },
            "the KV connector ExampleConnector may bring codes of another hash",
        ),
    ],
)
def test_what_hash_attention_cannot_do_is_refused_by_name(
    model_path: str, hash_file: Path, engine: dict[str, Any], reason: str
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model_path,
        additional_config={"hashattn": {"weights": str(hash_file)}},
        **engine,
    )
    with pytest.raises(ValueError, match=reason):
        arguments.create_engine_config()


def test_draft_models_are_refused_by_name(model_path: str, hash_file: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model_path,
        additional_config={"hashattn": {"weights": str(hash_file)}},
        speculative_config={
            "method": "draft_model",
            "model": model_path,
            "num_speculative_tokens": 2,
        },
    )
    with pytest.raises(ValueError, match="by draft_model has a draft model"):
        arguments.create_engine_config()
