# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What sparse decoding costs in quality: perplexity of texts, answers to tasks.

Every arm runs after the same dense context.
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
        reading: What was read.
    """

    arm: str
    document: int
    tokens: int
    nll: float
    reading: Reading


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One arm on one question.

    Attributes:
        arm: Its name.
        sample: Number of the context.
        score: What the answer is worth.
        answer: As written.
        reading: What the arm read for all questions of the context.
    """

    arm: str
    sample: int
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
        arms: To compare.
        say: Takes a line about progress.
    """
    for number, token_ids in enumerate(documents):
        context = read_context(model, token_ids[:-predicted_tokens])
        for arm in arms:
            run = Evaluation(model, context, arm)
            # The first one follows from the dense context.
            nll = run.nll(token_ids[-predicted_tokens:])[1:]
            result = TextResult(
                arm.name, number, len(nll), float(nll.mean()), run.reading()
            )
            yield result
        say(f"text {number + 1} of {len(documents)}: {len(token_ids):,} tokens")


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
            for question, answer in zip(sample.questions, answers, strict=True):
                score = score_answer(question, answer.text)
                yield TaskResult(arm.name, number, score, answer.text, reading)
        say(f"context {number + 1} of {len(samples)}: {len(prefix):,} tokens")


def perplexity(results: Iterable[TextResult]) -> float:
    """Return the perplexity over all tokens of one arm's documents."""
    found = list(results)
    tokens = sum(each.tokens for each in found)
    return math.exp(sum(each.nll * each.tokens for each in found) / tokens)
