# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Greedy answers while they are written, and when they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stop:
    """When an answer ends.

    Attributes:
        limit_tokens: At the latest.
        end_ids: Tokens that end it, and do not belong to it.
        decode: Makes text of an answer's tokens.
        text: Ends it where it stands behind other text; nothing in an empty one.

    Raises:
        ValueError: The limit is below one token.
    """

    limit_tokens: int
    end_ids: frozenset[int]
    decode: Callable[[Sequence[int]], str]
    text: str = "\n"

    def __post_init__(self) -> None:
        if self.limit_tokens < 1:
            raise ValueError(
                f"hashattn: answers of {self.limit_tokens} tokens were asked for; the "
                "limit must be at least 1."
            )

    def answer(self, token_ids: Sequence[int]) -> tuple[str, bool]:
        """Return the text so far, cut where it ends, and whether it ends there."""
        ended = token_ids[-1] in self.end_ids
        text = self.decode(token_ids[: len(token_ids) - ended]).lstrip()
        if self.text and self.text in text:
            return text.split(self.text)[0], True
        return text, ended or len(token_ids) >= self.limit_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one question.

    Attributes:
        token_ids: As generated, what ended it included.
        text: Cut where it ends.
    """

    token_ids: tuple[int, ...]
    text: str


class Draft:
    """An answer while it is written.

    Args:
        question_tokens: Of its question.
        stop: When it ends.
    """

    def __init__(self, question_tokens: int, stop: Stop) -> None:
        self._question_tokens = question_tokens
        self._stop = stop
        self.token_ids: list[int] = []
        self.text = ""
        self.ended = False

    @property
    def place(self) -> int:
        """Of the newest token in its branch."""
        return self._question_tokens + len(self.token_ids) - 1

    def add(self, token_id: int) -> None:
        """Write one more token."""
        self.token_ids.append(token_id)
        self.text, self.ended = self._stop.answer(self.token_ids)
