# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Scheduling policies: what each one sorts by.

A policy maps a call to ``(level, order)``; smaller is served first. Only a strictly
smaller *level* justifies preempting a running call, ``order`` decides inside a level.
``index`` is the same preference as a quantity of service, which the preemption rule
needs to weigh gain against cost.

Sources: Autellix (arXiv 2502.13965): PLAS eq. 1, ATLAS eq. 2, algorithm 1.
Program-FCFS: Continuum (arXiv 2511.02230). SRPT: Schrage 1968. Gittins: see
``life_table``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from vllm_program_sched.config import ProgramSchedConfig
from vllm_program_sched.levels import LevelBounds
from vllm_program_sched.life_table import ClassTables, bin_of
from vllm_program_sched.process_table import Call, Program

_INDEX_LEVELS = 15
_FIRST_INDEX = 32.0


class Policy(ABC):
    """Order of calls. Stateless but for what it learns from ended programs.

    Attributes:
        preemptive: Whether levels may differ, so that preemption makes sense.
        follows_service: Whether the rank of a call changes as service accrues.
        by_bin: Whether following it from bin to bin of the life tables is enough.
    """

    name = ""
    preemptive = True
    follows_service = True
    by_bin = False

    def __init__(self, config: ProgramSchedConfig, tables: ClassTables) -> None:
        """Keep the options and the learned distributions."""
        self.config = config
        self.tables = tables
        self.bounds = LevelBounds(config.levels, config.level_bounds)

    @abstractmethod
    def index(self, call: Call) -> float:
        """Preference as service units; smaller is served first."""

    def place(self, call: Call) -> tuple[int, float]:
        """Level and order inside the level."""
        return self.bounds.level_of(self.index(call)), float(call.queued_seq)

    def program_ended(self, program: Program) -> bool:
        """Learn from an ended program; returns whether all ranks may have moved."""
        return self.bounds.observe_end(self.tables.pooled)


class FCFS(Policy):
    """First come, first served over calls: plain vLLM order."""

    name = "fcfs"
    preemptive = False
    follows_service = False

    def index(self, call: Call) -> float:
        """Arrival order."""
        return float(call.seq)

    def place(self, call: Call) -> tuple[int, float]:
        """One level, arrival order."""
        return 1, float(call.seq)


class ProgramFCFS(Policy):
    """First come, first served over programs: the oldest program goes first."""

    name = "program_fcfs"
    preemptive = False
    follows_service = False

    def index(self, call: Call) -> float:
        """Arrival order of the program."""
        return float(call.program.seq)

    def place(self, call: Call) -> tuple[int, float]:
        """One level, arrival order of the program."""
        return 1, float(call.program.seq)


class QuantumPolicy(Policy):
    """Queues with quanta: start in the bin of ``inherited``, drop as quanta run out.

    With no quanta configured, a call drops when ``inherited + service`` crosses a
    bound; that is algorithm 1 with every quantum equal to what is left of its queue.
    """

    def inherited(self, call: Call) -> float:
        """Service a call starts with."""
        raise NotImplementedError

    def index(self, call: Call) -> float:
        """Service attributed to the call so far."""
        return self.inherited(call) + call.service

    def place(self, call: Call) -> tuple[int, float]:
        """The queue the call is in, first come first served inside it."""
        if not self.config.quanta:
            return self.bounds.level_of(self.index(call)), float(call.queued_seq)
        if call.queue_index == 0:
            call.queue_index = self.bounds.level_of(self.inherited(call))
            call.quantum_left = self.config.quanta[call.queue_index - 1] - call.service
        return call.queue_index, float(call.queued_seq)

    def spend(self, call: Call, service: float) -> bool:
        """Take service off the call's quantum; returns whether it ran out.

        The call then drops a queue; in the last queue it gets a new quantum there, and
        the caller sends it to the tail (the paper's figure 2 needs this round robin).
        """
        if not self.config.quanta or call.queue_index == 0:
            return False
        call.quantum_left -= service
        ran_out = call.quantum_left <= 0
        while call.quantum_left <= 0 and call.queue_index < self.config.levels:
            call.queue_index += 1
            call.quantum_left += self.config.quanta[call.queue_index - 1]
        if call.quantum_left <= 0:
            call.quantum_left = self.config.quanta[-1]
        return ran_out


class MLFQ(QuantumPolicy):
    """Multi-level feedback queue over calls; knows no programs (FastServe-like)."""

    name = "mlfq"

    def inherited(self, call: Call) -> float:
        """Every call starts in the best queue."""
        return 0.0


class PLAS(QuantumPolicy):
    """Program-level attained service: the sum over all calls of the program."""

    name = "plas"

    def inherited(self, call: Call) -> float:
        """Service of the program outside this call."""
        return call.program.attained_service - call.service


class ATLAS(QuantumPolicy):
    """Adaptive thread-level attained service: the longest observed critical path."""

    name = "atlas"

    def inherited(self, call: Call) -> float:
        """Critical path of the program when the call arrived."""
        return call.inherited_service


class IndexPolicy(Policy):
    """Orders by a continuous index; levels are its octaves.

    Octaves instead of calibrated bounds: preemption compares levels, and a victim two
    levels worse then has at least twice the candidate's index, at every scale.
    """

    def place(self, call: Call) -> tuple[int, float]:
        """Octave of the index, then the index itself."""
        value = self.index(call)
        if value <= _FIRST_INDEX:
            return 1, value
        octave = 2 + int(math.log2(value / _FIRST_INDEX))
        return min(octave, _INDEX_LEVELS), value


class SRPT(IndexPolicy):
    """Shortest remaining processing time, told by the client: the oracle."""

    name = "srpt"

    def index(self, call: Call) -> float:
        """Remaining service; programs that told none come after those that did."""
        remaining = call.program.oracle_remaining
        return math.inf if remaining is None else remaining

    def place(self, call: Call) -> tuple[int, float]:
        """As the base class, with unknown programs in the last level."""
        if call.program.oracle_remaining is None:
            return _INDEX_LEVELS, float(call.seq)
        return super().place(call)


class Gittins(IndexPolicy):
    """Inverse Gittins index of the program's remaining service, learned per class."""

    name = "gittins"
    by_bin = True

    def index(self, call: Call) -> float:
        """Service still to invest per expected completion."""
        program = call.program
        table = self.tables.known(program.class_key)
        return table.service_per_completion(program.attained_service)

    def program_ended(self, program: Program) -> bool:
        """Distributions moved, but ranks follow lazily as their programs progress."""
        return False


_CLASSES: dict[str, type[Policy]] = {
    cls.name: cls for cls in (FCFS, ProgramFCFS, MLFQ, PLAS, ATLAS, SRPT, Gittins)
}


def make_policy(config: ProgramSchedConfig, tables: ClassTables) -> Policy:
    """Build the configured policy."""
    return _CLASSES[config.policy](config, tables)


def life_bin(program: Program) -> int:
    """Bin of the program's attained service in the life tables."""
    return bin_of(program.attained_service)
