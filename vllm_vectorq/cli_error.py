# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What goes wrong in the command line, in words for whoever typed it."""

from __future__ import annotations


class CliError(Exception):
    """The command cannot do what was asked; the message says what to do."""
