# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""When a running call should make room for a waiting one, and which.

Preempting never creates capacity: it moves a slot from one program to another and costs
the victim's recomputation. The rule here weighs the two. The candidate would get a slot
anyway after about ``w`` seconds, the mean time between slot releases; taking one now is
worth ``w * (1 - R_candidate / R_victim)`` seconds of service that goes to the program
nearer to completion (``R``: the policy's index), and costs the ``c`` seconds in which
the victim's lost tokens are computed again. With short calls ``w`` is small and nothing
is preempted; with long calls it pays. Levels, minimum run and back-off are guards
against ping-pong on top of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vllm_program_sched.config import ProgramSchedConfig
from vllm_program_sched.process_table import Call

_MAX_BACKOFF = 10


def is_worse(victim: Call, candidate: Call, hysteresis_levels: int) -> bool:
    """Whether the victim is strictly worse by tier, or by enough levels."""
    if victim.rank[0] != candidate.rank[0]:
        return victim.rank[0] > candidate.rank[0]
    if candidate.rank[1] == 0:
        # A starving program takes a slot from any program that is not starving.
        return victim.rank[1] > 0
    return victim.rank[1] >= candidate.rank[1] + hysteresis_levels


def has_run_enough(call: Call, config: ProgramSchedConfig) -> bool:
    """Whether the call had its minimum run, doubled per earlier preemption."""
    backoff = min(call.preemptions, _MAX_BACKOFF)
    return call.run_tokens >= config.preempt_min_run_tokens << backoff


def pays(
    candidate_index: float,
    victim_index: float,
    recompute_tokens: int,
    release_interval_s: float,
    prefill_s_per_token: float,
) -> bool:
    """Whether taking the slot now is worth the recomputation.

    Args:
        candidate_index: The policy's index of the waiting call, service units.
        victim_index: The policy's index of the running call, service units.
        recompute_tokens: Tokens the victim would compute again.
        release_interval_s: Mean time until a slot becomes free by itself.
        prefill_s_per_token: Time to compute one token again.
    """
    ratio = candidate_index / victim_index if victim_index > 0 else 1.0
    gain_s = release_interval_s * (1.0 - min(1.0, ratio))
    return gain_s > recompute_tokens * prefill_s_per_token


def choose(
    candidate: Call,
    running: Iterable[Call],
    recompute_tokens: Callable[[Call], int],
    config: ProgramSchedConfig,
) -> tuple[Call, int] | None:
    """The victim for a candidate: worst tier and level, then cheapest to recompute.

    Args:
        candidate: The waiting call.
        running: Calls that may be preempted.
        recompute_tokens: Tokens lost if a call is preempted now, i.e. computed but
            neither in full cached blocks nor offloaded.
        config: Options.

    Returns:
        The victim and the tokens it would compute again, or None.
    """
    best: tuple[Call, int] | None = None
    best_key: tuple[int, int, int, int] | None = None
    for call in running:
        if best_key is not None and call.rank[:2] < best_key[:2]:
            continue
        if not is_worse(call, candidate, config.preempt_hysteresis_levels):
            continue
        if not has_run_enough(call, config):
            continue
        lost = recompute_tokens(call)
        key = (call.rank[0], call.rank[1], -lost, call.seq)
        if best_key is None or key > best_key:
            best, best_key = (call, lost), key
    return best
