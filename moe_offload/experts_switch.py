# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Has vLLM build :class:`PagedExperts`, or its own experts again."""

from __future__ import annotations


def use_paged_experts(use: bool) -> None:
    """Say which experts the next model of this process has.

    Args:
        use: Those of this plugin.
    """
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    from .paged_experts import PagedExperts

    name = RoutedExperts.__name__
    if use and name not in op_registry_oot:
        RoutedExperts.register_oot(PagedExperts)
    elif not use and op_registry_oot.get(name) is PagedExperts:
        del op_registry_oot[name]
