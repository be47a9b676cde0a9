# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Engine-step measurements: shared step time, cost of a token, slot turnover."""

from __future__ import annotations

_DECAY = 0.98
_MAX_STEP_S = 5.0
_DEFAULT_PREFILL_S_PER_TOKEN = 1e-4
_MAX_UNMEASURED_S_PER_TOKEN = 1e-3


class StepMeter:
    """Running integrals and exponentially weighted means over engine steps.

    The integrals make accounting lazy: the wall time and the time share of a call
    between two moments are differences of ``elapsed_s`` and ``share_s``, so a step
    costs O(1) however many calls run.

    Attributes:
        elapsed_s: Wall time of all steps so far.
        share_s: Time share of one running call so far: the sum of step time divided
            by the number of calls in the step.
    """

    def __init__(self) -> None:
        """Start with no steps seen."""
        self.elapsed_s = 0.0
        self.share_s = 0.0
        self._weight = 0.0
        self._mean_tokens = 0.0
        self._mean_step_s = 0.0
        self._var_tokens = 0.0
        self._cov = 0.0
        # With no release yet, the wait so far is the best estimate there is.
        self._last_release_s = 0.0
        self._release_interval_s = 0.0

    def step(self, step_s: float, num_calls: int, num_tokens: int) -> None:
        """Record one engine step.

        Args:
            step_s: Wall time since the previous step began; clamped to 5 s, so a
                paused engine charges nobody.
            num_calls: Calls that ran in the step.
            num_tokens: Tokens computed in the step.
        """
        if num_calls == 0:
            return
        step_s = min(max(step_s, 0.0), _MAX_STEP_S)
        self.elapsed_s += step_s
        self.share_s += step_s / num_calls
        self._weight = _DECAY * self._weight + 1.0
        rate = 1.0 / self._weight
        dx = num_tokens - self._mean_tokens
        dy = step_s - self._mean_step_s
        self._mean_tokens += rate * dx
        self._mean_step_s += rate * dy
        self._var_tokens += rate * (dx * dx * (1.0 - rate) - self._var_tokens)
        self._cov += rate * (dx * dy * (1.0 - rate) - self._cov)

    def released(self) -> None:
        """Record that a running call gave its slot back by itself."""
        interval_s = self.elapsed_s - self._last_release_s
        if self._release_interval_s == 0.0:
            self._release_interval_s = interval_s
        else:
            self._release_interval_s += 0.1 * (interval_s - self._release_interval_s)
        self._last_release_s = self.elapsed_s

    @property
    def release_interval_s(self) -> float:
        """Mean time between slot releases, at least the time since the last one."""
        since_s = self.elapsed_s - self._last_release_s
        return max(self._release_interval_s, since_s)

    @property
    def prefill_s_per_token(self) -> float:
        """Marginal time of one more token in a step: the slope of step time."""
        if self._var_tokens > 1.0 and self._cov > 0.0:
            return self._cov / self._var_tokens
        if self._mean_tokens > 0.0:
            # Decode steps alone say little: their time hardly depends on tokens.
            return min(
                self._mean_step_s / self._mean_tokens, _MAX_UNMEASURED_S_PER_TOKEN
            )
        return _DEFAULT_PREFILL_S_PER_TOKEN
