# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What ``--additional-config.moe_offload`` may say in this version."""

from moe_offload import __version__
from moe_offload.activation import read_options

OPTIONS = ("enabled",)


def refuse_if_asked(additional_config: object) -> None:
    """Keep a server from starting that asks for this plugin.

    Args:
        additional_config: The value of ``--additional-config``.

    Raises:
        ValueError: the plugin is asked for, or an option is unknown or malformed.
    """
    enabled = read_options(additional_config, "moe_offload", OPTIONS).get(
        "enabled", False
    )
    if not isinstance(enabled, bool):
        raise ValueError(
            f"moe_offload: asked for enabled {enabled!r}, which is neither true nor "
            "false. Write --additional-config.moe_offload.enabled true."
        )
    if enabled:
        raise ValueError(
            "moe_offload: asked for expert offloading with "
            "--additional-config.moe_offload.enabled true, but this version "
            f"({__version__}) holds only the package; remove the option or install a "
            "later version."
        )
