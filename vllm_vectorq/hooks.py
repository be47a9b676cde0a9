# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Puts the cache into vLLM, once a server or ``LLM`` asks for it."""

from __future__ import annotations


def install() -> None:
    """Wrap renderers and engines, however often it is called.

    Call it before the engine is made. Engines that are not configured to have the
    cache behave as before.

    Raises:
        RuntimeError: This vLLM lacks something that the cache needs.
    """
    from . import hooks_engine, hooks_offline, hooks_render

    hooks_render.install()
    hooks_engine.install()
    hooks_offline.install()
