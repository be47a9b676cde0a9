# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Arms of a comparison: what scores the tokens, how many are read, in which layers.

Every arm runs over the same dense context, so that only what a decode step reads
differs. The dense arm reads everything; the oracle is what any description of keys can
only approach; window and random are what a choice without knowledge is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .budget import Budget
from .evaluation_weighted import LogitOracle
from .hash_file import HashFile
from .paper_file import PaperFile
from .scorer import OracleScorer, RandomScorer, Scorer, WindowScorer
from .scorer_levels import LevelHash, LevelScorer
from .scorer_linear import LinearHash, LinearScorer
from .scorer_paper import PaperScorer
from .scorer_quest import QuestScorer

# Bits of a number in the KV cache.
_NUMBER_BITS = 16

_Networks = TypeVar("_Networks")
_Maps = TypeVar("_Maps", LevelHash, LinearHash)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to choose tokens.

    Attributes:
        name: For tables.
        scorer: Makes the scorer of a layer.
        budget: How many tokens are read.
        dense_layers: So many first layers read everything.
        weighs: Where the scorer estimates weights, draw tokens by them.

    Raises:
        ValueError: The number of dense layers is negative.
    """

    name: str
    scorer: Callable[[int], Scorer]
    budget: Budget
    dense_layers: int = 0
    weighs: bool = True

    def __post_init__(self) -> None:
        if self.dense_layers < 0:
            raise ValueError(
                f"hashattn: {self.dense_layers} dense layers were asked for; it must "
                "be at least 0."
            )


def dense_arm() -> Arm:
    """Read everything, by the same code as the other arms."""
    return Arm("dense", lambda _: WindowScorer(), Budget(1.0))


def oracle_arm(head_dim: int, budget: Budget, dense_layers: int = 0) -> Arm:
    """Choose by the true dot products; reads all keys to do so."""
    return Arm("oracle", lambda _: OracleScorer(head_dim), budget, dense_layers)


def weighing_oracle_arm(head_dim: int, budget: Budget, dense_layers: int = 0) -> Arm:
    """Draw by the true weights; reads all keys to do so."""
    return Arm("oracle weighing", lambda _: LogitOracle(head_dim), budget, dense_layers)


def window_arm(budget: Budget, dense_layers: int = 0) -> Arm:
    """Read the first and the newest tokens."""
    return Arm("window", lambda _: WindowScorer(), budget, dense_layers)


def random_arm(budget: Budget, dense_layers: int = 0, seed: int = 0) -> Arm:
    """Choose by chance; each layer draws from a generator of its own."""
    return Arm("random", lambda layer: RandomScorer(seed + layer), budget, dense_layers)


def quest_arm(head_dim: int, budget: Budget, dense_layers: int = 0) -> Arm:
    """Choose by the bounds of pages of 16 tokens.

    A page whose tokens are not all there yet lies within the newest tokens, which are
    read whatever their score. So its bounds do not matter, and those of many tokens may
    be computed at once though a page then holds tokens that a query must not see. The
    first token after the context begins a page.

    Raises:
        ValueError: The newest tokens that are always read are fewer than a page.
    """
    page = QuestScorer(head_dim).page_tokens
    if budget.recent_tokens < page:
        raise ValueError(
            f"hashattn: recent_tokens {budget.recent_tokens} were asked for with pages "
            f"of {page} tokens; the newest page is not full and cannot be scored, so "
            f"recent_tokens must be at least {page}."
        )
    return Arm("quest", lambda _: QuestScorer(head_dim), budget, dense_layers)


def levels_arm(
    file: HashFile, budget: Budget, dense_layers: int = 0, *, weighs: bool = True
) -> Arm:
    """Draw by weights that levels estimate, or choose the largest of them.

    Raises:
        ValueError: From the arm's `scorer`: the file lacks the layer, or holds another
            kind of code.
    """

    def scorer(layer: int) -> Scorer:
        return LevelScorer(_of_kind(file, layer, LevelHash))

    name = "levels" if weighs else "levels, best only"
    return Arm(name, scorer, budget, dense_layers, weighs)


def linear_arm(
    file: HashFile, budget: Budget, dense_layers: int = 0, *, asymmetric: bool = False
) -> Arm:
    """Choose by linear hashes.

    Raises:
        ValueError: From the arm's `scorer`: the file lacks the layer, or holds another
            kind of code.
    """

    def scorer(layer: int) -> Scorer:
        maps = _of_kind(file, layer, LinearHash)
        return LinearScorer(maps, asymmetric=asymmetric)

    name = "linear asymmetric" if asymmetric else "linear"
    return Arm(name, scorer, budget, dense_layers)


def paper_arm(
    file: PaperFile, kv_heads: int, budget: Budget, dense_layers: int = 0
) -> Arm:
    """Choose by the paper's networks.

    Raises:
        ValueError: From the arm's `scorer`: the file lacks the layer.
    """

    def scorer(layer: int) -> Scorer:
        networks = _of_layer(file.layers, layer)
        return PaperScorer(networks.keys, networks.queries, kv_heads)

    return Arm("paper", scorer, budget, dense_layers)


def _of_kind(file: HashFile, layer: int, kind: type[_Maps]) -> _Maps:
    maps = _of_layer(file.layers, layer)
    if not isinstance(maps, kind):
        raise ValueError(
            f"hashattn: a {kind.__name__} was asked for, but the file holds "
            f"{file.format!r}. Take the arm that belongs to the file."
        )
    return maps


def _of_layer(layers: Mapping[int, _Networks], layer: int) -> _Networks:
    if layer not in layers:
        raise ValueError(
            f"hashattn: layer {layer} was asked for, but the file holds the layers "
            f"{sorted(layers)}. Take the file of this model, or more dense layers."
        )
    return layers[layer]


@dataclass(frozen=True, slots=True)
class Reading:
    """What an arm read, averaged over KV heads and decoded tokens.

    Attributes:
        read_tokens: Tokens whose key and value were read; of layers that are not dense.
        seen_tokens: Tokens that could have been read, likewise.
        bytes_share: Bytes of all layers, dense ones and descriptions included, as a
            share of what dense attention reads. A description is read of all tokens
            that are seen, where not all of them are read anyway. The keys that the
            oracle looks at count as one.
    """

    read_tokens: float
    seen_tokens: float
    bytes_share: float


class ReadCount:
    """Counts what is read, pass after pass.

    Args:
        head_dim: Channels of a key.
    """

    def __init__(self, head_dim: int) -> None:
        self._token_bits = 2 * _NUMBER_BITS * head_dim
        self._choices = self._read = self._seen = 0
        self._bits = self._dense_bits = 0

    def dense(self, lengths: Tensor, kv_heads: int) -> None:
        """Count a dense layer; `lengths` are the tokens seen, int64 [n]."""
        bits = int(lengths.sum()) * kv_heads * self._token_bits
        self._bits += bits
        self._dense_bits += bits

    def sparse(self, lengths: Tensor, bias: Tensor, kv_heads: int, bits: int) -> None:
        """Count a layer that is not dense.

        Args:
            lengths: Tokens that each query sees, int64 [n].
            bias: Minus infinity for those that it does not read, [n, kv heads or 1,
                tokens].
            kv_heads: KV heads.
            bits: Of a token's description.
        """
        read = (bias > -torch.inf).sum(dim=2).expand(-1, kv_heads)
        seen = lengths.to(read.device).unsqueeze(1).expand_as(read)
        described = int(seen[read < seen].sum())
        self._choices += read.numel()
        self._read += int(read.sum())
        self._seen += int(seen.sum())
        self._bits += int(read.sum()) * self._token_bits + described * bits
        self._dense_bits += int(seen.sum()) * self._token_bits

    def reading(self) -> Reading:
        """Return what was read since the start; not a number where nothing was."""
        return Reading(
            _mean(self._read, self._choices),
            _mean(self._seen, self._choices),
            _mean(self._bits, self._dense_bits),
        )


def _mean(total: int, count: int) -> float:
    return total / count if count else math.nan
