# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What ``--additional-config.hashattn`` may say in this version."""

from vllm_hashattn import __version__
from vllm_hashattn.activation import read_options

OPTIONS = ("weights",)


def refuse_if_asked(additional_config: object) -> None:
    """Keep a server from starting that asks for this plugin.

    Args:
        additional_config: The value of ``--additional-config``.

    Raises:
        ValueError: the plugin is asked for, or an option is unknown.
    """
    options = read_options(additional_config, "hashattn", OPTIONS)
    if "weights" in options:
        raise ValueError(
            "hashattn: asked for HashAttention with --additional-config.hashattn."
            f"weights {options['weights']}, but this version ({__version__}) holds "
            "only the package; remove the option or install a later version."
        )
