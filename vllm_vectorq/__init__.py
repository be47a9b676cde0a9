# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Semantic response cache for vLLM that keeps a stated error budget.

Installed, it changes nothing. ``--additional-config.vectorq.enabled true`` switches it
on. Every vLLM process imports this module, hence it uses the standard library only.
"""

__version__ = "0.1.0"
__all__ = ["register"]


def register() -> None:
    """Have vLLM ask this plugin before it starts; enables nothing.

    vLLM calls this in every process, possibly more than once.
    """
    from vllm_vectorq.activation import check_vllm_version
    from vllm_vectorq.compat import check_before_start
    from vllm_vectorq.config import KEY, check_options

    def prepare(additional_config: object, api_servers: int) -> None:
        """Get ready for an engine that is about to be configured."""
        if check_options(additional_config, api_servers):
            from vllm_vectorq.hooks import install

            check_vllm_version(KEY)
            install()

    check_before_start(prepare)
