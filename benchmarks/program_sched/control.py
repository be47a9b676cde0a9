# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How much of a difference between two runs is the machine's.

No order can change what a call takes that has the server to itself. If such calls took
longer in one run than in the other, the machine was slower, and by how much.
"""

import statistics

from benchmarks.program_sched.report import Cell

_FEWEST_CALLS = 10


def machine_ratio(cell: Cell, baseline: Cell) -> float | None:
    """Median time of calls that ran alone in both cells, `cell` over `baseline`.

    Returns:
        The ratio, or None when too few calls ran alone in both.
    """
    mine, theirs = _calls_alone_s(cell), _calls_alone_s(baseline)
    both = mine.keys() & theirs.keys()
    if len(both) < _FEWEST_CALLS:
        return None
    return statistics.median(mine[name] / theirs[name] for name in both)


def _calls_alone_s(cell: Cell) -> dict[tuple[str, str], float]:
    """Duration of every call during which no other call was in flight, in seconds."""
    calls = sorted(
        (call.submit_s, call.finish_s, program.program_id, call.call_id)
        for program in cell.programs
        for call in program.calls
    )
    alone = {}
    latest_finish_s = float("-inf")
    for index, (submit_s, finish_s, program_id, call_id) in enumerate(calls):
        following = calls[index + 1][0] if index + 1 < len(calls) else float("inf")
        if latest_finish_s <= submit_s and finish_s <= following:
            alone[program_id, call_id] = finish_s - submit_s
        latest_finish_s = max(latest_finish_s, finish_s)
    return alone
