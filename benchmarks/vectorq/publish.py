# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Writes what was measured of the semantic cache into the documents.

Run from the repository root: ``python -m benchmarks.vectorq.publish``. It reads the
files that ``bench_quality``, ``bench_latency``, ``bench_judge``, ``budget`` and
``coverage`` left in ``benchmarks/vectorq/results``.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measured_block import table, with_block
from benchmarks.vectorq.quality_plan import STUDIED_DELTA
from benchmarks.vectorq.quality_policies import SUITE
from benchmarks.vectorq.quality_streams import BANKING, DRIFT

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("benchmarks/vectorq/results")
NAMES = ("quality", "latency", "judge", "budget", "coverage")
WRITER = "benchmarks.vectorq.publish"

Report = dict[str, Any]
Reports = dict[str, Report]
Row = dict[str, Any]

_SHUFFLED = "shuffled"
_RIVALS = {
    SUITE: "`suite`",
    "vcache": "`vcache`, the defaults here",
    "vcache_paper": "`vcache`, without the floor per hit",
    "vectorq_v1": "`vectorq_v1`",
}
_PARTS = {
    "no_projection": "the fitted projection",
    "no_lexical_features": "agreement in words as a feature",
    "no_correction": "the correction measured on labels",
    "no_pruning": "keeping only entries that add something",
    "no_cold_start": "serving before the first own fit",
    "no_caution": "holding back part of the budget while labels are few",
}
_STAGES = {
    "exact": "exact look-up",
    "search": "nearest entries",
    "signature": "signature of the text, for the guards",
    "guards": "guards",
    "decide": "decision",
}
_LOOKUPS = {
    "exact": "whole look-up, exact hit",
    "semantic": "whole look-up, semantic hit",
    "miss": "whole look-up, miss",
}
_COMPARATORS = {
    "row_per_hit": "flat search and a database row per hit (as in GPTCache)",
    "fit_per_request": "flat search and a fit per request (as in vCache)",
}


_SIMULATION_TEXT = (
    "**Policies that learn per entry**, in simulations in which their assumption "
    "holds: each entry is right by a sigmoid of its own. Then labels are flipped, or "
    "all answers grow old at half time (the boundary of every sigmoid moves up):"
)
_SIMULATED_DELTA = 0.02
_JUDGES = ("equality", "embedding", "chain")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the documents; return the exit status."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.vectorq.publish",
        description="Write measured numbers into README and docs.",
    ).parse_args(arguments)
    try:
        reports = read_reports(ROOT)
    except (OSError, ValueError) as problem:
        print(f"publish: {problem}; finish that benchmark first", file=sys.stderr)
        return 1
    for name, block in DOCUMENTS.items():
        path = ROOT / name
        text = with_block(path.read_text("utf-8"), WRITER, block(reports))
        path.write_text(text, "utf-8")
        print(name)
    return 0


def read_reports(root: Path) -> Reports:
    """Return all result files by name.

    Raises:
        OSError: One is missing.
        ValueError: One is no JSON.
    """
    return {
        name: json.loads((root / RESULTS / f"{name}.json").read_text("utf-8"))
        for name in NAMES
    }


def readme_block(reports: Reports) -> str:
    """Return what the README says."""
    quality = reports["quality"]
    shown = [
        row
        for row in _own(quality, _SHUFFLED)
        if row["delta"] == STUDIED_DELTA
        or (row["source"] == BANKING and row["delta"] in (0.0025, 0.02))
    ]
    return "\n\n".join(
        (
            "Public question sets as streams of requests; classes are known, every run "
            "starts with an empty cache and the guards are on. "
            + _orders(quality)
            + "The last column is the fixed similarity threshold that would have "
            "served most at the same share of wrong answers, found afterwards with all "
            "labels.",
            _policy_table(quality, shown),
            _cost(reports["latency"]),
        )
    )


def gains_block(reports: Reports) -> str:
    """Return what the cache's own page says."""
    quality, latency = reports["quality"], reports["latency"]
    return "\n\n".join(
        (
            _setting(quality),
            _policy_table(quality, _own(quality, _SHUFFLED)),
            "With intents that come and go instead of a random order:",
            _policy_table(quality, _own(quality, DRIFT)),
            "![Hits against wrong answers](images/frontier.svg)",
            "Other policies on the same streams, same guards, random orders:",
            _rival_table(quality),
            "![Errors over time](images/error_over_time.svg)",
            "![Expected and observed errors](images/calibration.svg)",
            _trap_text(quality),
            _trap_table(quality),
            (
                "**Judged answers.** The classes are not known; each question gets an "
                "answer from templates, and the default judges compare answers:"
            ),
            _answer_table(quality),
            "**Judges that err.** A share of all labels is flipped:",
            _noise_table(quality),
            "### What it costs",
            _cost(latency),
            _stage_table(latency),
            (
                "Through a real server, the whole answer; many clients on few cores "
                "wait for each other:"
            ),
            _server_table(latency),
            _memory(latency),
            "![Latency and memory](images/latency.svg)",
        )
    )


def parts_block(reports: Reports) -> str:
    """Return what each part of the policy is good for, and how others fare."""
    quality = reports["quality"]
    whole = next(
        row
        for row in _own(quality, _SHUFFLED)
        if row["source"] == BANKING and row["delta"] == STUDIED_DELTA
    )
    rows = [["nothing", *_rates(whole)]]
    for row in quality["ablations"]:
        name = row["policy"].removeprefix(f"{SUITE} ")
        rows.append([_PARTS[name], *_rates(row)])
    unguarded = next(
        row
        for row in quality["summary"]
        if (row["source"], row["policy"], row["guards"]) == (BANKING, SUITE, False)
        and (row["order"], row["delta"]) == (_SHUFFLED, STUDIED_DELTA)
    )
    rows.append(["the guards", *_rates(unguarded)])
    return "\n\n".join(
        (
            f"On {BANKING} at a budget of {_percent(STUDIED_DELTA)}:",
            table(["without", *_RATES, "entries kept"], rows),
            _SIMULATION_TEXT,
            _simulation_table(reports["budget"]),
            _coverage(reports["coverage"]),
            "![Coverage of the band](images/coverage.svg)",
            _judge_text(reports["judge"]),
            _judge_table(reports["judge"]),
        )
    )


DOCUMENTS: dict[str, Callable[[Reports], str]] = {
    "README.md": readme_block,
    "docs/vectorq/index.md": gains_block,
    "docs/vectorq/how-it-decides.md": parts_block,
}
_RATES = ("orders", "hits", "wrong per request", "worst order", "wrong per hit")


def _percent(share: float, digits: int = 2) -> str:
    text = f"{100 * share:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if digits > 1 else text} %"


def _fixed(share: float) -> str:
    return f"{100 * share:.2f} %"


def _orders(quality: Report) -> str:
    plan = quality["settings"]["plan"]
    return (
        f"Means over {plan['shuffles']} orders of {BANKING} and "
        f"{plan['further_shuffles']} of each other set. "
    )


def _setting(quality: Report) -> str:
    sets = quality["settings"]["sets"]
    sizes = ", ".join(
        f"{name} {each['questions']:,} questions in {each['classes']:,} classes"
        for name, each in sets.items()
    )
    return (
        f"{sizes}. The questions of a class count as asking for the same answer, every "
        "run starts with an empty cache, embeddings are those of all-MiniLM-L6-v2. "
        + _orders(quality)
        + "*Hindsight*: the fixed similarity threshold that would have served most at "
        "the same share of wrong answers, with or without guards, found afterwards "
        "with all labels of that order."
    )


def _own(quality: Report, order: str) -> list[Row]:
    rows = [
        row
        for row in quality["summary"]
        if row["policy"] == SUITE and row["guards"] and row["order"] == order
    ]
    return sorted(rows, key=lambda r: (r["source"] != BANKING, r["source"], r["delta"]))


def _policy_table(quality: Report, rows: list[Row]) -> str:
    head = [
        "questions",
        "budget `delta`",
        "hits",
        "wrong per request",
        "worst order",
        "wrong per hit",
        "hindsight: hits",
    ]
    cells = []
    for row in rows:
        rivals = [
            each["static"]
            for each in quality["hindsight"]
            if (each["source"], each["delta"]) == (row["source"], row["delta"])
            and (each["order"] == DRIFT) == (row["order"] == DRIFT)
        ]
        cells.append(
            [
                row["source"],
                _percent(row["delta"]),
                _percent(row["hit_rate"]["mean"], 1),
                _fixed(row["error_per_request"]["mean"]),
                _fixed(row["error_per_request"]["max"]),
                _fixed(row["error_per_hit"]["mean"]),
                _percent(sum(rivals) / len(rivals), 1),
            ]
        )
    return table(head, cells)


def _rates(row: Row) -> list[str]:
    return [
        str(row["runs"]),
        _percent(row["hit_rate"]["mean"], 1),
        _fixed(row["error_per_request"]["mean"]),
        _fixed(row["error_per_request"]["max"]),
        _fixed(row["error_per_hit"]["mean"]),
        f"{row['entries']:,}",
    ]


def _rival_table(quality: Report) -> str:
    rows = []
    for source in quality["settings"]["sets"]:
        for policy, title in _RIVALS.items():
            rows += [
                [source, title, _percent(row["delta"]), *_rates(row)]
                for row in quality["summary"]
                if (row["source"], row["policy"]) == (source, policy)
                and row["guards"]
                and row["order"] == _SHUFFLED
                and row["delta"] in (STUDIED_DELTA, 2 * STUDIED_DELTA)
            ]
    head = ["questions", "policy", "budget `delta`", *_RATES, "entries kept"]
    return table(head, rows)


def _trap_text(quality: Report) -> str:
    row = quality["traps"][0]
    return (
        "**Trap pairs.** Question pairs of the package `fow-cache` as one stream: "
        f"{row['rephrasings']} times the second question asks the same in other words, "
        f"{row['traps']} times it differs in a detail that changes the answer."
    )


def _trap_table(quality: Report) -> str:
    rows = []
    for row in quality["traps"]:
        served = row["rephrasings_served"]["mean"] / row["rephrasings"]
        wrong = row["traps_answered_wrongly"]["mean"] / row["traps"]
        guards = "with guards" if row["guards"] else "no guards"
        budget = f", budget {_percent(row['delta'])}" if row["delta"] else ""
        rows.append(
            [
                f"`{row['policy']}`, {guards}{budget}",
                _percent(served, 1),
                _fixed(wrong),
                _fixed(row["error_per_request"]["max"]),
            ]
        )
    head = [
        "policy",
        "rephrasings served",
        "traps answered wrongly",
        "wrong per request, worst order",
    ]
    return table(head, rows)


def _answer_table(quality: Report) -> str:
    rows = [
        [
            "worded alike" if row["alike"] else "worded apart",
            row["order"],
            _percent(row["hit_rate"], 1),
            _fixed(row["error_per_request"]),
            _percent(row["oracle_hit_rate"], 1),
            _fixed(row["oracle_error_per_request"]),
            _percent(row["share_of_oracle_hits"], 0),
        ]
        for row in quality["answers"]
    ]
    head = [
        "answers of different classes",
        "order",
        "hits",
        "wrong",
        "hits with known classes",
        "wrong",
        "share of those hits",
    ]
    return table(head, rows)


def _noise_table(quality: Report) -> str:
    rows = [
        [_percent(row["judge_noise"]), *_rates(row)] for row in quality["judge_noise"]
    ]
    return table(["flipped", *_RATES, "entries kept"], rows)


def _cost(latency: Report) -> str:
    row = latency["stages"][-1]
    environment = latency["environment"]["stages"]
    return (
        f"In the process, with {row['entries']:,} entries of one partition, on "
        f"{environment['cores']} cores ({environment['cpu']}): beyond its embedding a "
        f"semantic hit takes {row['lookup']['semantic']['p50_ms']:.2f} ms (median), a "
        f"miss adds {row['lookup']['miss']['p99_ms']:.2f} ms (99th percentile), and "
        f"the decision takes {1000 * row['stages']['decide']['p50_ms']:.0f} µs."
    )


def _stage_table(latency: Report) -> str:
    stages = latency["stages"]
    head = [""]
    for row in stages:
        head += [f"{row['entries']:,} entries: p50", "p99"]

    def rows(part: str, titles: dict[str, str]) -> Iterator[list[str]]:
        for name, title in titles.items():
            cells = [title]
            for row in stages:
                times = row[part][name]
                cells += [f"{times['p50_ms']:.3f} ms", f"{times['p99_ms']:.3f} ms"]
            yield cells

    return table(
        head,
        [
            *rows("stages", _STAGES),
            *rows("lookup", _LOOKUPS),
            *rows("comparators", _COMPARATORS),
        ],
    )


def _server_table(latency: Report) -> str:
    rows = [
        [
            str(row["clients"]),
            f"{row['exact_hit_p50_ms']:.1f} / {row['exact_hit_p99_ms']:.1f} ms",
            f"{row['semantic_hit_p50_ms']:.1f} / {row['semantic_hit_p99_ms']:.1f} ms",
            f"{row['semantic_hit_p50_beyond_embedding_ms']:.1f} ms",
            f"{row['render_only_p50_ms']:.1f} ms",
        ]
        for row in latency["server"]["summary"]
    ]
    head = [
        "clients",
        "exact hit p50 / p99",
        "semantic hit p50 / p99",
        "semantic p50 beyond the embedding",
        "rendering alone, without a cache, p50",
    ]
    return table(head, rows)


def _memory(latency: Report) -> str:
    row, soak = latency["stages"][-1], latency["soak"]
    return (
        f"An entry takes {row['memory_bytes_per_entry']['rss_with_graph'] / 1024:.1f} "
        f"KiB of memory, and {row['store_bytes_per_entry'] / 1024:.1f} KiB in SQLite; "
        f"a start with {row['entries']:,} takes {row['start_s']:.0f} s. Over the "
        f"second half of {soak['requests']:,} mixed requests memory changed by "
        f"{soak['slope_mib_per_100k_requests']:+.1f} MiB per 100,000 requests."
    )


def _simulation_table(budget: Report) -> str:
    settings = budget["settings"]
    rows = [
        [
            f"`{row['policy']}`",
            _percent(row["judge_noise"]),
            f"{row['drift']:g}",
            _percent(row["hit_rate"], 1),
            _fixed(row["error_per_request"]),
            _fixed(row["error_per_request_worst_seed"]),
            _fixed(row["error_per_hit"]),
        ]
        for row in budget["rows"]
        if row["delta"] == _SIMULATED_DELTA
    ]
    head = [
        f"policy, budget {_percent(_SIMULATED_DELTA)}",
        "labels flipped",
        "boundaries move by",
        "hits",
        f"wrong per request, {settings['seeds']} seeds",
        "worst seed",
        "wrong per hit",
    ]
    return table(head, rows)


def _coverage(coverage: Report) -> str:
    settings, cells = coverage["settings"], coverage["cells"]
    lines = []
    for column, epsilon in enumerate(settings["epsilons"]):
        found = [cell["coverage"][column] for cell in cells]
        lines.append(
            f"{_percent(1.0 - epsilon, 0)}: {_percent(sum(found) / len(found), 1)} "
            f"(worst {_percent(min(found), 1)})"
        )
    return (
        f"The bound of `vcache` lies below the truth as often as it says, on average "
        f"over {len(cells)} kinds of entries (boundary, slope, number of labels) with "
        f"{settings['repeats']} draws each. Asked for {'; '.join(lines)}. The worst "
        f"are entries unlike those that its prior expects."
    )


def _judge_text(judge: Report) -> str:
    return (
        f"**Judges** on paraphrased answers of one sentence "
        f"({judge['data']['questions'][1]:,} questions of ParaQA that did not choose "
        f"the thresholds, {judge['thresholds']['same_at']:g} and "
        f"{judge['thresholds']['different_at']:g}), wrong verdicts with 95 % intervals:"
    )


def _judge_table(judge: Report) -> str:
    rows = []
    for name in _JUDGES:
        for kind, row in judge["judges"][name].items():
            low, high = row["wrong_share_95"]
            pairs = row["pairs"]
            rows.append(
                [
                    f"`{name}`",
                    kind,
                    f"{pairs:,}",
                    *(
                        _percent(row[verdict] / pairs, 1)
                        for verdict in ("same", "different", "undecided")
                    ),
                    f"{_fixed(row['wrong_share'])} ({_fixed(low)} to {_fixed(high)})",
                ]
            )
    head = ["judge", "pairs of", "pairs", "same", "different", "undecided", "wrong"]
    return table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
