# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Parts of an evaluation that need no model: branches, draws, counts, ends."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_hashattn.attention import attention_weights
from vllm_hashattn.budget import Budget
from vllm_hashattn.evaluation_answers import Stop
from vllm_hashattn.evaluation_arms import ReadCount
from vllm_hashattn.evaluation_branches import LayerBranches, Rows
from vllm_hashattn.evaluation_likelihood import (
    divergence_of_rows,
    nll_of_rows,
    same_top_of_rows,
)
from vllm_hashattn.evaluation_weighted import LogitOracle, estimates
from vllm_hashattn.scorer import OracleScorer, Scorer
from vllm_hashattn.scorer_quest import QuestScorer
from vllm_hashattn.weighted_choice import Estimates, choice_bias, distances, steps_of

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


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_draws_of_many_rows_are_those_of_each(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 400), min_size=1, max_size=4))
    budget = Budget(
        data.draw(st.sampled_from([0.02, 0.1, 0.5, 1.0])),
        min_tokens=data.draw(st.integers(0, 40)),
        sink_tokens=data.draw(st.integers(0, 20)),
        recent_tokens=data.draw(st.integers(1, 20)),
    )
    seed, tokens = data.draw(st.integers(0, 1000)), max(lengths) + 3
    dots = (normal(len(lengths), 6, tokens, seed=seed) * 3000).round()
    units = normal(len(lengths), 6, seed=seed).abs() * 1e-3
    share = torch.linspace(0.1, 1.0, 6)
    estimated = Estimates(dots, units, share, KV_HEADS)
    found = estimated.drawn(torch.tensor(lengths), budget)
    every = estimated.distances(torch.tensor(lengths), budget)
    for row, length in enumerate(lengths):
        assert (found[row, :, length:] == -torch.inf).all()
        if budget.is_dense(length):
            assert (found[row, :, :length] == 0.0).all()
            continue
        # The row alone, and nothing behind its length.
        first, last = budget.sink_tokens, length - budget.recent_tokens
        seen, steps = dots[row, :, :length], steps_of(units[row])
        alone = distances(seen, steps, share, KV_HEADS, (first, last))
        assert torch.equal(every[row, :, first:last], alone[:, first:last])
        wanted = budget.tokens(length) - first - budget.recent_tokens
        expected = choice_bias(
            alone.unsqueeze(0),
            *(torch.tensor([length]), torch.tensor([wanted])),
            *(budget.sink_tokens, budget.recent_tokens),
        )
        assert torch.equal(found[row, :, :length], expected[0])


def test_the_oracle_that_weighs_knows_attention_itself() -> None:
    keys, query = normal(400, KV_HEADS, DIM, seed=1), normal(2, 6, DIM, seed=2)
    scorer, budget = LogitOracle(DIM), Budget(0.2, 0, 4, 4)
    nothing, own = keys[:0], torch.zeros(2, 0, dtype=torch.int64)
    found = estimates(scorer, query, (keys, nothing), own)
    assert found is not None
    logits = found.dots * found.units.unsqueeze(2)
    expected = [attention_weights(each, keys, DIM**-0.5).log() for each in query]
    torch.testing.assert_close(
        logits - logits.logsumexp(dim=2, keepdim=True), torch.stack(expected)
    )
    assert estimates(OracleScorer(DIM), query, (keys, nothing), own) is None
    # What is drawn stands for all: chances add up to what is read.
    bias = found.drawn(torch.tensor([400, 400]), budget)
    read = (bias > -torch.inf).sum(dim=2).float()
    assert read.mean() == pytest.approx(budget.tokens(400), rel=0.1)
    assert (bias[bias > -torch.inf] >= 0).all() and (bias > 0).any()


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


@pytest.mark.parametrize("rows", [1, 64, 150])
def test_divergences_in_parts_are_those_of_each_row(rows: int) -> None:
    dense, other = (normal(rows, 11, seed=rows + i).bfloat16() for i in range(2))
    found = divergence_of_rows(other, dense)
    for row in range(rows):
        expected = dense[row].double().softmax(dim=0)
        reached = other[row].double().softmax(dim=0)
        of_row = sum(
            float(p) * (math.log(float(p)) - math.log(float(q)))
            for p, q in zip(expected, reached, strict=True)
        )
        assert float(found[row]) == pytest.approx(of_row, rel=1e-4)
        same = int(dense[row].argmax()) == int(other[row].argmax())
        assert bool(same_top_of_rows(other, dense)[row]) == same
    assert (divergence_of_rows(dense, dense) == 0).all()
