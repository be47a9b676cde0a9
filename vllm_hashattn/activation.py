# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a plugin checks when it is switched on: vLLM's version and its own options.

Each plugin of the suite carries this file unchanged, so that any of them can be
lifted out alone; a test keeps the copies equal. Nothing here runs while a plugin
is merely installed.
"""

import difflib
from collections.abc import Collection, Mapping
from functools import cache

OLDEST_VLLM = "0.32"
NEWEST_TESTED_VLLM = "0.33"
INSTALL_COMMAND = "pip install 'vllm>=0.32,<0.34'"


@cache
def check_vllm_version(plugin: str) -> None:
    """Refuse a vLLM that is too old for the plugin, warn once about a newer one.

    Args:
        plugin: Name of the plugin, as in its entry point.

    Raises:
        RuntimeError: vLLM is older than the oldest supported release.
    """
    import vllm
    from packaging.version import InvalidVersion, Version
    from vllm.logger import init_logger

    logger = init_logger(f"vllm.plugins.{plugin}")
    try:
        found = Version(vllm.__version__)
    except InvalidVersion:
        logger.debug("%s: vLLM version %r not checked", plugin, vllm.__version__)
        return
    # A clone without tags calls itself 0.1.dev...: its age cannot be told.
    if found.is_devrelease and found.release[:2] <= (0, 1):
        logger.debug("%s: vLLM version %s not checked", plugin, found)
    elif found.release[:2] < Version(OLDEST_VLLM).release:
        raise RuntimeError(
            f"{plugin}: needs vLLM {OLDEST_VLLM} or later, but {found} is installed. "
            f"Upgrade with: {INSTALL_COMMAND}"
        )
    elif found.release[:2] > Version(NEWEST_TESTED_VLLM).release:
        logger.warning(
            "%s: tested up to vLLM %s.x, running on %s.",
            plugin,
            NEWEST_TESTED_VLLM,
            found,
        )


def read_options(
    additional_config: object, key: str, valid_names: Collection[str]
) -> dict[str, object]:
    """Return the options given under one key of ``--additional-config``.

    Args:
        additional_config: ``VllmConfig.additional_config``; other plugins may have
            put keys of their own, or an object that is not a mapping, into it.
        key: The plugin's key, which is its entry-point name.
        valid_names: Names of the options the plugin knows.

    Raises:
        ValueError: the value is not a mapping or an option is unknown.
    """
    if not isinstance(additional_config, Mapping) or key not in additional_config:
        return {}
    options = additional_config[key]
    if not isinstance(options, Mapping):
        raise ValueError(
            f"{key}: asked for --additional-config.{key} {options!r}, which is not a "
            f"set of options. Write --additional-config.{key}.NAME VALUE."
        )
    for name in options:
        if name not in valid_names:
            raise ValueError(_unknown_option(key, str(name), valid_names))
    return {str(name): value for name, value in options.items()}


def _unknown_option(key: str, name: str, valid_names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted(valid_names), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    valid = ", ".join(sorted(valid_names))
    return f"{key}: unknown option {name!r}.{hint} Valid options: {valid}."
