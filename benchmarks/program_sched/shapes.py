# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How large agent programs are, and how far a workload scales them down.

Source: Autellix (arXiv 2502.13965, section 6), which gives the moments of ShareGPT
conversations, BFCL tool loops and LATS trees. Deviations: the distributions are not
published, so counts and lengths are log-normal (heavy tailed) with the published
means and maxima; the maximum of trees and all pauses are ours; a conversation stops
when its context would exceed `max_context_tokens`.
"""

from dataclasses import dataclass

from benchmarks.program_sched.prose import Kind

KINDS: tuple[Kind, ...] = ("chat", "tools", "tree")

# What the chat template adds around one message, and the length of a system
# prompt: used for estimates only, the engine reports the real counts.
MESSAGE_OVERHEAD_TOKENS = 5
SYSTEM_TOKENS: dict[Kind, int] = {"chat": 110, "tools": 387, "tree": 104}

# Mean pause before a follow-up call: a person reads and types, a tool runs, a
# search program does a little bookkeeping. Scaled down like everything else.
PAUSE_S: dict[Kind, float] = {"chat": 0.5, "tools": 0.25, "tree": 0.05}


@dataclass(frozen=True, slots=True)
class Shape:
    """Published moments of one kind of program (unscaled)."""

    mean_calls: float
    max_calls: int
    new_prompt_tokens: float
    output_tokens: float
    calls_sigma: float
    tokens_sigma: float


SHAPES: dict[Kind, Shape] = {
    "chat": Shape(6.66, 80, 255.65, 276.81, calls_sigma=1.0, tokens_sigma=0.6),
    "tools": Shape(10.75, 70, 735.06, 34.14, calls_sigma=0.8, tokens_sigma=0.5),
    "tree": Shape(159.71, 480, 467.24, 72.64, calls_sigma=0.25, tokens_sigma=0.4),
}


@dataclass(frozen=True, slots=True)
class WorkloadParams:
    """How many programs, of what kind and size, arriving how fast.

    Attributes:
        seed: Decides everything; two rates with one seed hold the same programs.
        programs: Number of programs.
        rate: Program arrivals per second (Poisson).
        mix: Shares of chat, tools and tree; normalised. The default, equal
            shares, is the paper's "Mixed" workload.
        call_scale: Factor on the call counts of chat and tools.
        tree_call_scale: Factor on the call counts of trees.
        tree_fan_out: Smallest and largest number of parallel calls of a round.
        token_scale: Factor on all token counts.
        min_output_tokens: Floor of a call's output length after scaling.
        max_output_tokens: Ceiling of a call's output length after scaling.
        max_context_tokens: A call never needs more than this (prompt + output).
        think_scale: Factor on the mean pauses `PAUSE_S`.
        text_variant: Other words, same shapes; keeps two runs on one server from
            finding each other's prompts in the prefix cache.
    """

    seed: int = 1
    programs: int = 60
    rate: float = 1.0
    mix: tuple[float, float, float] = (1.0, 1.0, 1.0)
    call_scale: float = 0.5
    tree_call_scale: float = 0.1
    tree_fan_out: tuple[int, int] = (3, 4)
    token_scale: float = 0.1
    min_output_tokens: int = 8
    max_output_tokens: int = 160
    max_context_tokens: int = 3600
    think_scale: float = 1.0
    text_variant: str = ""

    def __post_init__(self) -> None:
        """Reject values that cannot describe a workload."""
        if self.programs < 1 or self.rate <= 0:
            raise ValueError(
                f"programs={self.programs}, rate={self.rate}: both must be positive"
            )
        if len(self.mix) != len(KINDS) or min(self.mix) < 0 or sum(self.mix) <= 0:
            raise ValueError(
                f"mix={self.mix}: give three non-negative shares, chat/tools/tree"
            )
