# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Tokens of a request and what each of them may mean on its own."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from .guard_names import MONTH_NAMES
from .guard_numbers import Quantity, read_written
from .guard_text import mixes_scripts
from .guard_vocabulary import (
    AUX,
    BOUNDARY,
    BREAK,
    CAPITAL,
    CODE,
    CONTENT,
    END,
    NEGATOR,
    NUMBER,
    PRONOUN,
    QUESTION,
    STRONG_CAPITAL,
    UNIT,
    look_up,
)
from .guard_words import CONTRACTED_NEGATORS, COURTESIES

_CACHED_CHUNK_CHARS = 40
_CHUNK_CACHE = 1 << 14
_OPAQUE_CHARS = 200
_CLOSING = ".,;:!?\"')]}>*`~…"
_OPENING = "\"'([{<*`~#@&…"
_WORDS = re.compile(r"[^\W\d_]+|\d+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_DOTTED = re.compile(r"(?:[A-Za-z]\.){1,5}[A-Za-z]")
_EXTENSIONS = (
    "pdf docx? xlsx? pptx? csv txt md py js ts json xml html? ya?ml png jpe?g gif svg "
    "mp3 mp4 mov zip exe dmg java cpp sql log ini toml com org net io co gov edu"
)
_FILE = re.compile(r"[\w-]{0,60}\.(?:" + "|".join(_EXTENSIONS.split()) + ")")
_HEX = re.compile(r"(?=.*\d)(?=.*[a-f])[0-9a-f]{7,}")
_ISO_DATE = re.compile(r"(\d{4})([-/])(0?[1-9]|1[0-2])\2([0-3]?\d)(?:t.{0,20})?")
_LETTERS_DIGITS = re.compile(r"[a-z]+[-_]?\d+[a-z]?|\d+[a-z]+")
_LANGUAGE_NAME = re.compile(r"[A-Za-z]{1,2}(?:\+\+|#)")
_UPPER_CODE = re.compile(r"[A-Z]{1,5}-?\d[\dA-Z-]*|\d+-[A-Z]{2,}[\dA-Z-]*")
_NEGATING_CHARACTERS = frozenset("不没沒無未別别勿")
_CLITICS = {"s": "is", "m": "am", "re": "are", "ll": "will", "d": "would", "ve": "have"}
_FUSED = {
    **{"whats": "what's", "hows": "how's", "wheres": "where's", "whos": "who's"},
    **{"whens": "when's", "im": "i'm", "ive": "i've", "youre": "you're"},
    **{"theyre": "they're", "theres": "there's", "thats": "that's"},
}


@dataclass(frozen=True, slots=True)
class Token:
    """One word, number, identifier or break of a text.

    Attributes:
        text: As written.
        word: In lower case.
        stem: What stands for its meaning; empty when it has none of its own.
        flags: Bits of :mod:`~vllm_vectorq.guard_vocabulary`.
        quantity: What it counts when it has digits.
    """

    text: str
    word: str
    stem: str
    flags: int
    quantity: Quantity | None = None


def tokens_of(text: str) -> list[Token]:
    """Tokens of a cleaned text; takes time linear in its length."""
    tokens: list[Token] = []
    for chunk in text.replace("\n", " ¶ ").split():
        if len(chunk) <= _CACHED_CHUNK_CHARS:
            tokens += _cached(chunk)
        else:
            tokens += _chunk(chunk)
    return _without_courtesies(tokens)


def _without_courtesies(tokens: list[Token]) -> list[Token]:
    """The tokens outside clauses such as "Good morning team," and "Thanks!"."""
    kept: list[Token] = []
    start = 0
    for at, token in enumerate(tokens):
        if token.flags & BOUNDARY or at + 1 == len(tokens):
            clause = tokens[start : at + 1]
            if not all(part.word in COURTESIES for part in clause):
                kept += clause
            start = at + 1
    return kept or tokens


def _chunk(chunk: str) -> tuple[Token, ...]:
    trimmed = chunk.rstrip(_CLOSING)
    ending = chunk[len(trimmed) :]
    core = trimmed.lstrip(_OPENING)
    closing = END if not {".", "!", "?"}.isdisjoint(ending) else 0
    closing |= BREAK if ending and not {",", ";", ":", ")"}.isdisjoint(ending) else 0
    found = _core(core) if core else ()
    if not found:
        return (Token(chunk, "", "", closing | (END if "¶" in chunk else BREAK)),)
    last = found[-1]
    return (*found[:-1], replace(last, flags=last.flags | closing))


_cached = lru_cache(maxsize=_CHUNK_CACHE)(_chunk)


def _core(core: str) -> tuple[Token, ...]:
    if core.isalpha():
        return _word(core)
    if core.isascii() and len(core) > _OPAQUE_CHARS:
        return (_identifier(core),)
    if "@" in core[1:-1] or "://" in core or core.lower().startswith("www."):
        return (_identifier(core),)
    if _LANGUAGE_NAME.fullmatch(core):
        return (_identifier(core),)
    if any(map(str.isdigit, core)):
        return _with_digits(core)
    if "'" in core:
        return _with_apostrophe(core)
    if _DOTTED.fullmatch(core):
        extra = STRONG_CAPITAL if core.isupper() else 0
        return (_looked_up(core.replace(".", ""), extra),)
    if _FILE.fullmatch(core) or "\\" in core or core.count("/") > 1:
        return (_identifier(core),)
    if "-" in core.strip("-") or "/" in core.strip("/"):
        return _parts(core)
    if len(core) == 1 and (look_up(core)[1] & UNIT or not core.isascii()):
        return (_looked_up(core, 0),)
    return _pieces(core)


def _parts(core: str) -> tuple[Token, ...]:
    pieces = [piece for piece in re.split(r"[-/]+", core) if piece]
    return tuple(token for piece in pieces for token in _core(piece))


def _pieces(core: str) -> tuple[Token, ...]:
    words = _WORDS.findall(core)
    if words == [core]:
        return (_identifier(core),)
    return tuple(token for word in words for token in _core(word))


def _identifier(text: str) -> Token:
    key = text.casefold().rstrip("/")
    return Token(text, key, key, CONTENT | CODE)


def _looked_up(text: str, extra: int) -> Token:
    word = "usa" if text == "US" else text.casefold()
    root, flags = look_up(word)
    return Token(text, word, root, flags | extra)


def _word(text: str) -> tuple[Token, ...]:
    if not text.isascii():
        if mixes_scripts(text):
            return (_identifier(text),)
        if _UNSPACED.search(text):
            return tuple(map(_pair, zip(text, text[1:] or text, strict=False)))
    word = text.casefold()
    if word in CONTRACTED_NEGATORS:
        return (Token(text, word[:-1] + "'t", "", NEGATOR | AUX),)
    if word in _FUSED:
        return _with_apostrophe(_FUSED[word])
    case = CAPITAL if text[0].isupper() else 0
    if text.isupper():
        case |= STRONG_CAPITAL if 2 <= len(text) <= 5 else 0
    elif text[1:] != text[1:].lower():
        case |= STRONG_CAPITAL
    return (_looked_up(text, case),)


def _pair(characters: tuple[str, str]) -> Token:
    pair = "".join(characters)
    negates = characters[0] in _NEGATING_CHARACTERS or pair in ("ない", "せん")
    return Token(pair, pair, pair, CONTENT | (NEGATOR if negates else 0))


def _with_apostrophe(core: str) -> tuple[Token, ...]:
    head, _, tail = core.rpartition("'")
    clitic = tail.casefold()
    if clitic == "t" and head[-1:] in ("n", "N"):
        return (Token(core, core.casefold(), "", NEGATOR | AUX),)
    if not head or not head.isalpha():
        return _pieces(core)
    if clitic == "clock":
        return (_looked_up("oclock", 0),)
    if clitic in _CLITICS:
        tokens = _word(head)
        if tokens[-1].flags & (PRONOUN | QUESTION):
            return (*tokens, _looked_up(_CLITICS[clitic], 0))
        return tokens
    return _word(head + tail) if tail.isalpha() else ()


def _with_digits(core: str) -> tuple[Token, ...]:
    low = core.casefold()
    if date := _ISO_DATE.fullmatch(low):
        year, _, month, day = date.groups()
        name = MONTH_NAMES[int(month) - 1]
        return (*_core(day), _looked_up(name, 0), *_core(year))
    if quantity := read_written(low):
        return (Token(core, low, str(quantity.value), NUMBER, quantity),)
    if low[0] == "v" and (quantity := read_written(low[1:])):
        return (Token(core, low, str(quantity.value), NUMBER, quantity),)
    if _is_code(core, low):
        return (replace(_identifier(core), stem=low.replace("-", "")),)
    if "'" in low and low.rpartition("'")[2] == "s":
        return _core(core[:-2])
    if low[0] == "-" or "-" in low or "/" in low:
        parts = _parts(core)
        return parts or (_identifier(core),)
    if low.startswith("+") and low[1:].isdigit():
        return (_identifier(core),)
    found = re.findall(r"[^\W\d_]+|[\d.,]*\d|_+", core)
    if len(found) == 1 or len(found) > 3:
        return (_identifier(core),)
    return tuple(t for part in found if part != core for t in _core(part.strip(".,")))


def _is_code(core: str, low: str) -> bool:
    if _UPPER_CODE.fullmatch(core) or _LETTERS_DIGITS.fullmatch(low):
        return True
    joined = low.replace("-", "").replace("_", "")
    if _HEX.fullmatch(joined) and len(joined) >= 7:
        return True
    parts = re.split(r"[-/.:_]", low)
    if len(parts) > 2 and sum(any(map(str.isdigit, part)) for part in parts) > 2:
        return True
    slashed = "/" in low and all(part.isdigit() for part in low.split("/"))
    return slashed or "_" in low or (len(low) > 15 and low.isdigit())
