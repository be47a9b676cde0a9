# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Answers in place of a model's: one per intent, worded differently each time.

Judges know an answer by its wording or by what it is about. So it matters how much
answers to neighbouring intents have in common: nothing, or two sentences of three.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter

import numpy as np

from benchmarks.vectorq.datasets import Ids
from benchmarks.vectorq.quality_streams import Stream

_WORD = re.compile(r"[a-z]{3,}")
_SUBJECT_WORDS = 4
_STEPS_PER_ANSWER = 3
_SHARED_STEPS = 2

_OPENINGS = (
    *("", "Sure! ", "Of course. ", "Certainly! ", "Absolutely: ", "Great question! "),
    *("Happy to help! ", "No problem. ", "Thanks for asking! ", "Okay, "),
)
_STEPS = (
    "Open the menu at the top left and choose the second entry",
    "A form is sent to you by post, sign it and send it back",
    "Our staff at the counter can do that while you wait",
    "Restart the phone and install the newest version first",
    "It is free of charge for members and for students",
    "Compare the weather forecast before you decide",
    "Keep the receipt, because the shop will want to see it",
    "The limit is raised automatically after the first year",
    "Tell us the serial number that is printed on the back",
    "Someone from the garage calls you back in the afternoon",
    "Pay with coins or with a note, the machine gives change",
    "Take a photograph of the passport in bright daylight",
    "The music stops as soon as the battery is almost empty",
    "Ask the airline, since the luggage is handled by them",
    "Write the recipe down and let the dough rest overnight",
    "Nothing has to be done, the system repairs itself at night",
    "Switch the lamp off, wait a little and switch it on again",
    "Choose a window seat when the train is not too crowded",
    "The doctor has to confirm it in a letter to the insurer",
    "Delete the old calendar and import the new one",
    "Exchange rates are updated every morning by the bank",
    "Read the contract, the notice period is in the last part",
    "A new password is needed, and it must be a long one",
    "The parcel waits at the post office around the corner",
)


class Templates:
    """What the model would answer.

    Args:
        stream: Its questions name what an intent is about.
        alike: Whether answers to neighbouring intents share most of their sentences.
    """

    def __init__(self, stream: Stream, alike: bool) -> None:
        subjects = _subjects(stream.texts, stream.classes)
        steps = _shared_steps(stream) if alike else {}
        self._bodies = {
            intent: (_subject(words), _steps(intent, steps.get(intent, ())))
            for intent, words in subjects.items()
        }

    def answer(self, intent: int, number: int) -> str:
        """The answer to an intent, in the wording of one request."""
        chance = random.Random(number)
        subject, steps = self._bodies[intent]
        mark = chance.choice(("", "**", "*"))
        end = chance.choice((".", "!"))
        text = f"{chance.choice(_OPENINGS)}{mark}{subject}{mark}:"
        form = chance.randrange(4)
        if form == 0:
            return text + "".join(f"\n- {step}{end}" for step in steps)
        if form == 1:
            return text + "".join(
                f"\n{place}. {step}" for place, step in enumerate(steps, 1)
            )
        if form == 2:
            return f"{text}\n\n" + f"{end}\n\n".join(steps) + end
        return f"{text} " + " ".join(f"{step}." for step in steps)


def _subject(words: tuple[str, ...]) -> str:
    return f"About {' '.join(words[:2])} and {' '.join(words[2:])}"


def _steps(intent: int, shared: tuple[str, ...]) -> tuple[str, ...]:
    digest = hashlib.sha256(f"intent {intent}".encode()).digest()
    others = [step for step in _STEPS if step not in shared]
    own = random.Random(digest).sample(others, _STEPS_PER_ANSWER - len(shared))
    return (*shared, *own)


def _shared_steps(stream: Stream) -> dict[int, tuple[str, ...]]:
    """Steps that lie in the direction of an intent, so that near intents have them.

    Directions are random; they are compared with the mean question of each intent.
    """
    intents = np.unique(stream.classes)
    centres = np.stack(
        [stream.vectors[stream.classes == intent].mean(axis=0) for intent in intents]
    )
    centres -= centres.mean(axis=0)
    shape = (len(_STEPS), centres.shape[1])
    directions = np.random.default_rng(0).standard_normal(shape)
    nearest = np.argsort(-centres @ directions.T, axis=1)[:, :_SHARED_STEPS]
    return {
        int(intent): tuple(_STEPS[place] for place in sorted(places))
        for intent, places in zip(intents, nearest.tolist(), strict=True)
    }


def _subjects(texts: tuple[str, ...], classes: Ids) -> dict[int, tuple[str, ...]]:
    """The words that set the questions of each intent apart."""
    everywhere: Counter[str] = Counter()
    here: dict[int, Counter[str]] = {}
    for text, intent in zip(texts, classes.tolist(), strict=True):
        words = set(_WORD.findall(text.lower()))
        everywhere.update(words)
        here.setdefault(intent, Counter()).update(words)
    return {
        intent: tuple(
            sorted(counts, key=lambda w: (-(counts[w] ** 2) / everywhere[w], w))[
                :_SUBJECT_WORDS
            ]
        )
        for intent, counts in here.items()
    }
