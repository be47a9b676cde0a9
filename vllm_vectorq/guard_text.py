# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Text as the lexical guards see it: one spelling for what looks the same."""

from __future__ import annotations

import re
import unicodedata

from .guard_names import LANGUAGES

# First code point of each run of ten decimal digits that NFKC leaves alone.
_ZEROS = (
    *(0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6),
    *(0x0C66, 0x0CE6, 0x0D66, 0x0DE6, 0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090),
    *(0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40),
    *(0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0),
)
# Soft hyphen, zero-width, bidi controls, variation selectors, tag characters.
_INVISIBLE = (
    *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x180E, 0xFEFF),
    *range(0x200B, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFE00, 0xFE10),
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE0080),
    *range(0xE0100, 0xE01F0),
)
# Before NFKC, which would turn the numero sign into the word "No".
_BEFORE = dict.fromkeys(_INVISIBLE, "") | {0x2116: "#", 0x2044: "/"}
_AFTER = (
    {zero + digit: str(digit) for zero in _ZEROS for digit in range(10)}
    | dict.fromkeys(map(ord, "‘’ʼ‛′´ˈ՚ꞌ"), "'")  # noqa: RUF001
    | dict.fromkeys(map(ord, "“”„‟«»″"), '"')
    | dict.fromkeys(map(ord, "‐‑‒–—―−﹘"), "-")  # noqa: RUF001
    | {0x066B: ".", 0x066C: ",", 0x066A: "%", 0x2044: "/", 0x061F: "?", 0x060C: ","}
    | {0x3002: ". ", 0x3001: ", ", 0x00BF: "", 0x00A1: "", 0x0640: ""}
    | dict.fromkeys(range(0x0300, 0x0370), "")
)
_THOUSANDS_SPACE = re.compile(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))")
_SCRIPTS = (
    (0x0250, "latin"),
    (0x0400, "greek"),
    (0x0530, "cyrillic"),
    (0x0590, "armenian"),
    (0x0600, "hebrew"),
    (0x0780, "arabic"),
    (0x0E00, "indic"),
    (0x0E80, "thai"),
    (0x1100, "other"),
    (0x1200, "hangul"),
    (0x2E80, "other"),
    (0xA000, "han"),
    (0xAC00, "other"),
    (0xD7B0, "hangul"),
    (0xF900, "other"),
    (0xFB00, "han"),
    (0x20000, "other"),
    (0x32000, "han"),
)
_SCRIPT_SAMPLE_CHARS = 2000
_QUOTED = re.compile(r'"([^"\n]{1,200})"|`([^`\n]{1,200})`')
_CODE_MARKS = (
    *("==", "::", "</", "()", "();", "{", "};"),
    *("!=", "&&", "||", "+=", "[]", ");", "/>"),
)
_OPERATOR = re.compile(
    r"(?<=[\w)]) ?((?:(?<!\*)\*(?!\*)|[\^+=<>×÷√≤≥≠])+) ?(?=[\w(.\-])"  # noqa: RUF001
    r"|(?<=[\d)]) ([-/]) (?=[\d(])"
)


def clean(text: str) -> str:
    """Fold what looks alike: NFKC, no marks, ASCII digits, quotes and dashes."""
    if text.isascii():
        return text
    text = _THOUSANDS_SPACE.sub("", text).translate(_BEFORE)
    folded = unicodedata.normalize("NFKD", text).translate(_AFTER)
    return unicodedata.normalize("NFC", folded)


def script_of(text: str) -> str:
    """Name of the script that most letters of the text's beginning belong to."""
    if text.isascii():
        return "latin"
    counts: dict[str, int] = {}
    for character in text[:_SCRIPT_SAMPLE_CHARS]:
        if character.isalpha():
            name = _script(character)
            counts[name] = counts.get(name, 0) + 1
    return max(sorted(counts), key=counts.__getitem__, default="latin")


def mixes_scripts(word: str) -> bool:
    """Whether Latin letters are mixed with lookalikes from Greek or Cyrillic."""
    names = {_script(character) for character in set(word) if character.isalpha()}
    return "latin" in names and bool(names & {"greek", "cyrillic"})


def _script(letter: str) -> str:
    code = ord(letter)
    return next((name for end, name in _SCRIPTS if code < end), "other")


def code_of(text: str) -> tuple[frozenset[str], frozenset[str], str]:
    """Code, quoted strings and operators of a text."""
    blocks: set[str] = set()
    if "```" in text:
        parts = text.split("```")
        blocks = {"".join(part.split()) for part in parts[1::2]}
        text = "\n".join(parts[::2])
    for line in text.split("\n"):
        if any(mark in line for mark in _CODE_MARKS):
            blocks.add("".join(line.split()))
    quotes = {
        " ".join((quoted or inline).casefold().split())
        for quoted, inline in _QUOTED.findall(text)
    }
    operators = "".join("".join(found) for found in _OPERATOR.findall(text))
    return frozenset(blocks), frozenset(quotes), operators


def language_of(found: frozenset[str]) -> str:
    """Language that most of these words point to; empty when unsure."""
    counts = {name: len(found & members) for name, members in LANGUAGES.items()}
    first, second = sorted(counts.values(), reverse=True)[:2]
    if first < 2 or first == second:
        return ""
    return max(counts, key=counts.__getitem__)
