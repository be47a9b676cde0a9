# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Sizes of a mixture-of-experts model, from which bytes and operations are counted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .model_config import sizes


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder whose every layer has attention and gated experts.

    Norms are left out: they are less than a ten-thousandth of a model.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        expert_hidden: Width of an expert.
        experts: Of a layer.
        experts_per_token: That the router chooses.
        heads: Query heads.
        kv_heads: Key-value heads.
        head_dim: Of both.
        vocab: Tokens.
        weight_bytes: Of one weight of an expert, scales included: 2 bf16, 1 fp8, about
            0.5625 four-bit integers in groups of 32.
        dense_weight_bytes: Of one weight of everything else.
        cache_value_bytes: Of one number in the key-value cache.
        shared_expert_hidden: Width of an expert that computes every token; 0: none.
        tied_embeddings: Whether input and output embeddings are one matrix.

    Raises:
        ValueError: A size is not positive, or two do not go together.
    """

    layers: int
    hidden: int
    expert_hidden: int
    experts: int
    experts_per_token: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    weight_bytes: float = 2.0
    dense_weight_bytes: float = 2.0
    cache_value_bytes: float = 2.0
    shared_expert_hidden: int = 0
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value: object = getattr(self, field.name)
            if field.name == "tied_embeddings":
                continue
            whole = not field.name.endswith("_bytes")
            kinds: Any = int if whole else (int, float)
            least = 0 if field.name == "shared_expert_hidden" else 1 if whole else 1e-9
            if (
                isinstance(value, bool)
                or not isinstance(value, kinds)
                or not least <= value < math.inf
            ):
                kind = "an integer" if whole else "a number"
                raise _wrong(field.name, value, f"give {kind} of at least {least:g}")
        if self.heads % self.kv_heads:
            raise _wrong(
                "kv_heads", self.kv_heads, f"give a divisor of heads={self.heads}"
            )
        if self.experts_per_token > self.experts:
            raise _wrong(
                "experts_per_token",
                self.experts_per_token,
                f"there are only {self.experts} experts",
            )

    @property
    def expert_bytes(self) -> float:
        """Gate, up and down projection of one expert."""
        return 3 * self.hidden * self.expert_hidden * self.weight_bytes

    @property
    def layer_expert_bytes(self) -> float:
        """All experts of one layer."""
        return self.experts * self.expert_bytes

    @property
    def qkv_weights(self) -> int:
        """Weights of one layer's query, key and value projections."""
        return self.hidden * self.head_dim * (self.heads + 2 * self.kv_heads)

    @property
    def output_weights(self) -> int:
        """Weights of one layer after attention, without its experts.

        These are the output projection, the router and the shared expert.
        """
        shared = 3 * self.hidden * self.shared_expert_hidden
        return self.hidden * (self.heads * self.head_dim + self.experts) + shared

    @property
    def dense_layer_bytes(self) -> float:
        """One layer without its experts."""
        return (self.qkv_weights + self.output_weights) * self.dense_weight_bytes

    @property
    def embedding_bytes(self) -> float:
        """Input and output embeddings."""
        matrices = 1 if self.tied_embeddings else 2
        return matrices * self.vocab * self.hidden * self.dense_weight_bytes

    @property
    def dense_bytes(self) -> float:
        """The whole model without its experts."""
        return self.layers * self.dense_layer_bytes + self.embedding_bytes

    @property
    def total_bytes(self) -> float:
        """The whole model."""
        return self.layers * self.layer_expert_bytes + self.dense_bytes

    @property
    def cache_bytes_per_token(self) -> float:
        """Key and value of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.cache_value_bytes

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], weight_bytes: float | None = None
    ) -> ModelShape:
        """Read the sizes from a model's configuration.

        Args:
            config: What config.json of the model holds.
            weight_bytes: Of one weight of an expert, where the configuration does not
                tell: it is quantised in another way than fp8.

        Raises:
            ValueError: The architecture or its form is not supported, or something is
                missing.
        """
        return cls(**sizes(config, weight_bytes))

    @classmethod
    def from_folder(
        cls, path: str | Path, weight_bytes: float | None = None
    ) -> ModelShape:
        """Read the sizes from a folder with a model.

        Args:
            path: The folder, with a config.json.
            weight_bytes: As for :meth:`from_config`.

        Raises:
            ValueError: There is no such file, or as for :meth:`from_config`.
        """
        file = Path(path) / "config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"moe_offload: asked for the sizes of the model in {str(path)!r}; its "
                f"config.json cannot be read ({error}). Give a folder with a model."
            ) from error
        if not isinstance(config, dict):
            raise ValueError(
                f"moe_offload: asked for the sizes of the model in {str(path)!r}; its "
                "config.json holds no object. Give a folder with a model."
            )
        return cls.from_config(config, weight_bytes)


def _wrong(name: str, value: object, remedy: str) -> ValueError:
    return ValueError(
        f"moe_offload: asked for a model shape with {name}={value!r}, which cannot be: "
        f"{remedy}."
    )
