# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How far an arm is from dense decoding, and how sure that is.

All arms decode the same tokens and answer the same questions, so differences are taken
pair by pair: what makes a text hard is the same on both sides and drops out.

* Perplexity: the mean difference of the negative logarithms of probabilities. Tokens
  next to each other are alike, so the standard error is that of the means of blocks of
  16 tokens in a row (batch means), over all documents.
* Answers: the mean difference of shares, with the interval of Agresti and Min (2005)
  for matched pairs: one pair is added half on either side, and one that does not
  differ. So equal answers to all of few questions still leave some doubt.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

BLOCK_TOKENS = 16
_QUANTILE = 1.96


@dataclass(frozen=True, slots=True)
class Change:
    """A mean difference to dense decoding.

    Attributes:
        mean: Of the differences.
        middle: Of the interval; not always the mean.
        error: Standard error.
    """

    mean: float
    middle: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval; the mean never lies outside."""
        half = _QUANTILE * self.error
        return (
            min(self.mean, self.middle - half),
            max(self.mean, self.middle + half),
        )


def block_means(differences: Tensor) -> tuple[float, ...]:
    """Return means of blocks of about 16 tokens in a row, of two at least.

    Args:
        differences: Floating dtype, [tokens], at least two.
    """
    blocks = max(len(differences) // BLOCK_TOKENS, 2)
    return tuple(float(block.mean()) for block in differences.tensor_split(blocks))


def change_of_blocks(blocks: Sequence[float]) -> Change:
    """Return the mean of blocks of differences.

    Args:
        blocks: From :func:`block_means`, of all documents; at least two.
    """
    mean = statistics.fmean(blocks)
    return Change(mean, mean, statistics.stdev(blocks) / math.sqrt(len(blocks)))


def change_of_pairs(differences: Sequence[float]) -> Change:
    """Return the mean difference of answers to the same questions.

    Args:
        differences: Of the shares, an arm's minus dense decoding's, from -1 to 1; at
            least one.
    """
    pairs = len(differences) + 2
    middle = sum(differences) / pairs
    squares = sum(each * each for each in differences) + 1
    error = math.sqrt((squares / pairs - middle * middle) / pairs)
    return Change(statistics.fmean(differences), middle, error)


def mean_change(changes: Iterable[Change]) -> Change:
    """Return the mean of changes that are independent of each other; at least one."""
    found = list(changes)
    return Change(
        statistics.fmean(each.mean for each in found),
        statistics.fmean(each.middle for each in found),
        math.hypot(*(each.error for each in found)) / len(found),
    )
