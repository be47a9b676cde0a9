# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Evaluation of other architectures than the demo model's, small and untrained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from vllm_hashattn.budget import Budget
from vllm_hashattn.evaluation import Evaluation
from vllm_hashattn.evaluation_answers import Stop
from vllm_hashattn.evaluation_arms import dense_arm, oracle_arm
from vllm_hashattn.evaluation_attention import read_context
from vllm_hashattn.evaluation_likelihood import nll_of_rows

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

HEADS, DIM, WORDS = 14, 8, 200
SPARSE = Budget(0.1, min_tokens=0, sink_tokens=2, recent_tokens=3)


def qwen2(**options: int) -> Qwen2ForCausalLM:
    """14 query heads and 2 KV heads, with biases, as the smallest of that family."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=WORDS,
        hidden_size=HEADS * DIM,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        initializer_range=0.2,  # large, so that attention has peaks
        **options,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():  # biases start at 0
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.normal_()
    return model


def text(tokens: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(WORDS, (tokens,), generator=random)


def test_qwen2_gives_its_own_probabilities_and_answers() -> None:
    model, ids = qwen2(), text(150)
    context = read_context(model, ids[:120])
    with torch.inference_mode():
        chances = model(ids.unsqueeze(0)).logits[0, 119:-1].log_softmax(dim=-1)
    expected = -chances.gather(1, ids[120:].unsqueeze(1))[:, 0]
    dense = Evaluation(model, context, dense_arm())
    torch.testing.assert_close(
        nll_of_rows(dense.logits(ids[120:]), ids[120:]), expected, rtol=1e-4, atol=1e-4
    )
    sparse = Evaluation(model, context, oracle_arm(DIM, SPARSE, dense_layers=1))
    assert (
        nll_of_rows(sparse.logits(ids[120:]), ids[120:]) - expected
    ).abs().max() > 0.01
    assert sparse.reading().read_tokens < 0.12 * sparse.reading().seen_tokens

    questions = [[3, 5, 8], [13], [21, 34, 55, 89]]
    stop = Stop(6, frozenset(), lambda _: "", text="")
    for question, answer in zip(questions, dense.answers(questions, stop), strict=True):
        prompt = torch.cat([ids[:120], torch.tensor(question)]).unsqueeze(0)
        generated = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
        )
        assert list(answer.token_ids) == generated[0, prompt.shape[1] :].tolist()


def test_a_sliding_window_is_refused() -> None:
    model = qwen2(use_sliding_window=True, sliding_window=16, max_window_layers=1)
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="layer 1 of the model has a sliding window"):
        read_context(model, text(30))
    # And the model is left as it was.
    assert model.config._attn_implementation == before
