# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Program-aware scheduling for vLLM.

Enabled by ``--scheduler-cls vllm_program_sched.ProgramScheduler``; importing or
installing this package changes nothing. Every vLLM process imports it, hence only
the standard library is used here and public names are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_program_sched.middleware import ProgramHeaders
    from vllm_program_sched.scheduler import ProgramScheduler

__version__ = "0.1.0"
__all__ = ["ProgramHeaders", "ProgramScheduler", "register"]

_HOME_OF = {"ProgramHeaders": ".middleware", "ProgramScheduler": ".scheduler"}
_registered = False


def register() -> None:
    """Make the scheduler's metrics visible to ``/metrics``; enables nothing.

    vLLM calls this in every process, possibly more than once. Without a running
    program scheduler the collector yields nothing.
    """
    global _registered
    if _registered:
        return
    _registered = True
    try:
        from vllm_program_sched.metrics_collector import register_collector

        register_collector()
    except Exception:
        # vLLM dies if a plugin raises here; losing our metrics must not do that.
        from vllm.logger import init_logger

        init_logger("vllm.plugins.program_sched").exception(
            "program_sched: metrics are not available; serving is not affected"
        )


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
