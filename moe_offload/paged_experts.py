# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The experts of a layer in vLLM, computed from the arena.

vLLM builds :class:`PagedExperts` in place of its own container of expert weights. The
container has no weights: what the checkpoint holds of an expert is brought into the
form of vLLM's kernel, one expert at a time, and goes to the store. A step reads from
the arena through the same kernel, with numbers of slots in place of experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import vllm
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.oracle.unquantized import (
    convert_to_unquantized_kernel_format,
)
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.models.utils import extract_layer_index

from .expert_format import ExpertFormat, Part
from .page_store import Page

if TYPE_CHECKING:
    from .model_experts import ModelExperts

_EXPERT = re.compile(r"(?:experts\.)?(\d+)\.(\w+)\.weight")


class PagedMethod(UnquantizedFusedMoEMethod):
    """Computes with vLLM's kernel from slots of the arena."""

    @property
    def kernel_name(self) -> str:
        """Of vLLM's kernel, with vLLM's version: pages are in its form."""
        return f"{type(self._kernel.fused_experts).__name__} of vLLM {vllm.__version__}"

    @property
    def _kernel(self) -> Any:
        if self.moe_kernel is None:
            raise RuntimeError(
                "moe_offload: a layer has no kernel before it is loaded."
            )
        return self.moe_kernel

    def create_weights(self, layer: Any, *_: Any, **__: Any) -> None:
        """Make none: the store has them."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Get the kernel ready, unless packing an expert has done so.

        Where an earlier start has stored all experts, none is packed in this one.
        """
        if self.moe_kernel is None:
            hidden, size = layer.hidden_size, layer.intermediate_size_per_partition
            empty = torch.zeros(3 * size * hidden, dtype=layer.params_dtype)
            self.packed(
                layer,
                empty[: 2 * size * hidden].view(2 * size, hidden),
                empty[2 * size * hidden :].view(hidden, size),
            )

    def packed(
        self, layer: Any, gate_up: Tensor, down: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return an expert's weights in the form of the kernel.

        Args:
            layer: With the configuration of the experts.
            gate_up: [2 * intermediate, hidden].
            down: [hidden, intermediate].
        """
        if self.moe_kernel is None:
            self._init_moe_kernel(layer)
        # What vLLM's kernel expects of a layer, with one expert.
        one: Any = nn.Module()
        one.moe_config = layer.moe_config
        one.activation = layer.activation
        gate_up, down = convert_to_unquantized_kernel_format(
            self.unquantized_backend,
            moe_config=layer.moe_config,
            w13_weight=gate_up[None],
            w2_weight=down[None],
            layer=one,
        )
        one.w13_weight = nn.Parameter(gate_up, requires_grad=False)
        one.w2_weight = nn.Parameter(down, requires_grad=False)
        self._kernel.fused_experts.process_weights_after_loading(one)
        return one.w13_weight.data[0], one.w2_weight.data[0]

    def apply(  # type: ignore[override]
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """Compute the experts of some tokens; see vLLM's method."""
        memory, slots = layer.model_experts.of_layer(layer.layer_number)
        found: Tensor = self._kernel.apply(
            hidden_states=x,
            w1=memory.arena.weights(Part.GATE_UP),
            w2=memory.arena.weights(Part.DOWN),
            topk_weights=topk_weights,
            topk_ids=slots[topk_ids.long()].to(topk_ids.dtype),
            activation=layer.activation,
            apply_router_weight_on_input=layer.apply_router_weight_on_input,
            global_num_experts=memory.arena.slots,
            expert_map=None,
            shared_experts=shared_experts,
            shared_experts_input=shared_experts_input,
        )
        return found


class PagedExperts(RoutedExperts):
    """Experts of a layer without weights of its own.

    Attributes:
        layer_number: Of the model's layers.
        model_experts: Of all layers of the model.
    """

    model_experts: ModelExperts

    def __init__(self, layer_name: str, *args: Any, **kwargs: Any) -> None:
        from .model_experts import current

        super().__init__(layer_name, *args, **kwargs)
        self.layer_number: int = extract_layer_index(layer_name)
        self.model_experts = current()
        self._unfinished: dict[int, dict[str, Tensor]] = {}

    def _get_quant_method(
        self,
        prefix: str,
        quant_config: object,
        moe_config: Any,
    ) -> PagedMethod:
        if quant_config is not None:
            raise ValueError(
                f"moe_offload: {prefix} is quantised, which this version cannot "
                "offload. Use a checkpoint in bfloat16, float16 or float32."
            )
        self._method = PagedMethod(moe_config)
        return self._method

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Iterable[str]:
        """Bring the experts of a checkpoint into the store.

        Args:
            weights: Names relative to this layer, and tensors.

        Yields:
            The names.
        """
        names = {
            self.ckpt_gate_proj_name: "gate",
            self.ckpt_up_proj_name: "up",
            self.ckpt_down_proj_name: "down",
        }
        for name, weight in weights:
            found = _EXPERT.fullmatch(name)
            if found is None or found[2] not in names:
                raise ValueError(
                    f"moe_offload: {self.layer_name} holds {name!r}, which is no "
                    "weight of an expert in a form that is known. Known are "
                    f"EXPERT.{{{','.join(map(str, names))}}}.weight."
                )
            if not self.model_experts.all_there():
                self._take(int(found[1]), names[found[2]], weight)
            yield name

    def _take(self, expert: int, which: str, weight: Tensor) -> None:
        size = self.intermediate_size_per_partition
        rank = self.moe_config.tp_rank
        mine = weight.narrow(1 if which == "down" else 0, rank * size, size)
        parts = self._unfinished.setdefault(expert, {})
        # The loader may reuse the memory of what it gives.
        parts[which] = mine.to(self.params_dtype, copy=True)
        if len(parts) < 3:
            return
        del self._unfinished[expert]
        both = torch.cat([parts["gate"], parts["up"]])
        pages = self._method.packed(self, both, parts["down"])
        gate_up, down = (tuple(page.shape) for page in pages)
        form = ExpertFormat(gate_up, down, pages[0].dtype)
        store = self.model_experts.store(form, self._method.kernel_name)
        if self.model_experts.all_there():
            return
        for part, page in zip(Part, pages, strict=True):
            store.write(Page(self.layer_number, expert, part), page)
