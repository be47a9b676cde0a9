# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Quality of sparse decode attention on a real model: perplexity and greedy answers.

The model runs in transformers. A context is read by dense attention once
(:func:`~vllm_hashattn.evaluation_attention.read_context`); every arm then goes on from
there, and reads per KV head only what it chose:

* :meth:`Evaluation.logits` on the rest of the document. All its tokens go through the
  model in one pass, each with a choice of its own. This is the same as one decode step
  after the other, because each layer's keys come from what the layers below it gave
  under sparse attention.
* :meth:`Evaluation.answers` on questions about the context. The questions themselves
  are read densely and only their answers sparsely, as where a whole prompt is dense; or
  both are read sparsely, as in the paper's reference code. The two do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .evaluation_answers import Answer, Draft, Stop
from .evaluation_arms import Arm, ReadCount, Reading
from .evaluation_attention import Context, attend_rows, attention_by
from .evaluation_branches import LayerBranches, Rows
from .evaluation_choice import choice_bias, seen_bias
from .scorer import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Dot products of all query heads that are held at once.
_DOTS = 1 << 23


class Evaluation:
    """One arm over one context, whose keys are described once.

    Args:
        model: The one that read the context.
        context: Shared by all arms.
        arm: What is read.
    """

    def __init__(self, model: PreTrainedModel, context: Context, arm: Arm) -> None:
        self._model = model
        self._context = context
        self._arm = arm
        self._scorers: dict[int, Scorer] = {}
        self._described: dict[int, Tensor] = {}
        self._count = ReadCount(context.keys[0].shape[2])
        with torch.inference_mode():
            for layer in range(arm.dense_layers, len(context.keys)):
                self._scorers[layer] = scorer = arm.scorer(layer)
                keys = context.keys[layer].transpose(0, 1)
                self._described[layer] = scorer.unpack(scorer.describe(keys))

    def reading(self) -> Reading:
        """Return what was read by sparse attention so far."""
        return self._count.reading()

    def logits(self, token_ids: Tensor, tokens_per_pass: int | None = None) -> Tensor:
        """Find what the model expects at each place of the text after the context.

        Args:
            token_ids: What follows the context, int64 [tokens].
            tokens_per_pass: So many go through the model at once; all where it is not
                given. Does not change the result.

        Returns:
            In the model's dtype, [tokens, vocabulary]. The first row follows from the
            dense context and is the same in all arms.

        Raises:
            ValueError: There is no text.
        """
        if not len(token_ids):
            raise ValueError("hashattn: a text of 0 tokens was given; give more.")
        found = [self._context.next_logits.unsqueeze(0)]
        inputs = token_ids[:-1]
        branches = self._branches(1, len(inputs))
        step = max(tokens_per_pass or len(inputs), 1)
        for start in range(0, len(inputs), step):
            ids = inputs[start : start + step]
            places = torch.arange(start, start + len(ids), device=ids.device)
            rows = Rows(torch.zeros_like(places), places)
            found.append(self._forward(ids, rows, branches, sparse=True))
        return torch.cat(found)

    def answers(
        self,
        questions: Sequence[Sequence[int]],
        stop: Stop,
        *,
        sparse_questions: bool = False,
    ) -> list[Answer]:
        """Answer questions greedily, all of them side by side.

        Args:
            questions: Tokens of each, which follow the context.
            stop: When an answer ends.
            sparse_questions: Read the questions sparsely too, each of their tokens by a
                choice of its own; their tokens then count in :meth:`reading`.

        Raises:
            ValueError: A question is empty.
        """
        lengths = [len(question) for question in questions]
        if not all(lengths):
            raise ValueError(
                f"hashattn: question {lengths.index(0)} has 0 tokens; give at least "
                "one, because an answer follows from the last."
            )
        if not questions:
            return []
        branches = self._branches(len(questions), max(lengths) + stop.limit_tokens)
        drafts = [Draft(length, stop) for length in lengths]
        latest = self._read_questions(questions, branches, sparse=sparse_questions)
        unfinished = dict(enumerate(drafts))
        while unfinished:
            for draft, token in zip(unfinished.values(), latest, strict=True):
                draft.add(token)
            unfinished = {i: each for i, each in unfinished.items() if not each.ended}
            if unfinished:
                places = [draft.place for draft in unfinished.values()]
                ids = [draft.token_ids[-1] for draft in unfinished.values()]
                rows = self._rows(list(unfinished), places)
                logits = self._forward(self._tensor(ids), rows, branches, sparse=True)
                latest = logits.argmax(dim=-1).tolist()
        return [Answer(tuple(draft.token_ids), draft.text) for draft in drafts]

    def _read_questions(
        self,
        questions: Sequence[Sequence[int]],
        branches: list[LayerBranches],
        *,
        sparse: bool,
    ) -> list[int]:
        """Read all questions, and return the first token of each answer."""
        lengths = [len(question) for question in questions]
        of = [branch for branch, length in enumerate(lengths) for _ in range(length)]
        places = [place for length in lengths for place in range(length)]
        logits = self._forward(
            self._tensor([token for question in questions for token in question]),
            self._rows(of, places),
            branches,
            sparse=sparse,
            kept=self._tensor(lengths).cumsum(0) - 1,
        )
        first: list[int] = logits.argmax(dim=-1).tolist()
        return first

    def _branches(self, branches: int, tokens: int) -> list[LayerBranches]:
        with torch.inference_mode():
            return [
                LayerBranches(branches, tokens, keys, self._scorers.get(layer))
                for layer, keys in enumerate(self._context.keys)
            ]

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self._context.keys[0].device)

    def _rows(self, branches: Sequence[int], places: Sequence[int]) -> Rows:
        return Rows(self._tensor(branches), self._tensor(places))

    def _forward(
        self,
        token_ids: Tensor,
        rows: Rows,
        branches: list[LayerBranches],
        *,
        sparse: bool,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Run tokens and return logits of those that are `kept`, or of all."""

        def attend(
            module: torch.nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            *_: Any,  # noqa: ANN401
            scaling: float,
            **__: Any,  # noqa: ANN401
        ) -> tuple[Tensor, None]:
            layer = int(module.layer_idx)  # type: ignore[arg-type]
            branches[layer].write(rows, key[0], value[0])
            asked = query[0].transpose(0, 1)
            found = self._attend(layer, asked, rows, branches[layer], scaling, sparse)
            return found.unsqueeze(0), None

        with attention_by(self._model, attend):
            logits: Tensor = self._model(
                token_ids.unsqueeze(0),
                position_ids=(self._context.tokens + rows.places).unsqueeze(0),
                use_cache=False,
                logits_to_keep=0 if kept is None else kept,
            ).logits
        return logits[0]

    def _attend(
        self,
        layer: int,
        query: Tensor,
        rows: Rows,
        branches: LayerBranches,
        scale: float,
        sparse: bool,
    ) -> Tensor:
        """Attention of one layer, rows in parts; `query` is [n, heads, head_dim]."""
        context = self._context.keys[layer], self._context.values[layer]
        keys, values, described = branches.first(rows.longest)
        own, lengths = rows.own(), self._context.tokens + rows.places + 1
        tokens = self._context.tokens + rows.longest
        step = max(_DOTS // (query.shape[1] * tokens), 1)
        found = []
        for start in range(0, len(query), step):
            part = slice(start, start + step)
            if sparse and described is not None:
                scorer = self._scorers[layer]
                stored = self._described[layer], described
                bias = choice_bias(
                    *(scorer, query[part], stored, own[part], lengths[part]),
                    self._arm.budget,
                    weighs=self._arm.weighs,
                )
                self._count.sparse(lengths[part], bias, len(keys), scorer.bits)
            else:
                bias = seen_bias(lengths[part], tokens)
                if sparse:
                    self._count.dense(lengths[part], len(keys))
            of_branches = keys, values
            found.append(
                attend_rows(query[part], context, of_branches, own[part], bias, scale)
            )
        return torch.cat(found)
