# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``vllm-vectorq inspect``: what is stored."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from .cli_error import CliError
from .cli_progress import Progress
from .cli_store import reading, sqlite_url, store_url
from .cli_summary import PartitionSummary, StoreSummary, summary_of
from .cli_table import duration, size, table
from .service import cache_directory
from .store import StoreError, without_password

SHOWN = 10
_FACTS = ("namespace", "model", "lora", "protocol", "tenant", "cache_salt")
_HASH_CHARS = 8
_EXAMPLE = """\
examples:
  vllm-vectorq inspect
  vllm-vectorq inspect sqlite:///var/cache/vectorq.db --all
  vllm-vectorq inspect postgresql://user@host/database --json
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "inspect",
        help="show what a store holds",
        description="Show the partitions, entries, labels and size of a store. A "
        "server may be using it; nothing is changed.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "store",
        nargs="?",
        help="URL or SQLite file; without it all stores in the default directory",
    )
    parser.add_argument(
        "--all", action="store_true", help=f"all partitions, not the {SHOWN} largest"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Inspect one store or all of them; return the exit status."""
    if options.store is not None:
        urls = [store_url(options.store)]
    else:
        urls = [sqlite_url(path) for path in sorted(cache_directory().glob("*.db"))]
    found = []
    status = 0
    for url in urls:
        try:
            found.append(_inspected(url, options.all))
        except (CliError, StoreError) as error:
            # One that cannot be read does not hide the others.
            if options.store is not None:
                raise
            print(f"vllm-vectorq: {url}: {error}", file=sys.stderr)
            status = 1
    if options.json:
        print(json.dumps({"stores": found}, indent=2, ensure_ascii=False))
    elif not urls:
        print(f"There are no stores in {cache_directory()}.")
    else:
        print("\n\n".join(map(_shown, found)))
    return status


def _inspected(url: str, everything: bool) -> dict[str, Any]:
    now_s = time.time()
    progress = Progress("read records")
    with reading(url) as (store, size_bytes):

        def counted() -> Any:  # noqa: ANN401
            for count, record in enumerate(store.load()):
                progress(count)
                yield record

        summary: StoreSummary = summary_of(counted(), now_s)
    progress.end()
    partitions = summary.partitions if everything else summary.partitions[:SHOWN]
    return {
        "url": without_password(url),
        "bytes": size_bytes,
        "partitions": len(summary.partitions),
        **summary.total.as_dict(now_s),
        "largest_partitions": [_plain(found, now_s) for found in partitions],
    }


def _plain(partition: PartitionSummary, now_s: float) -> dict[str, Any]:
    return {
        "partition": partition.digest.hex(),
        "facts": partition.facts,
        **partition.as_dict(now_s),
    }


def _shown(store: Mapping[str, Any]) -> str:
    lines = [
        store["url"],
        f"  {size(store['bytes'])} on disk",
        f"  {store['partitions']} partitions, {store['answers']} answers",
        f"  {store['entries']} entries, {store['semantic_entries']} found by meaning",
    ]
    if store["entries"]:
        lines.append(
            f"  oldest entry {duration(store['oldest_age_s'])}, newest "
            f"{duration(store['newest_age_s'])}, {store['expiring_within_1h']} expire "
            "within an hour"
        )
    for source, labels in store["labels"].items():
        lines.append(
            f"  labels by {source}: {labels['right']} right, {labels['wrong']} wrong"
        )
    if store["largest_partitions"]:
        lines += ["", _partitions(store)]
    left_out = store["partitions"] - len(store["largest_partitions"])
    if left_out:
        lines.append(f"and {left_out} smaller partitions (--all shows them)")
    return "\n".join(lines)


def _partitions(store: Mapping[str, Any]) -> str:
    header = ("partition", "entries", "answers", "right", "wrong", "oldest", "newest")
    rows = []
    for found in store["largest_partitions"]:
        labels = found["labels"].values()
        ages = (found["oldest_age_s"], found["newest_age_s"])
        rows.append(
            (
                found["partition"][:16],
                str(found["entries"]),
                str(found["answers"]),
                str(sum(label["right"] for label in labels)),
                str(sum(label["wrong"] for label in labels)),
                *("-" if age_s is None else duration(age_s) for age_s in ages),
                str(found["expiring_within_1h"]),
                _readable(found["facts"]),
            )
        )
    return table((*header, "expiring", "facts"), rows)


def _readable(facts: Mapping[str, str]) -> str:
    parts = []
    for name in _FACTS:
        value = facts.get(name, "")
        if name in ("tenant", "cache_salt"):
            value = value[:_HASH_CHARS]
        if value:
            parts.append(f"{name}={value}")
    return " ".join(parts)
