# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Semantic response cache for vLLM with a learned threshold per entry.

This version holds the parts of the cache but does not join them: it installs beside
vLLM, changes nothing, and refuses to start a server that asks for it with
``--additional-config.vectorq.enabled true``. Every vLLM process imports this
module, hence it uses the standard library only.
"""

__version__ = "0.1.0"
__all__ = ["register"]


def register() -> None:
    """Have vLLM ask this plugin before it starts; enables nothing.

    vLLM calls this in every process, possibly more than once.
    """
    from vllm_vectorq.compat import check_before_start
    from vllm_vectorq.config import refuse_if_asked

    check_before_start(refuse_if_asked)
