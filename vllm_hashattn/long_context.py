# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Long-context tasks with known answers: what a sample is, and how a model is asked.

The tasks are made by a seeded generator, so that a model cannot know the answers and
has to find them in its context. Several questions share one context: it is prefilled
once, and each question is a short branch after it.

Source: the task definitions of RULER (arXiv 2404.06654), in words of our own. Ours: the
needle tasks of one length share a haystack, and nothing is shown by an example first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CountTokens = Callable[[str], int]

# The last word of the prefix: after a letter, no tokenizer joins the line break that
# follows with anything before it.
_INTRODUCTION = "Read this text. A question about it comes after it."
_END = "End of the text"


class Kind(StrEnum):
    """What a question asks for."""

    PASSKEY = "passkey"
    """One number, at a depth that the caller chooses."""
    SINGLE = "niah_single"
    """One number that nothing else in the text resembles."""
    MULTIKEY = "niah_multikey"
    """One number among many of the same sort that belong to other keys."""
    MULTIVALUE = "niah_multivalue"
    """All numbers of one key."""
    MULTIQUERY = "niah_multiquery"
    """The numbers of several keys in one answer."""
    TRACKING = "vt"
    """All variables that a value was handed on to."""
    COMMON_WORDS = "cwe"
    """The words of a list that occur much more often than the others."""
    FREQUENT_WORDS = "fwe"
    """The most frequent words of no language."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a context.

    Attributes:
        kind: Of task.
        text: The question.
        answer_prefix: What the answer begins with, so that what is asked for follows.
        expected: Strings that a full answer holds.
        depths: Where in the context the answer stands, from 0 (start) to 1 (end), by
            needle; empty where it is spread over the whole context.
    """

    kind: Kind
    text: str
    answer_prefix: str
    expected: tuple[str, ...]
    depths: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A context and what is asked about it.

    Attributes:
        context: The text, without the question.
        context_tokens: Its length, as the caller's tokenizer counts it.
        questions: Independent of each other.
    """

    context: str
    context_tokens: int
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in two parts.

    Attributes:
        prefix: The same text for all questions of a context.
        branch: The rest, up to where the model goes on; it begins with a line break.
    """

    prefix: str
    branch: str

    def token_ids(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], list[int]]:
        """Return the ids of both parts, tokenised apart from each other."""
        first, second = (
            list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in (self.prefix, self.branch)
        )
        return first, second


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase, context: str, question: str, answer_prefix: str
) -> Prompt:
    """Put a question as one turn of a chat, and begin the answer.

    Args:
        tokenizer: With a chat template. The text that it makes holds the special
            tokens already, so none is added when it is tokenised.
        context: Of a :class:`Sample`.
        question: The text of one of its questions.
        answer_prefix: The beginning of the answer.

    Raises:
        ValueError: There is no chat template, or it changes or repeats a user's text.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "hashattn: a question in a chat was asked for, but the tokenizer has no "
            "chat template. Use an instruction-tuned model."
        )
    prefix = f"{_INTRODUCTION}\n\n{context}\n\n{_END}"
    whole = str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{prefix}\n\n{question}"}],
            tokenize=False,
            add_generation_prompt=True,
        )
    )
    before, seam, after = whole.partition(prefix)
    if not seam or prefix in after or not after.startswith(f"\n\n{question}"):
        raise ValueError(
            "hashattn: the tokenizer's chat template changes or repeats the user's "
            "text, so questions cannot share a prefix. Use another chat template."
        )
    return Prompt(before + prefix, after + answer_prefix)


def token_counter(tokenizer: PreTrainedTokenizerBase) -> CountTokens:
    """Return a function that counts a text's tokens, without special ones."""

    def count(text: str) -> int:
        found = tokenizer(text, add_special_tokens=False, verbose=False)
        return len(found["input_ids"])

    return count


def longest_text(
    write: Callable[[int], str], most: int, tokens: int, count_tokens: CountTokens
) -> tuple[int, str, int]:
    """Find how much of a text fits.

    Args:
        write: The text with so many parts; more parts make more tokens.
        most: Parts that there are.
        tokens: Of the text, at most.
        count_tokens: Of the model's tokenizer.

    Returns:
        The number of parts, the text and its tokens.

    Raises:
        ValueError: The best text is more than 2 % shorter, or does not fit at all.
    """
    best, low, high = (0, "", 0), 0, most
    while low <= high:
        parts = (low + high) // 2
        text = write(parts)
        found = count_tokens(text)
        if found <= tokens:
            best, low = (parts, text, found), parts + 1
        else:
            high = parts - 1
    if best[2] < 0.98 * tokens:
        bare = count_tokens(write(0))
        problem = (
            f"what is asked about takes {bare:,} tokens by itself. Ask for more tokens "
            "or for less in them"
            if bare > 0.98 * tokens
            else f"{count_tokens(write(most)):,} tokens is all the text that there is, "
            "or it cannot be cut to length. Give more text or ask for fewer tokens"
        )
        raise ValueError(
            f"hashattn: a context of {tokens:,} tokens was asked for; {problem}."
        )
    return best
