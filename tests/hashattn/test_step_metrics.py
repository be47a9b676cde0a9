# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What /metrics says about steps."""

from prometheus_client import generate_latest

from vllm_hashattn.metrics import StepMetrics
from vllm_hashattn.steps import StepCounts


def test_counts_are_published_once() -> None:
    counts = StepCounts()
    metrics = StepMetrics(counts, "a-model", row_bytes=100, code_bytes=6)
    counts.count([1000, 50], [100, 50])
    metrics.publish()
    metrics.publish()
    text = generate_latest(metrics.registry).decode()
    for line in (
        'vllm:hashattn_decode_tokens_total{model_name="a-model",read="sparse"} 1.0',
        'vllm:hashattn_decode_tokens_total{model_name="a-model",read="dense"} 1.0',
        'vllm:hashattn_context_tokens_total{model_name="a-model",tokens="held"} 1050.0',
        'vllm:hashattn_context_tokens_total{model_name="a-model",tokens="read"} 150.0',
        # 900 tokens of 100 bytes were not read, 1000 codes of 6 were.
        'vllm:hashattn_saved_bytes_total{kind="kv",model_name="a-model"} 84000.0',
    ):
        assert line in text
