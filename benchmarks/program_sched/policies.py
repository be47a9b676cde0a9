# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The policies that the benchmark compares, as server flags and client hints."""

from dataclasses import dataclass

from benchmarks.program_sched.replay import HintMode

_SCHEDULER = ("--scheduler-cls", "vllm_program_sched.ProgramScheduler")
# The middleware gives every call its class (system prompt and tools) without a
# change in the client.
_OURS = (*_SCHEDULER, "--middleware", "vllm_program_sched.ProgramHeaders")


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """One row of the result table.

    Attributes:
        name: What the command line calls it.
        title: What tables and plots call it.
        server_flags: Flags on top of the common ones.
        hints: What the client tells the server beyond the calls' identity.
    """

    name: str
    title: str
    server_flags: tuple[str, ...] = ()
    hints: HintMode = "identity"


def _ours(name: str, title: str, hints: HintMode = "identity") -> PolicySpec:
    flags = (*_OURS, "--additional-config.program_sched.policy", name)
    return PolicySpec(name, title, flags, hints)


BASELINE = "fcfs"

_POLICIES = (
    PolicySpec(BASELINE, "vLLM default"),
    PolicySpec(
        "priority",
        "vLLM priority, client LAS",
        ("--scheduling-policy", "priority"),
        "client_las",
    ),
    PolicySpec("ours", "program scheduler", _OURS),
    _ours("program_fcfs", "program FCFS"),
    _ours("mlfq", "MLFQ"),
    _ours("plas", "PLAS"),
    _ours("atlas", "ATLAS"),
    _ours("gittins", "program scheduler (Gittins)"),
    _ours("srpt", "SRPT oracle", "oracle"),
)
POLICIES: dict[str, PolicySpec] = {policy.name: policy for policy in _POLICIES}


def policy_named(name: str) -> PolicySpec:
    """Return a policy by its command-line name.

    Raises:
        ValueError: There is no such policy.
    """
    if name not in POLICIES:
        raise ValueError(
            f"policy {name!r} is not known; choose from {', '.join(POLICIES)}"
        )
    return POLICIES[name]
