# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The one vLLM symbol this plugin touches.

``register()`` receives no configuration and vLLM offers plugins no hook that sees it
before the engine starts, so ``EngineArgs.create_engine_config`` is wrapped. The
wrapper reads ``additional_config`` and hands every argument and the result through
unchanged. Remove it when vLLM validates the keys of ``additional_config`` or lets a
plugin do so.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

# Symbol -> parameters relied on; compared with the installed vLLM by a test.
COUPLED_SYMBOLS: dict[str, tuple[str, ...]] = {
    "vllm.engine.arg_utils:EngineArgs.create_engine_config": ("self",),
}

_MARK = "_hashattn_checks"


def check_before_start(check: Callable[[object], None]) -> None:
    """Call ``check(additional_config)`` before vLLM builds its configuration.

    Args:
        check: Raises to keep the server from starting.
    """
    from vllm.engine.arg_utils import EngineArgs

    build = EngineArgs.create_engine_config
    # wraps() copies the mark outwards, so it is found below other plugins' wrappers.
    if hasattr(build, _MARK):
        return

    @wraps(build)
    def checked(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        check(self.additional_config)
        return build(self, *args, **kwargs)

    setattr(checked, _MARK, True)
    EngineArgs.create_engine_config = checked  # type: ignore[method-assign]
