# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Sparse attention for vLLM that finds the keys that matter by learned hash codes.

Installed, it changes nothing; ``--additional-config.hashattn.weights FILE`` switches it
on. Every vLLM process imports this module, hence it uses the standard library only.
"""

__version__ = "0.1.0"
__all__ = ["register"]


def register() -> None:
    """Have vLLM ask this plugin before it starts; enables nothing.

    vLLM calls this in every process, possibly more than once.
    """
    from vllm_hashattn.compat import ask_for_backend, check_at_start

    check_at_start()
    ask_for_backend()
    try:
        from vllm_hashattn.metrics_collector import register_collector

        register_collector()
    except Exception:
        # vLLM dies if a plugin raises here; losing our metrics must not do that.
        from vllm.logger import init_logger

        init_logger("vllm.plugins.hashattn").exception(
            "hashattn: metrics are not available; serving is not affected"
        )
