# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The demo of one plugin: the program scheduler's unless another one is named.

Run from the repository root: ``python -m benchmarks.demo``.
"""

import sys
from collections.abc import Sequence

SEMANTIC_CACHE = "--vectorq"
HASH_ATTENTION = "--hashattn"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo that was asked for; return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Imported here, as each demo needs packages that the others do without.
    if SEMANTIC_CACHE in given:
        from benchmarks.vectorq import demo as semantic_cache

        return semantic_cache.main([word for word in given if word != SEMANTIC_CACHE])
    if HASH_ATTENTION in given:
        from benchmarks.hashattn import demo as hash_attention

        return hash_attention.main([word for word in given if word != HASH_ATTENTION])
    from benchmarks.program_sched import demo as program_scheduler

    if {"-h", "--help"} & set(given):
        print(f"With {SEMANTIC_CACHE} first: the demo of the semantic cache.")
        print(f"With {HASH_ATTENTION} first: the demo of hash attention.\n")
    return program_scheduler.main(given)


if __name__ == "__main__":
    sys.exit(main())
