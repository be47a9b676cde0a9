# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite

"""Benchmark of program-aware scheduling on a real vLLM engine."""
