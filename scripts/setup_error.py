# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The one way in which the set-up fails."""


class SetupError(Exception):
    """A step of the set-up that could not be done, and what to do about it."""

    def __init__(self, step: str, problem: str, remedy: str) -> None:
        """Build the message from the step, the problem and the remedy."""
        super().__init__(f"while {step}: {problem}.\nWhat to do: {remedy}.")
