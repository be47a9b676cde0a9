# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Branches that continue one context: a document that goes on, questions about it.

The tokens of a branch see the context and the earlier tokens of their own branch. All
branches go through the model side by side, as one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scorer import Scorer


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokens of one pass through the model.

    Attributes:
        branches: Of each token, int64 [n].
        places: Within the branch, from 0, int64 [n].
    """

    branches: Tensor
    places: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the branch that has most so far."""
        return int(self.places.max()) + 1

    def own(self) -> Tensor:
        """Where tokens of each row's branch lie, int64 [n, longest].

        In what :meth:`LayerBranches.first` returns; those behind the row's own place
        are there, but not to be seen.
        """
        token = torch.arange(self.longest, device=self.places.device)
        return self.branches.unsqueeze(1) * self.longest + token


class LayerBranches:
    """Keys, values and descriptions of all branches in one layer.

    Args:
        branches: How many.
        tokens: Room of each.
        like: Keys of the context, [kv heads, tokens, head_dim].
        scorer: Describes keys; none in a dense layer.
    """

    def __init__(
        self, branches: int, tokens: int, like: Tensor, scorer: Scorer | None
    ) -> None:
        kv_heads, _, head_dim = like.shape
        page = scorer.page_tokens if scorer else 1
        room = -(-tokens // page) * page  # so that no page spans two branches
        self._keys = like.new_zeros(kv_heads, branches, room, head_dim)
        self._values = torch.zeros_like(self._keys)
        self._scorer = scorer
        self._described: Tensor | None = None

    def write(self, rows: Rows, keys: Tensor, values: Tensor) -> None:
        """Add tokens; both [kv heads, n, head_dim]."""
        self._keys[:, rows.branches, rows.places] = keys
        self._values[:, rows.branches, rows.places] = values
        if self._scorer is None:
            return
        if self._described is None or self._scorer.page_tokens > 1:
            # All room at once; what is described before it is written is not seen.
            everything = self._scorer.describe(self._keys.flatten(1, 2).transpose(0, 1))
            self._described = torch.unflatten(everything, 0, self._keys.shape[1:3])
        else:
            described = self._scorer.describe(keys.transpose(0, 1))
            self._described[rows.branches, rows.places] = described

    def first(self, tokens: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the first tokens of every branch, one branch after the other.

        Returns:
            Keys and values, [kv heads, branches * tokens, head_dim], and descriptions,
            [branches * tokens, kv heads, ...].
        """
        keys, values = self._keys[:, :, :tokens], self._values[:, :, :tokens]
        described = self._described
        if described is not None:
            described = described[:, :tokens].flatten(0, 1)
        return keys.flatten(1, 2), values.flatten(1, 2), described
