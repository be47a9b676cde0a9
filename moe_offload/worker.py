# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""vLLM's worker with its model's experts in the arena.

The first model runner of vLLM calls ``_model_forward`` for each step, which it
documents as the place to put another way to run a model. Everything else of the worker
and the runner is vLLM's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.worker.cpu_worker import CPUWorker

from .checkpoint_key import checkpoint_key
from .config import MoeOffloadConfig
from .experts_switch import use_paged_experts
from .host_attention import why_torch
from .metrics import StepMetrics
from .model_experts import ModelExperts, start
from .pipeline import Pipeline
from .simulation import Timeline
from .stages import STAGES
from .step_batch import Step

logger = init_logger("vllm.plugins.moe_offload")
_DEFAULT_MICRO_BATCHES = 2


class OffloadCPUWorker(CPUWorker):
    """A worker whose model is computed from memory that its experts do not fit into."""

    _pipeline: Pipeline | None = None
    _metrics: StepMetrics | None = None

    def init_device(self) -> None:
        """Have the model built with experts that have no weights."""
        options = MoeOffloadConfig.from_additional_config(
            self.vllm_config.additional_config
        )
        model = self.vllm_config.model_config
        shape = model.hf_config
        experts = getattr(shape, "num_local_experts", None) or shape.num_experts
        commit = getattr(shape, "_commit_hash", None)
        key = checkpoint_key(model.model, commit, str(model.dtype))
        file = Path(options.disk) / f"{key['name']}.experts" if options.disk else None
        self._options = options
        self._experts = ModelExperts(
            layers=shape.num_hidden_layers,
            experts=experts,
            capacity_bytes=int(options.device_memory_gib * 2**30),
            file=file,
            key=key,
            read_threads=options.read_threads,
        )
        start(self._experts)
        use_paged_experts(True)
        super().init_device()  # type: ignore[no-untyped-call]

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model; its experts go to the store."""
        super().load_model(*args, **kwargs)
        memory = self._experts.memory()
        place = memory.placement
        logger.info(
            "moe_offload: %.2f GiB of experts in %s, %.2f GiB of slots; %d of %d "
            "experts of each layer stay.",
            memory.store.total_bytes / 2**30,
            self._options.disk or "host memory",
            place.slots * memory.store.form.expert_bytes / 2**30,
            place.resident,
            place.experts,
        )

    def initialize_from_config(self, *args: Any, **kwargs: Any) -> None:
        """Make the caches, and put the pipeline in place of the model's forward."""
        super().initialize_from_config(*args, **kwargs)
        runner = self.model_runner
        model = runner.get_model()
        stages = STAGES[type(model).__name__](model)
        attentions = [layer.self_attn.attn for layer in stages.layers]
        self._say_attention(attentions[0])
        self._pipeline = Pipeline(
            stages,
            self._experts,
            [_cache_of(each) for each in attentions],
            attentions[0].impl.scale,
            self._options.schedule,
            self._options.micro_batches or _DEFAULT_MICRO_BATCHES,
            self._note,
        )
        # Ranks do the same steps: the first one speaks.
        if self.rank == 0:
            name = str(self.model_config.served_model_name)
            self._metrics = StepMetrics(self._experts.memory(), name)
        runner._model_forward = self._forward  # type: ignore[method-assign,assignment]

    def _say_attention(self, attention: Any) -> None:
        """Log it if the slow way is taken."""
        group = attention.num_heads // attention.num_kv_heads
        reason = why_torch(attention.kv_cache.dtype, attention.head_size, group)
        if reason:
            logger.warning(
                "moe_offload: %s. Attention runs in torch, which is slow.", reason
            )

    def _forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        assert self._pipeline is not None
        runner = self.model_runner
        batch = runner.input_batch
        requests = batch.num_reqs
        table = batch.block_table[0]
        starts = runner.query_start_loc.np[: requests + 1]
        step = Step(
            starts=np.array(starts, np.int32),
            lengths=runner.optimistic_seq_lens_cpu[:requests].numpy().copy(),
            table=table.get_numpy_array()[:requests],
            block_tokens=table.block_size,
        )
        return self._pipeline.forward(input_ids, positions, step)

    def _note(self, timeline: Timeline) -> None:
        if self._metrics is not None:
            self._metrics.publish(timeline)

    def shutdown(self) -> None:
        """End the threads, close the file."""
        if self._pipeline is not None:
            self._pipeline.close()
        if self._metrics is not None:
            self._metrics.close()
        self._experts.close()
        start(None)
        use_paged_experts(False)
        super().shutdown()


def _cache_of(attention: Any) -> Tensor:
    """The memory of a layer's cache, as this plugin lays it out.

    vLLM's own tensor is [blocks, ...] with the same bytes for each block.
    """
    cache: Tensor = attention.kv_cache
    heads, size = attention.num_kv_heads, attention.head_size
    blocks = cache.shape[0]
    tokens = cache[0].numel() // (2 * heads * size)
    return cache.view(-1).view(blocks, heads, tokens, 2 * size)
