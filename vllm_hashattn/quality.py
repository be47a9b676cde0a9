# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What sparse decoding costs in quality: perplexity of texts, answers to tasks.

Every arm runs after the same dense context. What it costs is its difference to the arm
that reads everything, on the same tokens and questions
(:mod:`~vllm_hashattn.evaluation_change`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .evaluation import Evaluation
from .evaluation_answers import Stop
from .evaluation_arms import Arm, Reading
from .evaluation_attention import read_context
from .evaluation_change import block_means, change_of_blocks
from .evaluation_likelihood import (
    divergence_of_rows,
    nll_of_rows,
    same_top_of_rows,
)
from .long_context import Sample, chat_prompt
from .long_context_score import Score, score_answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ANSWER_TOKENS = 48

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TextResult:
    """One arm on one document.

    Attributes:
        arm: Its name.
        document: Its number.
        tokens: Predicted by sparse attention.
        nll: Mean negative logarithm of their probabilities.
        nll_changes: By how much it is above dense attention's, for each 16 tokens or so
            in a row.
        divergence: Mean Kullback-Leibler divergence of the distribution of the next
            token from dense attention's, in nats.
        same_top: Share of tokens where both find the same token most likely.
        reading: What was read.
    """

    arm: str
    document: int
    tokens: int
    nll: float
    nll_changes: tuple[float, ...]
    divergence: float
    same_top: float
    reading: Reading


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One arm on one question.

    Attributes:
        arm: Its name.
        sample: Number of the context.
        question: Number of the question in it.
        score: What the answer is worth.
        answer: As written.
        reading: What the arm read for all questions of the context.
    """

    arm: str
    sample: int
    question: int
    score: Score
    answer: str
    reading: Reading


def measure_texts(
    model: PreTrainedModel,
    documents: Sequence[Tensor],
    predicted_tokens: int,
    arms: Sequence[Arm],
    say: Say,
) -> Iterator[TextResult]:
    """Predict the end of each document after a dense beginning.

    Args:
        model: A decoder in transformers.
        documents: int64 [tokens] each.
        predicted_tokens: At the end of each, by sparse decoding.
        arms: To compare; the first one reads everything.
        say: Takes a line about progress.

    Raises:
        ValueError: The first arm does not read everything, or there is too little text.
    """
    _check_first(arms)
    if predicted_tokens < 3:
        raise ValueError(
            f"hashattn: {predicted_tokens} predicted tokens were asked for; the first "
            "follows from the dense context, and one says nothing about how much they "
            "differ, so give at least 3."
        )
    for number, token_ids in enumerate(documents):
        context = read_context(model, token_ids[:-predicted_tokens])
        text = token_ids[-predicted_tokens:]
        dense: Tensor | None = None
        for arm in arms:
            run = Evaluation(model, context, arm)
            logits = run.logits(text)[1:]  # the first follows from the dense context
            dense = logits if dense is None else dense
            yield _text_result(arm.name, number, logits, dense, text[1:], run.reading())
        say(f"text {number + 1} of {len(documents)}: {len(token_ids):,} tokens")


def _check_first(arms: Sequence[Arm]) -> None:
    if not arms or arms[0].budget.density < 1.0:
        first = arms[0].name if arms else "none"
        raise ValueError(
            f"hashattn: the first arm is {first!r}; the others are compared with one "
            "that reads everything, so begin with dense_arm()."
        )


def _text_result(
    arm: str,
    document: int,
    logits: Tensor,
    dense: Tensor,
    targets: Tensor,
    reading: Reading,
) -> TextResult:
    nll = nll_of_rows(logits, targets)
    return TextResult(
        *(arm, document, len(nll), float(nll.mean())),
        block_means(nll - nll_of_rows(dense, targets)),
        float(divergence_of_rows(logits, dense).mean()),
        float(same_top_of_rows(logits, dense).float().mean()),
        reading,
    )


def measure_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    arms: Sequence[Arm],
    say: Say,
) -> Iterator[TaskResult]:
    """Answer every question of each context greedily.

    Args:
        model: A decoder in transformers, tuned for chats.
        tokenizer: Its own.
        samples: Contexts with questions.
        arms: To compare.
        say: Takes a line about progress.
    """
    ends = {tokenizer.eos_token_id, model.generation_config.eos_token_id}
    stop = Stop(
        _ANSWER_TOKENS,
        frozenset(each for each in ends if isinstance(each, int)),
        lambda ids: str(tokenizer.decode(list(ids))),
    )
    for number, sample in enumerate(samples):
        prompts = [
            chat_prompt(tokenizer, sample.context, each.text, each.answer_prefix)
            for each in sample.questions
        ]
        prefix, _ = prompts[0].token_ids(tokenizer)
        questions = [prompt.token_ids(tokenizer)[1] for prompt in prompts]
        context = read_context(model, torch.tensor(prefix))
        for arm in arms:
            run = Evaluation(model, context, arm)
            answers = run.answers(questions, stop)
            reading = run.reading()
            pairs = zip(sample.questions, answers, strict=True)
            for asked, (question, answer) in enumerate(pairs):
                score = score_answer(question, answer.text)
                yield TaskResult(arm.name, number, asked, score, answer.text, reading)
        say(f"context {number + 1} of {len(samples)}: {len(prefix):,} tokens")


def perplexity(results: Iterable[TextResult]) -> float:
    """Return the perplexity over all tokens of one arm's documents."""
    found = list(results)
    tokens = sum(each.tokens for each in found)
    return math.exp(sum(each.nll * each.tokens for each in found) / tokens)


def perplexity_change(
    results: Iterable[TextResult],
) -> tuple[float, tuple[float, float]]:
    """Return by what share one arm's perplexity is above dense decoding's.

    Returns:
        The share, and its 95 % interval, from differences of blocks of tokens
        (:func:`~vllm_hashattn.evaluation_change.change_of_blocks`).
    """
    blocks = [block for each in results for block in each.nll_changes]
    change = change_of_blocks(blocks)
    low, high = change.interval
    return math.expm1(change.mean), (math.expm1(low), math.expm1(high))
