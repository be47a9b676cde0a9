# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A stream through a real cache, whose judges have to find out which answers agree.

The model is replaced by templates: every intent has one answer, worded and marked up
differently each time. The embedding of questions is looked up. All else is the
product's, learning in step with the requests as in a replay.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections import Counter
from typing import Any
from unittest.mock import patch

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.vectorq.datasets import Ids
from benchmarks.vectorq.quality_outcome import measured
from benchmarks.vectorq.quality_streams import Stream
from vllm_vectorq import service as services
from vllm_vectorq.config import VectorQConfig
from vllm_vectorq.embedding_model import EmbeddingModel
from vllm_vectorq.metrics import process_metrics
from vllm_vectorq.record import Vector
from vllm_vectorq.replay import Outcome
from vllm_vectorq.request import Answer, CacheRequest, Hit, Partition

_LOGGER = logging.getLogger("benchmarks.vectorq")
_PARTITION = Partition(b"answers of templates".ljust(32, b"."), {"model": "benchmark"})
_WORD = re.compile(r"[a-z]{3,}")
_PREFIX, _TOTAL = "vllm:vectorq_", "_total"
_COUNTED = frozenset(f"{_PREFIX}{n}{_TOTAL}" for n in ("verdicts", "explorations"))
_SUBJECT_WORDS = 4
_STEPS_PER_ANSWER = 3

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
    """

    def __init__(self, stream: Stream) -> None:
        self._bodies = {
            intent: _body(intent, words)
            for intent, words in _subjects(stream.texts, stream.classes).items()
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


def _body(intent: int, words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    digest = hashlib.sha256(f"intent {intent}".encode()).digest()
    steps = random.Random(digest).sample(_STEPS, _STEPS_PER_ANSWER)
    return f"About {' '.join(words[:2])} and {' '.join(words[2:])}", tuple(steps)


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


class _TextTable:
    """Vectors of known texts; the model is asked for others, once each."""

    def __init__(self, model: EmbeddingModel, stream: Stream) -> None:
        self._model = model
        self._vectors = dict(zip(stream.texts, stream.vectors, strict=True))
        self.fingerprint = model.fingerprint
        self.dimensions = stream.vectors.shape[1]

    def embed(self, texts: list[str]) -> Vector:
        """Unit vectors, float32 [texts, dimensions]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._model.embed(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])

    def fits(self, text: str) -> bool:
        """Known questions are taken as they are."""
        return text in self._vectors or self._model.fits(text)


def serve(
    stream: Stream, model: EmbeddingModel, delta: float, seed: int
) -> dict[str, Any]:
    """Run a stream through a cache.

    Returns:
        What a replay measures, what the judges said, and how many requests were exact
        repeats.
    """
    config = VectorQConfig(enabled=True, store="memory", delta=delta, log_interval_s=0)
    table = _TextTable(model, stream)
    with patch.object(services, "_embedding_model", lambda config: table):
        service = services.Service(config, "benchmark", _LOGGER)
    before = _verdicts()
    random.seed(seed)
    try:
        # Learning keeps step, so what is tuned does not depend on the clock.
        service.tuning.close()
        outcome, exact = _serve(service, stream)
        found = measured(outcome)
        state = service.working_set.partition(_PARTITION.digest)
        found["entries"] = len(service.working_set.entries)
        found["indexed"] = len(state.index) if state and state.index else 0
        found["faults"] = service.cache.stats()["faults"]
    finally:
        service.close()
    after = _verdicts()
    found["verdicts"] = {
        name: count - before.get(name, 0) for name, count in sorted(after.items())
    }
    return {**found, "exact_repeats": exact}


def _serve(service: services.Service, stream: Stream) -> tuple[Outcome, int]:
    n = len(stream.texts)
    templates = Templates(stream)
    intent_of: dict[str, int] = {}
    outcome = Outcome(
        np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.zeros(n, np.float32)
    )
    exact = 0
    for i, (text, intent) in enumerate(
        zip(stream.texts, stream.classes.tolist(), strict=True)
    ):
        key = hashlib.sha256(text.encode()).digest()
        hit, ticket = service.cache.lookup_sync(
            CacheRequest(_PARTITION, key, text, "semantic")
        )
        if hit is not None:
            _note(outcome, i, hit, intent_of[hit.answer.text] == intent)
            exact += hit.stage == "exact"
        elif ticket is not None:
            answer = templates.answer(intent, i)
            intent_of[answer] = intent
            service.cache.complete(ticket, Answer(answer, (1,), None, 1.0))
            service.labeller.flush(timeout_s=60.0)
        state = service.working_set.partition(_PARTITION.digest)
        if state is not None:
            state.policy.tune()
    return outcome, exact


def _note(outcome: Outcome, i: int, hit: Hit, right: bool) -> None:
    outcome.hit[i] = True
    outcome.wrong[i] = not right
    outcome.probability[i] = hit.probability


def _verdicts() -> dict[str, int]:
    """What judges and labels said in this process so far."""
    registry = CollectorRegistry()
    process_metrics().register(registry)
    return {
        " ".join((sample.name[len(_PREFIX) : -len(_TOTAL)], *sample.labels.values())): (
            int(sample.value)
        )
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name in _COUNTED
    }
