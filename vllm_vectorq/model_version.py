# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which weights and adapters answer now: facts of every key, and reasons to forget.

A change gives new keys at once, so a request that was under way during the change
cannot leave its answer to the new weights.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from .compat import ModelFacts


class ModelVersion:
    """One per engine.

    Args:
        model: Facts about the model as it was started.
        forget: Called with the facts of entries that must not be served again.
    """

    def __init__(self, model: ModelFacts, forget: Callable[..., None]) -> None:
        self._model = model
        self._forget = forget
        self._weights = model.build
        self._lora_names: dict[int, str] = {}
        self._lora_versions: dict[str, str] = {}

    def facts(self, lora: Any) -> dict[str, str]:  # noqa: ANN401
        """Return the facts of a request.

        Args:
            lora: The adapter it asks for, None for the base model.
        """
        name = "" if lora is None else str(lora.lora_name)
        version = self._lora_versions.get(name, "")
        source = f"{lora.lora_int_id}:{version}:{lora.lora_path}" if name else ""
        return {
            "model": self._model.name,
            "tokenizer": self._model.tokenizer,
            "weights": self._weights,
            "lora": name,
            "lora_source": source,
        }

    def weights_changed(self, version: str | None = None) -> None:
        """Never serve an answer of other weights again.

        Args:
            version: Name of the new weights; None when they have none, and then
                nothing stored before or elsewhere is taken for theirs.
        """
        self._weights = f"{self._model.build}@{version or uuid.uuid4().hex}"
        self._forget(model=self._model.name)

    def lora_loaded(self, lora: Any) -> None:  # noqa: ANN401
        """Note an adapter; answers of an earlier one of its name are dropped."""
        name = str(lora.lora_name)
        known = name in self._lora_names.values() or name in self._lora_versions
        self._lora_names[int(lora.lora_int_id)] = name
        if known:
            self._renew(name)

    def lora_removed(self, lora_id: int) -> None:
        """Drop the answers of an adapter that is gone."""
        name = self._lora_names.pop(lora_id, None)
        if name is not None:
            self._renew(name)

    def _renew(self, name: str) -> None:
        self._lora_versions[name] = uuid.uuid4().hex
        self._forget(lora=name)


def changes_weights(method: object) -> bool:
    """Say whether a call to all workers may change the weights.

    Frameworks that train while they serve bring methods of their own for it.
    """
    return (
        isinstance(method, str) and "weight" in method and "checksum" not in method
    ) or method == "load_model"
