# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Whether two answers are equivalent, and the judge that only compares their words.

A label answers one question: would the user who asked the first prompt have been
equally well served by the answer to the second? Judges run after the answer was sent,
in worker threads. :class:`ChainJudge` asks them from cheap to expensive.

:class:`EqualityJudge` needs no model. It removes what does not change an answer: case,
prose punctuation, markdown, list markers, an opening such as "Sure!", and the way
numbers are written. It is sure in two directions only: the rest is equal, or the rest
is equal but for its numbers (or for the yes or no it opens with). Code keeps its case
and punctuation. A number that can be read in two ways ("1.000") decides nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says about two answers.

    Attributes:
        equivalent: None when the judge cannot tell.
        confidence: The judge's own estimate in [0, 1] that it is right, 0 without a
            verdict. Not comparable between judges: :mod:`.judge_error` measures that.
        source: Name of the judge that decided.
    """

    equivalent: bool | None
    confidence: float
    source: str


class Judge(Protocol):
    """Compares two answers; called from several threads at once, and may block.

    Attributes:
        name: Source of its verdicts.
    """

    name: str

    def judge(
        self, prompt: str, answer: str, other_prompt: str, other_answer: str
    ) -> Verdict:
        """Judge whether ``other_answer`` would have served ``prompt`` as well.

        Args:
            prompt: What the user asked.
            answer: What the model answered to it.
            other_prompt: Another request.
            other_answer: The answer to that one.
        """
        ...


class ChainJudge:
    """Asks judges in turn until one can tell.

    A judge that raises ends the chain: its fault must be seen, not hidden by calls
    of a more expensive one.

    Args:
        judges: From cheap to expensive.

    Raises:
        ValueError: there is no judge, or two have the same name.
    """

    name = "chain"

    def __init__(self, judges: Sequence[Judge]) -> None:
        names = [judge.name for judge in judges]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"a chain of judges was asked for with the names {names}; it needs at "
                "least one judge, and their names must differ, because errors are "
                "measured per name."
            )
        self._judges = tuple(judges)

    def judge(
        self, prompt: str, answer: str, other_prompt: str, other_answer: str
    ) -> Verdict:
        """The first verdict that says something."""
        for judge in self._judges:
            verdict = judge.judge(prompt, answer, other_prompt, other_answer)
            if verdict.equivalent is not None:
                return verdict
        return Verdict(None, 0.0, self.name)


class EqualityJudge:
    """Compares the words; costs microseconds per answer."""

    name = "equality"

    def judge(
        self, prompt: str, answer: str, other_prompt: str, other_answer: str
    ) -> Verdict:
        """Equal, or equal but for numbers or yes and no; otherwise it cannot tell."""
        if answer == other_answer:
            return Verdict(True, 1.0, self.name)
        one, other = read(answer), read(other_answer)
        if one.tokens and one.tokens == other.tokens:
            return Verdict(True, 0.99, self.name)
        opposed = {one.polarity, other.polarity} == {"yes", "no"}
        if opposed or _differ_in_numbers(one.tokens, other.tokens):
            return Verdict(False, 0.99, self.name)
        return Verdict(None, 0.0, self.name)


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says, apart from how it is written.

    Attributes:
        tokens: Words, numbers, operators, and pieces of code.
        polarity: ``yes`` or ``no`` if it opens with one, else None.
    """

    tokens: tuple[str, ...]
    polarity: str | None


# Stands for a piece of code while the prose around it is read.
_CODE_MARK = "\0"
_CODE = re.compile(r"```[^\n`]*\n(.*?)```|`([^`\n]+)`", re.DOTALL)
_SUPERSCRIPT = re.compile("([\u00b9\u00b2\u00b3\u2070\u2074-\u2079]+)")
_THIN_GROUP = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_LINE_PREFIX = re.compile(r"^[ \t]*(?:#{1,6}|>)[ \t]+", re.MULTILINE)
_LIST_MARKER = re.compile(
    r"^[ \t]*(?:[-*+\u2022]|(\d{1,3})[.)])[ \t]+", re.MULTILINE | re.ASCII
)
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,3}(?=[^\s*])([^*\n]+)(?<=\S)\*{1,3}(?![\w*])")
_OPENING = re.compile(
    r"\s*(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright|"
    r"no problem|no worries|(?:great|good|excellent) question|thanks for asking|"
    r"(?:(?:i'd be|i am|i'm) )?happy to help)[ \t]*[!.,:;\u2013\u2014]+\s*)+"
)
_POLARITY = re.compile(
    r"\s*(?:(yes|yeah|yep|yup)|no|nope|nah)"
    r"(?=[ \t]*(?:[,;:!\n\u2013\u2014]|\.(?!\s*\d)|-+ |$))"
)
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")
_RANGE_DASH = re.compile(r"(?<=\d)[ ]?[\u2012-\u2015][ ]?(?=\d)")
_PLAIN_MARKS = str.maketrans({"\u2010": "-", "\u2212": "-", "\u2019": "'"})
# A sign belongs to a number unless something stands before it ("3-4" is a range).
_TOKEN = re.compile(r"\0|(?:(?<![\w)\]])-)?\d+(?:[.,]\d+)*|[^\W\d_]\w*(?:'\w+)*|\S")
# Punctuation that changes meaning; the rest of Unicode's punctuation is dropped.
_OPERATORS = frozenset("%&*/@#\\[]{}_-")
_SAME_WORD = {
    **{"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
    **{"eleven": "11", "twelve": "12"},
}


def normalised(answer: str) -> str:
    """The same text for all answers that :class:`EqualityJudge` finds equal."""
    # The mark cannot occur in a token, so no two lists of tokens give one text.
    return _CODE_MARK.join(read(answer).tokens) or answer


def read(answer: str) -> Reading:
    """Split an answer into what it says; linear in its length."""
    pieces: list[str] = []

    def set_aside(match: re.Match[str]) -> str:
        lines = (match[1] or match[2]).strip("\n").splitlines()
        pieces.append("`" + "\n".join(line.rstrip() for line in lines))
        return f" {_CODE_MARK} "

    text = _CODE.sub(set_aside, answer.replace(_CODE_MARK, ""))
    text = _without_markdown(_SUPERSCRIPT.sub(r"^\1", _THIN_GROUP.sub("", text)))
    text = unicodedata.normalize("NFKC", text).casefold().translate(_PLAIN_MARKS)
    opening = _OPENING.match(text)
    if opening and text[opening.end() :].strip():
        text = text[opening.end() :]
    polar = _POLARITY.match(text)
    polarity = None if polar is None else ("yes" if polar[1] else "no")
    if polar is not None:
        text = f"{polarity} {text[polar.end() :]}"
    text = _HYPHEN.sub(" ", _RANGE_DASH.sub("-", text))
    code = iter(pieces)
    tokens = (
        next(code) if token == _CODE_MARK else _canonical(token)
        for token in _TOKEN.findall(text)
        if not _is_prose_mark(token)
    )
    return Reading(tuple(tokens), polarity)


def _without_markdown(text: str) -> str:
    text = _EMPHASIS.sub(r"\1", _LINE_PREFIX.sub("", text))
    # One marked line is no list: "7. That is all" may answer with a number.
    if len(_LIST_MARKER.findall(text)) < 2:
        return text
    expected = 1

    def unmark(match: re.Match[str]) -> str:
        nonlocal expected
        if match[1] is None:
            return ""
        if int(match[1]) not in (1, expected):
            return match[0]
        expected = int(match[1]) + 1
        return ""

    return _LIST_MARKER.sub(unmark, text)


def _is_prose_mark(token: str) -> bool:
    return (
        len(token) == 1
        and token not in _OPERATORS
        and unicodedata.category(token).startswith("P")
    )


# -- numbers -------------------------------------------------------------------

_GROUPED = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?:\.\d+)?")
# Thousands or a fraction, depending on the language.
_AMBIGUOUS = re.compile(r"-?[1-9]\d{0,2}\.\d{3}")
_PLAIN = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?", re.ASCII)
_MAX_DIGITS = 24


def _canonical(token: str) -> str:
    if not _is_number(token):
        return _SAME_WORD.get(token, token)
    if not token.isascii():
        token = "".join(str(unicodedata.decimal(char, char)) for char in token)
    if _GROUPED.fullmatch(token):
        token = token.replace(",", "")
    whole, dot, fraction = token.partition(".")
    if dot and not fraction.strip("0") and not _AMBIGUOUS.fullmatch(token):
        return whole
    return token


def _is_number(token: str) -> bool:
    return token.removeprefix("-")[:1].isdecimal()


def _differ_in_numbers(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether only numbers differ, and one of them for certain."""
    if len(one) != len(other):
        return False
    pairs = [(x, y) for x, y in zip(one, other, strict=True) if x != y]
    if not all(_is_number(x) and _is_number(y) for x, y in pairs):
        return False
    # The same numbers in another order may be an unordered list.
    return any(_clash(x, y) for x, y in pairs) and sorted(one) != sorted(other)


def _clash(one: str, other: str) -> bool:
    """Whether two different numerals differ however they are read and rounded."""
    if re.sub(r"\d", "0", one) == re.sub(r"\d", "0", other):
        return True
    if not (_is_readable(one) and _is_readable(other)):
        return False
    x, y = Decimal(one), Decimal(other)
    decimals = min(len(numeral.partition(".")[2]) for numeral in (one, other))
    return 2 * abs(x - y) > Decimal(1).scaleb(-decimals)


def _is_readable(numeral: str) -> bool:
    return (
        len(numeral) <= _MAX_DIGITS
        and _PLAIN.fullmatch(numeral) is not None
        and _AMBIGUOUS.fullmatch(numeral) is None
    )
