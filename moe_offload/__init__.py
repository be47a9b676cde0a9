# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Mixture-of-experts models in vLLM that are larger than the memory they run in.

Installed, it changes nothing; ``--additional-config.moe_offload.enabled true`` switches
it on. Every vLLM process imports this module, hence it uses the standard library only.
"""

__version__ = "0.1.0"
__all__ = ["register"]


def register() -> None:
    """Have vLLM ask this plugin before it starts; enables nothing.

    vLLM calls this in every process, possibly more than once.
    """
    from moe_offload.compat import check_at_start

    check_at_start()
    try:
        from moe_offload.metrics_collector import register_collector

        register_collector()
    except Exception:
        # vLLM dies if a plugin raises here; losing our metrics must not do that.
        from vllm.logger import init_logger

        init_logger("vllm.plugins.moe_offload").exception(
            "moe_offload: metrics are not available; serving is not affected"
        )
