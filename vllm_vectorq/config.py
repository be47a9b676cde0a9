# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What ``--additional-config.vectorq`` may say in this version."""

from vllm_vectorq import __version__
from vllm_vectorq.activation import read_options

OPTIONS = ("enabled",)


def refuse_if_asked(additional_config: object) -> None:
    """Keep a server from starting that asks for this plugin.

    Args:
        additional_config: The value of ``--additional-config``.

    Raises:
        ValueError: the plugin is asked for, or an option is unknown or malformed.
    """
    enabled = read_options(additional_config, "vectorq", OPTIONS).get("enabled", False)
    if not isinstance(enabled, bool):
        raise ValueError(
            f"vectorq: asked for enabled {enabled!r}, which is neither true nor "
            "false. Write --additional-config.vectorq.enabled true."
        )
    if enabled:
        raise ValueError(
            "vectorq: asked for the semantic response cache with "
            "--additional-config.vectorq.enabled true, but this version "
            f"({__version__}) holds only the package; remove the option or install a "
            "later version."
        )
