# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Judge that reads both answers together: a cross-encoder, given by the operator.

Two kinds of model serve:

* natural language inference (labels entailment, neutral, contradiction): two answers
  are equivalent if each entails the other, and different if one contradicts the other.
  Each answer is read after the question, as in Kuhn, Gal and Farquhar, "Semantic
  uncertainty" (2023), so that "Paris." is a statement too.
* one output: the probability that two texts say the same.

No model comes with this package and none was measured: the tests check the mechanics
with random weights. Measure a model (see :mod:`.judge_error`) before relying on it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .judge import Verdict

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_INFERENCE_LABELS = {"entailment", "neutral", "contradiction"}


class CrossEncoderJudge:
    """Asks a cross-encoder in both orders; the model loads with the first question.

    Args:
        model: Directory with the model, or its name on the Hugging Face hub.
        sure_at: Probability from which the model is believed, in (0.5, 1].
        device: Where it runs, as PyTorch names it.

    Raises:
        ValueError: ``sure_at`` is out of range.
    """

    name = "cross_encoder"

    def __init__(self, model: str, sure_at: float = 0.9, device: str = "cpu") -> None:
        if not 0.5 < sure_at <= 1.0:
            raise ValueError(
                f"a cross-encoder judge was asked for with sure_at={sure_at}; choose a "
                "probability above 0.5 and up to 1."
            )
        self._model = model
        self._sure_at = sure_at
        self._device = device
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def judge(
        self, prompt: str, answer: str, other_prompt: str, other_answer: str
    ) -> Verdict:
        """Sure when both orders are, or when one of them sees a contradiction.

        Raises:
            ValueError: the model has neither kind of output; raised by each call.
        """
        # One at a time: tokenizers refuse to be shared between threads.
        with self._lock:
            loaded = self._load()
            probabilities = loaded.probabilities(prompt, answer, other_answer)
        if probabilities is None:
            return Verdict(None, 0.0, self.name)
        same, different = probabilities
        if same >= self._sure_at and same > different:
            return Verdict(True, same, self.name)
        if different >= self._sure_at:
            return Verdict(False, different, self.name)
        return Verdict(None, 0.0, self.name)

    def _load(self) -> _Loaded:
        if self._loaded is None:
            from sentence_transformers import CrossEncoder

            self._loaded = _Loaded(CrossEncoder(self._model, device=self._device))
        return self._loaded


class _Loaded:
    """A loaded cross-encoder and what its outputs mean."""

    def __init__(self, encoder: CrossEncoder) -> None:
        self._encoder = encoder
        model: Any = encoder.model
        names = {int(i): str(name).lower() for i, name in model.config.id2label.items()}
        self._index = {name: i for i, name in names.items()}
        self._infers = set(self._index) == _INFERENCE_LABELS
        if not self._infers and len(names) != 1:
            raise ValueError(
                f"the cross-encoder judge was given a model with the labels {names}; "
                "it needs entailment, neutral and contradiction, or a single output "
                "for the probability that two texts say the same."
            )
        self._max_tokens = _max_tokens(encoder, model.config)

    def probabilities(
        self, prompt: str, answer: str, other_answer: str
    ) -> tuple[float, float] | None:
        """Probabilities of same and of different; None if the texts would be cut."""
        one, other = answer, other_answer
        if self._infers:
            one, other = f"{prompt} {answer}", f"{prompt} {other_answer}"
        pairs = [(one, other), (other, one)]
        tokenize = self._encoder.tokenizer
        for first, second in pairs:
            tokens = tokenize(first, second, truncation=False, verbose=False)
            if len(tokens["input_ids"]) > self._max_tokens:
                return None
        logits = self._logits(pairs)
        if not self._infers:
            yes = 1.0 / (1.0 + np.exp(-logits.reshape(2)))
            return float(yes.min()), float(1.0 - yes.max())
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = powers / powers.sum(axis=1, keepdims=True)
        return (
            float(shares[:, self._index["entailment"]].min()),
            float(shares[:, self._index["contradiction"]].max()),
        )

    def _logits(self, pairs: list[tuple[str, str]]) -> NDArray[np.float64]:
        """Raw outputs, float64 [pairs, labels]; [pairs] with a single output."""
        from torch.nn import Identity

        outputs = self._encoder.predict(
            pairs, activation_fn=Identity(), show_progress_bar=False
        )
        return np.asarray(outputs, dtype=np.float64)


def _max_tokens(encoder: CrossEncoder, config: object) -> int:
    """Longest pair that the model reads whole, in tokens."""
    limits: list[int | None] = [
        encoder.tokenizer.model_max_length,
        getattr(config, "max_position_embeddings", None),
        getattr(encoder, "max_seq_length", None),
    ]
    return min(limit for limit in limits if limit is not None)
