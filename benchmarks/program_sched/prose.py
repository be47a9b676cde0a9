# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Plain English of a chosen length, made from a word list and a seed.

The words are common enough to be one token each in usual BPE vocabularies, so
that the number of words and punctuation marks is the number of tokens (checked
within a few percent against the SmolLM2 tokenizer).
"""

import json
from random import Random
from typing import Literal

Kind = Literal["chat", "tools", "tree"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ADJECTIVES = _words(
    "small old quiet bright heavy narrow early late local busy careful simple strange "
    "empty fresh warm distant steady broken clean"
)
_NOUNS = _words(
    "bridge garden market river station teacher engine library harbor kitchen letter "
    "valley doctor farmer village window report museum camera forest island captain "
    "student factory theater school hospital mountain journal clock"
)
_VERBS = _words(
    "found carried opened painted followed measured repaired visited crossed watched "
    "described reached cleaned moved studied counted copied planned built tested"
)
_TIMES = _words(
    "today yesterday again twice together slowly quickly early later outside nearby "
    "often"
)
_LINKS = _words("because while after before until although")

_SYSTEM_TEXT: dict[Kind, str] = {
    "chat": (
        "You are the assistant of a town information desk. Visitors ask about places, "
        "people, opening hours and the history of the town. Answer in complete "
        "sentences, keep a friendly tone and use the facts that the visitor gave you "
        "earlier in the conversation. When a fact is missing, say that it is missing "
        "and ask one short question about it. Do not invent prices, names or dates. "
        "Use plain text without tables, headings or lists unless the visitor asks for "
        "them, and finish every answer with what the visitor could do next."
    ),
    "tools": (
        "You are an agent that works through a task by calling tools. At every turn "
        "write one line of reasoning and then one tool call as a JSON object with the "
        "keys name and arguments. The observation comes back in the next message. Stop "
        "when the task is done and then write the final answer. Available tools: "
    ),
    "tree": (
        "You explore a question as a search tree. Each message asks you either to "
        "propose one next step from the present state, or to judge the steps that were "
        "proposed. A proposal is one or two sentences that name the step, the reason "
        "for it and the evidence that it needs. A judgement compares all proposals, "
        "names the most promising one and says what is still unknown. Never repeat a "
        "proposal that is already part of the state, and keep every claim tied to the "
        "text that you were shown."
    ),
}

_TOOLS = (
    ("find_place", "Find a place by name.", ("name", "district")),
    ("read_page", "Read one page of a stored document.", ("document", "page")),
    ("list_orders", "List the open orders of a customer.", ("customer", "status")),
    ("change_order", "Change one field of an order.", ("order", "field", "value")),
    ("send_note", "Send a short note to a person.", ("person", "text")),
)


def system_prompt(kind: Kind) -> str:
    """Return the system prompt that all programs of one kind share."""
    if kind != "tools":
        return _SYSTEM_TEXT[kind]
    schemas = [
        {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {field: {"type": "string"} for field in fields},
                "required": list(fields),
            },
        }
        for name, description, fields in _TOOLS
    ]
    return _SYSTEM_TEXT[kind] + json.dumps(schemas)


def sentences(rng: Random, tokens: int) -> str:
    """Return English text of about `tokens` tokens (at least one word)."""
    words: list[str] = []
    left = max(tokens, 1)
    while left > 0:
        sentence = _sentence(rng)[: max(left - 1, 1)]
        left -= len(sentence) + 1
        words.append(" ".join(sentence).capitalize() + ".")
    return " ".join(words)


def _sentence(rng: Random) -> list[str]:
    words = _clause(rng)
    if rng.random() < 0.6:
        words += [rng.choice(_LINKS), *_clause(rng)]
    return words


def _clause(rng: Random) -> list[str]:
    clause = ["the", rng.choice(_ADJECTIVES), rng.choice(_NOUNS), rng.choice(_VERBS)]
    clause += ["the", rng.choice(_NOUNS)]
    if rng.random() < 0.5:
        clause.append(rng.choice(_TIMES))
    return clause
