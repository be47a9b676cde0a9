# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Sparse decode attention on a real model, against the model and plain loops."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_hashattn.attention import attend_biased
from vllm_hashattn.budget import Budget
from vllm_hashattn.evaluation import Evaluation
from vllm_hashattn.evaluation_answers import Stop
from vllm_hashattn.evaluation_arms import (
    Arm,
    dense_arm,
    levels_arm,
    linear_arm,
    oracle_arm,
    paper_arm,
    quest_arm,
    random_arm,
    weighing_oracle_arm,
    window_arm,
)
from vllm_hashattn.evaluation_attention import Context, attention_by, read_context
from vllm_hashattn.evaluation_likelihood import divergence_of_rows, nll_of_rows
from vllm_hashattn.evaluation_weighted import LogitOracle
from vllm_hashattn.hash_file import HashFile
from vllm_hashattn.paper_file import PaperFile, PaperNetworks
from vllm_hashattn.scorer import Scorer, of_group
from vllm_hashattn.scorer_levels import LevelHash, LevelScorer
from vllm_hashattn.scorer_linear import LinearHash
from vllm_hashattn.scorer_paper import HeadNetworks
from vllm_hashattn.selection import pivotal_tokens
from vllm_hashattn.weighted_choice import choice_bias, distances, steps_of

LAYERS, HEADS, KV_HEADS, DIM = 30, 9, 3, 64
# A multiple of Quest's page, so that pages are those of one long sequence.
CONTEXT_TOKENS, TEXT_TOKENS = 304, 24
# Few of the newest tokens, so that those after the context have to be chosen as well.
SPARSE = Budget(0.1, min_tokens=0, sink_tokens=4, recent_tokens=3)
PAGED = replace(SPARSE, recent_tokens=16)
# Few layers draw, because every other draw that rounding causes changes those above.
FEW_SPARSE = LAYERS - 3
NEVER = Stop(5, frozenset(), lambda _: "", text="")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear_file() -> HashFile:
    """Random hyperplanes, the same for keys and queries."""
    layers = {}
    for layer in range(LAYERS):
        planes = normal(KV_HEADS, DIM, 64, seed=layer)
        layers[layer] = LinearHash(
            planes,
            torch.zeros(KV_HEADS, 64),
            planes.repeat_interleave(HEADS // KV_HEADS, dim=0),
            torch.zeros(HEADS, 64),
        )
    return HashFile(layers, {}, {})


def levels_file(keys: Sequence[Tensor] = ()) -> HashFile:
    """Keys turned at random, in levels of half a unit, and queries turned likewise.

    Args:
        keys: Of each layer; if given, their middle is that of the levels.
    """
    layers = {}
    for layer in range(LAYERS):
        turned = torch.linalg.qr(normal(KV_HEADS, DIM, DIM, seed=layer)).Q
        middle = torch.zeros(KV_HEADS, DIM)
        if keys:
            middle = torch.einsum("hd,hdc->hc", keys[layer].mean(dim=1), turned)
        layers[layer] = LevelHash(
            2 * turned,
            8.0 - 2 * middle,
            turned.repeat_interleave(HEADS // KV_HEADS, dim=0) / (2 * DIM**0.5),
            torch.linspace(0.2, 0.8, HEADS),
        )
    return HashFile(layers, {}, {})


def paper_file() -> PaperFile:
    sizes = (DIM, 16, 16, 32)
    layers = {}
    for layer in range(LAYERS):
        steps = list(itertools.pairwise(sizes))
        networks = HeadNetworks(
            [normal(HEADS, i, o, seed=layer + o) / i**0.5 for i, o in steps],
            [torch.zeros(HEADS, o) for _, o in steps],
        )
        layers[layer] = PaperNetworks(networks, networks)
    return PaperFile(layers, {}, {})


ARMS: dict[str, Callable[[], Arm]] = {
    "oracle": lambda: oracle_arm(DIM, SPARSE),
    "oracle weighing": lambda: weighing_oracle_arm(
        DIM, SPARSE, dense_layers=FEW_SPARSE
    ),
    "levels": lambda: levels_arm(levels_file(), SPARSE, dense_layers=FEW_SPARSE),
    "best levels": lambda: levels_arm(levels_file(), SPARSE, weighs=False),
    "window": lambda: window_arm(SPARSE),
    "quest": lambda: quest_arm(DIM, PAGED),
    "linear": lambda: linear_arm(linear_file(), SPARSE, dense_layers=2),
    "asymmetric": lambda: linear_arm(linear_file(), SPARSE, asymmetric=True),
    "paper": lambda: paper_arm(paper_file(), KV_HEADS, SPARSE),
}


@dataclass(frozen=True)
class Case:
    """A model in float32, a text, its beginning read once, and what the model says."""

    model: Any
    tokenizer: Any
    ids: Tensor
    context: Context
    dense_nll: Tensor

    @property
    def rest(self) -> Tensor:
        return self.ids[CONTEXT_TOKENS:]

    def arm(self, arm: Arm) -> Evaluation:
        return Evaluation(self.model, self.context, arm)

    def nll(self, evaluation: Evaluation) -> Tensor:
        return nll_of_rows(evaluation.logits(self.rest), self.rest)


@pytest.fixture(scope="module")
def case(model_path: str, repository_root: Path) -> Case:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    text = (repository_root / "vllm_hashattn" / "README.md").read_text("utf-8")
    ids = torch.tensor(tokenizer(text).input_ids[: CONTEXT_TOKENS + TEXT_TOKENS])
    assert len(ids) == CONTEXT_TOKENS + TEXT_TOKENS
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    assert model.config.num_hidden_layers == LAYERS
    with torch.inference_mode():
        logits = model(ids.unsqueeze(0)).logits[0, CONTEXT_TOKENS - 1 : -1]
    chances = logits.log_softmax(dim=-1)
    dense_nll = -chances.gather(1, ids[CONTEXT_TOKENS:].unsqueeze(1))[:, 0]
    context = read_context(model, ids[:CONTEXT_TOKENS])
    return Case(model, tokenizer, ids, context, dense_nll)


def test_dense_arm_gives_the_models_own_probabilities(case: Case) -> None:
    before = case.model.config._attn_implementation
    evaluation = case.arm(dense_arm())
    found = case.nll(evaluation)
    torch.testing.assert_close(found, case.dense_nll, rtol=1e-3, atol=1e-3)
    reading = evaluation.reading()
    assert reading.bytes_share == 1.0
    # The last token is only predicted.
    assert reading.read_tokens == CONTEXT_TOKENS + TEXT_TOKENS / 2
    assert case.model.config._attn_implementation == before


class Steps:
    """Decode steps one after the other, written as plainly as they can be."""

    def __init__(self, context: Context, arm: Arm) -> None:
        self.arm = arm
        pairs = zip(context.keys, context.values, strict=True)
        self.cached = [[each.transpose(0, 1) for each in pair] for pair in pairs]
        self.scorers = [arm.scorer(layer) for layer in range(LAYERS)]
        self.read: list[int] = []

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *_: object,
        scaling: float,
        **__: object,
    ) -> tuple[Tensor, None]:
        layer = int(module.layer_idx)
        for side, new in enumerate((key, value)):
            token = new[0].transpose(0, 1)
            self.cached[layer][side] = torch.cat([self.cached[layer][side], token])
        keys, values = self.cached[layer]
        asked = query[0, :, 0]
        bias = torch.zeros(KV_HEADS, len(keys))
        if layer >= self.arm.dense_layers:
            bias = self.bias(self.scorers[layer], asked, keys)
            self.read.append(int((bias > -torch.inf).sum()))
        return attend_biased(asked, keys, values, scaling, bias)[None, None], None

    def bias(self, scorer: Scorer, asked: Tensor, keys: Tensor) -> Tensor:
        described, budget, tokens = scorer.describe(keys), self.arm.budget, len(keys)
        if isinstance(scorer, LevelScorer):
            whole, units = scorer.asked(asked)
            dots, share = scorer.dots(whole, described), scorer.maps.share
        elif isinstance(scorer, LogitOracle):
            dots, share = scorer.score(asked, described), torch.ones(HEADS)
            units = torch.full((HEADS,), DIM**-0.5)
        else:
            return self.best(of_group(scorer.score(asked, described), KV_HEADS))
        candidates = budget.sink_tokens, tokens - budget.recent_tokens
        found = distances(dots, steps_of(units), share, KV_HEADS, candidates)
        if not self.arm.weighs:
            return self.best(-found.float())
        always = budget.sink_tokens + budget.recent_tokens
        return choice_bias(
            found.unsqueeze(0),
            torch.tensor([tokens]),
            torch.tensor([budget.tokens(tokens) - always]),
            budget.sink_tokens,
            budget.recent_tokens,
        )[0]

    def best(self, scores: Tensor) -> Tensor:
        chosen = pivotal_tokens(scores, self.arm.budget)
        return torch.full(scores.shape, -torch.inf).scatter_(1, chosen, 0.0)


def step(case: Case, place: int, token: int) -> Tensor:
    """Logits after one token, inside :func:`attention_by` steps."""
    logits: Tensor = case.model(
        torch.tensor([[token]]),
        position_ids=torch.tensor([[CONTEXT_TOKENS + place]]),
        use_cache=False,
    ).logits[0, 0]
    return logits


@pytest.mark.parametrize("name", ARMS)
def test_one_sparse_pass_is_one_decode_step_after_another(
    name: str, case: Case
) -> None:
    arm = ARMS[name]()
    steps = Steps(case.context, arm)
    expected = []
    with attention_by(case.model, steps):
        for i in range(TEXT_TOKENS - 1):
            logits = step(case, i, int(case.rest[i]))
            expected.append(-logits.log_softmax(dim=-1)[case.rest[i + 1]])
    evaluation = case.arm(arm)
    found = case.nll(evaluation)
    torch.testing.assert_close(found[1:], torch.stack(expected), rtol=0, atol=5e-3)
    read = sum(steps.read) / (len(steps.read) * KV_HEADS)
    # A rounding that goes the other way can draw another token.
    rounding = 1e-3 if arm.dense_layers == FEW_SPARSE else 1e-6
    assert evaluation.reading().read_tokens == pytest.approx(read, rel=rounding)
    # And it is no dense attention.
    assert found[0] == pytest.approx(float(case.dense_nll[0]), abs=1e-3)
    assert (found - case.dense_nll).abs().max() > 0.01
    assert evaluation.reading().read_tokens < 0.2 * evaluation.reading().seen_tokens
    # The oracle reads all keys besides.
    limit = 0.75 if "oracle" in name else 0.5
    dense_part = arm.dense_layers / LAYERS
    assert evaluation.reading().bytes_share < dense_part + limit * (1 - dense_part)


@pytest.mark.parametrize("name", ["quest", "asymmetric"])
def test_tokens_per_pass_do_not_change_what_is_found(name: str, case: Case) -> None:
    whole, parts = case.arm(ARMS[name]()), case.arm(ARMS[name]())
    found = nll_of_rows(parts.logits(case.rest, tokens_per_pass=6), case.rest)
    torch.testing.assert_close(found, case.nll(whole), rtol=0, atol=5e-3)
    assert parts.reading() == whole.reading()


def test_weighing_comes_closer_than_the_best_tokens_alone(case: Case) -> None:
    dense, file = (
        case.arm(dense_arm()).logits(case.rest),
        levels_file(case.context.keys),
    )
    budget = replace(SPARSE, density=0.25)
    arms = {
        "weighing oracle": weighing_oracle_arm(DIM, budget, 2),
        "oracle": oracle_arm(DIM, budget, 2),
        "levels": levels_arm(file, budget, 2),
        "best levels": levels_arm(file, budget, 2, weighs=False),
        "window": window_arm(budget, 2),
    }
    far = {
        name: float(divergence_of_rows(case.arm(arm).logits(case.rest), dense).mean())
        for name, arm in arms.items()
    }
    assert far["weighing oracle"] < far["oracle"], far
    assert far["levels"] < far["best levels"] < far["window"], far


def test_the_oracle_loses_less_than_chance(case: Case) -> None:
    dense = case.dense_nll
    lost = {
        arm.name: float((case.nll(case.arm(arm)) - dense).abs().mean())
        for arm in (oracle_arm(DIM, SPARSE), random_arm(SPARSE))
    }
    assert lost["oracle"] < 0.5 * lost["random"]


QUESTIONS = [
    "\n\nIn short,",
    "\n\nQuestion: what is read at a decode step?\nAnswer:",
    "\n\n## Limits\n\nIt",
]


def questions(case: Case) -> list[list[int]]:
    return [case.tokenizer(text).input_ids for text in QUESTIONS]


def test_answers_side_by_side_are_those_of_single_generations(case: Case) -> None:
    answers = case.arm(dense_arm()).answers(questions(case), NEVER)
    for question, answer in zip(questions(case), answers, strict=True):
        prompt = torch.cat([case.ids[:CONTEXT_TOKENS], torch.tensor(question)])
        generated = case.model.generate(
            prompt.unsqueeze(0),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
        )
        assert list(answer.token_ids) == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["levels", "quest"])
def test_sparse_answers_do_not_depend_on_their_neighbours(
    name: str, case: Case
) -> None:
    arm = ARMS[name]()
    together = case.arm(arm)
    found = together.answers(questions(case), NEVER)
    alone = [case.arm(arm).answers([each], NEVER)[0] for each in questions(case)]
    assert found == alone
    assert together.reading().read_tokens < 0.2 * together.reading().seen_tokens


def test_sparse_answers_differ_from_dense_ones(case: Case) -> None:
    dense, window = (
        case.arm(arm).answers(questions(case), NEVER)
        for arm in (dense_arm(), window_arm(SPARSE))
    )
    # The first token follows from the question, which is read densely.
    assert [a.token_ids[0] for a in dense] == [a.token_ids[0] for a in window]
    assert dense != window


@pytest.mark.parametrize("name", ["best levels", "linear"])
def test_sparse_questions_are_decode_steps_as_well(name: str, case: Case) -> None:
    arm = ARMS[name]()
    expected, read = [], []
    for question in questions(case):
        steps, token_ids = Steps(case.context, arm), list(question)
        with attention_by(case.model, steps):
            for place in range(len(question) + NEVER.limit_tokens - 1):
                logits = step(case, place, token_ids[place])
                if place >= len(question) - 1:
                    token_ids.append(int(logits.argmax()))
        expected.append(tuple(token_ids[len(question) :]))
        read += steps.read
    evaluation = case.arm(arm)
    found = evaluation.answers(questions(case), NEVER, sparse_questions=True)
    assert [answer.token_ids for answer in found] == expected
    of_one = sum(read) / (len(read) * KV_HEADS)
    assert evaluation.reading().read_tokens == pytest.approx(of_one)
    assert found != case.arm(arm).answers(questions(case), NEVER)


def test_finished_answers_leave_the_others_as_they_are(case: Case) -> None:
    whole = case.arm(dense_arm()).answers(questions(case), NEVER)
    end = whole[1].token_ids[3]
    found = case.arm(dense_arm()).answers(
        questions(case), replace(NEVER, end_ids=frozenset({end}))
    )
    assert len(found[1].token_ids) <= 4
    for short, long in zip(found, whole, strict=True):
        kept = list(itertools.takewhile(lambda token: token != end, long.token_ids))
        assert list(short.token_ids) == list(long.token_ids[: len(kept) + 1])


def test_what_cannot_be_evaluated_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="context of 0 tokens"):
        read_context(case.model, case.ids[:0])
    evaluation = case.arm(dense_arm())
    with pytest.raises(ValueError, match="text of 0 tokens"):
        evaluation.logits(case.ids[:0])
    with pytest.raises(ValueError, match="question 1 has 0 tokens"):
        evaluation.answers([[1], []], NEVER)
    with pytest.raises(ValueError, match="answers of 0 tokens"):
        replace(NEVER, limit_tokens=0)
    with pytest.raises(ValueError, match="-1 dense layers"):
        window_arm(SPARSE, dense_layers=-1)
    with pytest.raises(ValueError, match="LevelHash was asked for, but the file holds"):
        case.arm(levels_arm(linear_file(), SPARSE))
    with pytest.raises(ValueError, match="recent_tokens must be at least 16"):
        quest_arm(DIM, replace(SPARSE, recent_tokens=15))
    few = HashFile({0: linear_file().layers[0]}, {}, {})
    with pytest.raises(ValueError, match="layer 1 was asked for"):
        case.arm(linear_arm(few, SPARSE))
    assert evaluation.answers([], NEVER) == []
