# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A log of requests with known answers, to try policies on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cli_error import CliError
from .judge import normalised

_FORM = 'write {"text": "...", "class": "..."} or {"text": "...", "answer": "..."}'


@dataclass(frozen=True, slots=True)
class RequestLog:
    """Requests in the order of their arrival.

    Attributes:
        texts: What was asked.
        classes: Requests with one number have equivalent answers, int64 [n].
    """

    texts: list[str]
    classes: NDArray[np.int64]

    def only(self, kept: list[int]) -> RequestLog:
        """The requests at these places."""
        return RequestLog([self.texts[place] for place in kept], self.classes[kept])


def read_log(path: Path) -> RequestLog:
    """Read a file with one JSON object a line.

    Args:
        path: Each line has ``text`` and either ``class``, a string or an integer, or
            ``answer``, whose wording tells the class.

    Raises:
        CliError: A line cannot be used; the message has its number.
    """
    texts: list[str] = []
    numbers: dict[str | int, int] = {}
    classes: list[int] = []
    kind = ""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for line_number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = _object(line)
                text = _text(found, "text")
                kind = kind or _kind(found)
                label = _label(found, kind)
            except ValueError as error:
                raise CliError(f"{path}, line {line_number}: {error}.") from error
            texts.append(text)
            classes.append(numbers.setdefault(label, len(numbers)))
    if not texts:
        raise CliError(f"{path} holds no requests: {_FORM}, one a line.")
    return RequestLog(texts, np.array(classes, dtype=np.int64))


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}); {_FORM}") from error
    if not isinstance(found, dict):
        raise ValueError(f"is not an object; {_FORM}")
    return found


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"has no {name}; {_FORM}")
    return value


def _kind(found: dict[str, Any]) -> str:
    if ("class" in found) == ("answer" in found):
        raise ValueError(f"needs either a class or an answer; {_FORM}")
    return "class" if "class" in found else "answer"


def _label(found: dict[str, Any], kind: str) -> str | int:
    if _kind(found) != kind:
        raise ValueError(f"has no {kind} as the lines before it have")
    if kind == "answer":
        return normalised(_text(found, "answer"))
    value = found["class"]
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"has the class {value!r}; give a string or an integer")
    return value
