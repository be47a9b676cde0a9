# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""One step of a model: its requests divided, its operations run in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache

import torch
from torch import Tensor

from .executor import Executor, Timeline
from .layer_work import LayerWork
from .model_experts import ModelExperts
from .operations import Schedule
from .schedule_rivals import schedule
from .stages import Stages
from .step_batch import Step, divide

# A step that takes longer has stalled: the slowest disks read a model in minutes.
_STALLED_S = 1800.0


class Pipeline:
    """Runs the steps of a model.

    Args:
        stages: Pieces of the model.
        experts: Of the model.
        caches: Of each layer, [blocks, kv_heads, block_tokens, 2 * head_dim].
        scale: Of the attention.
        name: Of the schedule.
        micro_batches: At most so many.
        note: Takes when the operations of a step ran, after each step.

    Attributes:
        steps: That were run.
    """

    def __init__(
        self,
        stages: Stages,
        experts: ModelExperts,
        caches: Sequence[Tensor],
        scale: float,
        name: str,
        micro_batches: int,
        note: Callable[[Timeline], None],
    ) -> None:
        self._work = LayerWork(stages, experts, caches, scale)
        self._experts = experts
        self._name = name
        self._micro_batches = micro_batches
        self._executor = Executor(context=_inference)
        self._note = note
        self.steps = 0

    def forward(self, input_ids: Tensor, positions: Tensor, step: Step) -> Tensor:
        """Return what logits are computed from, [tokens, hidden].

        Args:
            input_ids: Of all tokens, [tokens].
            positions: Of all tokens, int64 [tokens].
            step: Their requests.

        Raises:
            Exception: What an operation raised, or that the step has stalled.
        """
        batches = divide(step, self._micro_batches)
        memory = self._experts.memory()
        order = _order(
            self._name,
            memory.placement.layers,
            len(batches),
            len(memory.streamed_pages),
            self._experts.first_buffer,
        )
        if order.carried:
            self._experts.begin_step()
        self._work.begin(input_ids, positions, batches)
        timeline = self._executor.run(order, self._work.handlers(), _STALLED_S)
        self._experts.end_step()
        self.steps += 1
        self._note(timeline)
        return self._work.result()

    def close(self) -> None:
        """End the threads."""
        self._executor.close()


@lru_cache(maxsize=64)
def _order(
    name: str, layers: int, micro_batches: int, pages: int, first_buffer: int
) -> Schedule:
    """A step's operations, those of a CPU."""
    return schedule(
        name, layers, micro_batches, pages, first_buffer=first_buffer, one_memory=True
    )


def _inference() -> AbstractContextManager[object]:
    """What each thread computes in: it holds for one thread only."""
    return torch.inference_mode()
