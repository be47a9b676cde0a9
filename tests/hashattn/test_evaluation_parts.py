# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Parts of an evaluation that need no model: branches, samples, counts, ends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_hashattn.evaluation_answers import Stop
from vllm_hashattn.evaluation_arms import ReadCount
from vllm_hashattn.evaluation_branches import LayerBranches, Rows
from vllm_hashattn.evaluation_choice import residual_bias_rows
from vllm_hashattn.evaluation_likelihood import nll_of_rows
from vllm_hashattn.residual import residual_bias
from vllm_hashattn.scorer import OracleScorer, Scorer
from vllm_hashattn.scorer_quest import QuestScorer

KV_HEADS, DIM = 3, 64


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_an_answer_ends_at_a_line_an_end_token_or_the_limit() -> None:
    words = {0: "", 1: " one", 2: "\n", 3: " two"}
    stop = Stop(4, frozenset({0}), lambda ids: "".join(words[i] for i in ids))
    assert stop.answer([1]) == ("one", False)
    assert stop.answer([2]) == ("", False)
    assert stop.answer([2, 1, 2]) == ("one", True)
    assert stop.answer([1, 3, 0]) == ("one two", True)
    assert stop.answer([1, 3, 1, 1]) == ("one two one one", True)


@pytest.mark.parametrize("scorer", [QuestScorer(DIM), OracleScorer(DIM)])
def test_branches_are_described_apart(scorer: Scorer) -> None:
    keys = normal(KV_HEADS, 3 * 20, DIM, seed=1)  # 3 branches of 20 tokens
    branches = LayerBranches(3, 20, keys, scorer)
    places = torch.arange(60)
    for part in (places[:25], places[25:]):  # written in two passes
        rows = Rows(part // 20, part % 20)
        branches.write(rows, keys[:, part], -keys[:, part])
    found_keys, found_values, described = branches.first(18)
    assert described is not None
    for branch in range(3):
        mine = slice(18 * branch, 18 * branch + 18)
        own = keys[:, 20 * branch : 20 * branch + 18]
        assert torch.equal(found_keys[:, mine], own)
        assert torch.equal(found_values[:, mine], -own)
        # Of a page that is not full nothing is asked.
        expected = scorer.describe(own.transpose(0, 1))[:16]
        assert torch.equal(described[mine][:16], expected)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_samples_of_many_rows_are_those_of_each(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    samples = data.draw(st.integers(0, 12))
    heads, tokens = 2, max(lengths) + data.draw(st.integers(0, 3))
    chosen = torch.zeros(len(lengths), heads, tokens, dtype=torch.bool)
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    for row, length in enumerate(lengths):
        count = data.draw(st.integers(1, length))
        for head in range(heads):
            picked = torch.randperm(length, generator=random)[:count]
            chosen[row, head, picked] = True
    found = residual_bias_rows(chosen, torch.tensor(lengths), samples)
    for row, length in enumerate(lengths):
        expected = residual_bias(chosen[row, :, :length], samples)
        torch.testing.assert_close(found[row, :, :length], expected)
        assert (found[row, :, length:] == -torch.inf).all()


def test_descriptions_and_dense_layers_count_as_bytes() -> None:
    count = ReadCount(head_dim=64)
    lengths = torch.tensor([10, 4])
    bias = torch.zeros(2, 1, 10)
    bias[0, :, 5:] = -torch.inf
    bias[1, :, 4:] = -torch.inf  # reads all that it sees, and needs no description
    count.sparse(lengths, bias, 2, bits=128)
    reading = count.reading()
    assert (reading.read_tokens, reading.seen_tokens) == (4.5, 7.0)
    assert reading.bytes_share == pytest.approx((9 + 10 * 128 / 2048) / 14)
    count.dense(lengths, 2)
    both = count.reading()
    assert both.read_tokens == 4.5
    assert both.bytes_share == pytest.approx((reading.bytes_share + 1) / 2)


@pytest.mark.parametrize("rows", [1, 64, 150])
def test_likelihoods_in_parts_are_those_of_each_row(rows: int) -> None:
    logits = normal(rows, 11, seed=rows).bfloat16()
    targets = torch.arange(rows) * 7 % 11
    found = nll_of_rows(logits, targets)
    assert found.dtype == torch.float32
    for row in range(rows):
        wide = logits[row].double().exp()
        expected = -(wide[targets[row]] / wide.sum()).log()
        assert float(found[row]) == pytest.approx(float(expected), rel=1e-5)
