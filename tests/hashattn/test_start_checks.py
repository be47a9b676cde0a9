# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a server on a GPU refuses before it loads anything, without a GPU."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.hashattn.paged_cases import random_level_maps, random_maps
from tests.hashattn.test_layer_codes import networks
from vllm_hashattn.config import HashAttnConfig
from vllm_hashattn.hash_file import HashFile
from vllm_hashattn.paper_file import PaperFile
from vllm_hashattn.start_checks import UnsupportedError, check, check_for_gpu

pytestmark = pytest.mark.vllm

SIGNS = HashFile({0: random_maps(9, 3, 64, 128)}, {}, {})
LEVELS = HashFile({0: random_level_maps(9, 3, 64, 128)}, {}, {})
SHORT = HashFile({0: random_level_maps(9, 3, 64, 64)}, {}, {})
# Codes of 3 * 32 bits are a KV head's, of which none are a multiple of 128.
PAPER = PaperFile({0: networks(9, 64, 32)}, {"num_key_value_heads": 3}, {})
NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}


def engine(model_path: str, **more: Any) -> Any:  # noqa: ANN401
    """Configuration of a server; one without the plugin, which would refuse."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model_path, **more).create_engine_config()


@pytest.fixture(scope="module")
def config(model_path: str) -> Any:  # noqa: ANN401
    return engine(model_path, attention_backend="CUSTOM")


@pytest.mark.parametrize("file", [SIGNS, LEVELS])
def test_codes_of_signs_and_of_levels_have_kernels(
    config: Any,  # noqa: ANN401
    file: HashFile,
) -> None:
    check_for_gpu(config, file)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (PAPER, "the paper's networks have no kernel"),
        (SHORT, "codes of 64 bits have no kernel"),
    ],
)
def test_other_codes_have_none(
    config: Any,  # noqa: ANN401
    file: HashFile | PaperFile,
    reason: str,
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        check_for_gpu(config, file)


def test_what_the_backend_for_gpus_cannot_do_is_refused_by_name(
    model_path: str,
) -> None:
    with pytest.raises(UnsupportedError, match="add --attention-backend CUSTOM"):
        check_for_gpu(engine(model_path), LEVELS)
    proposing = engine(model_path, attention_backend="CUSTOM", speculative_config=NGRAM)
    with pytest.raises(UnsupportedError, match="speculative decoding asks for several"):
        check_for_gpu(proposing, LEVELS)
    two = engine(model_path, attention_backend="CUSTOM")
    two.parallel_config.enable_dbo = True  # afterwards: vLLM switches it off on CPUs
    with pytest.raises(UnsupportedError, match="two micro-batches at once"):
        check_for_gpu(two, LEVELS)


def test_a_server_on_a_gpu_is_checked(
    model_path: str,
    hash_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from vllm.platforms import current_platform

    fine = engine(model_path, attention_backend="CUSTOM")
    proposing = engine(model_path, attention_backend="CUSTOM", speculative_config=NGRAM)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    logger = logging.getLogger("vllm.plugins.hashattn")
    monkeypatch.setattr(logger, "propagate", True)
    options = HashAttnConfig(weights=str(hash_file))
    check(fine, options)
    assert "has not run on hardware yet" in caplog.text
    with pytest.raises(UnsupportedError, match="speculative decoding asks for several"):
        check(proposing, options)
