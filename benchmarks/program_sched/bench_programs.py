# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How soon do programs finish: policies x arrival rates x seeds on a real engine.

Run from the repository root: ``python -m benchmarks.program_sched.bench_programs``.
One server per policy serves all rates and seeds. The result file is written after each
cell and a run with the same settings continues where the last one stopped.
"""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.program_sched.experiment import (
    let_learn,
    load_ratio,
    measure,
    measure_unloaded,
    prepare,
)
from benchmarks.program_sched.plot import plot_latency_cdf
from benchmarks.program_sched.policies import BASELINE, PolicySpec, policy_named
from benchmarks.program_sched.report import summarize, tables
from benchmarks.program_sched.results import ResultFile
from benchmarks.program_sched.server import VllmServer
from benchmarks.program_sched.workload import WorkloadParams
from scripts.model_cache import resolve_model


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _rates(text: str) -> list[float]:
    return [float(word) for word in _words(text)]


def _seeds(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _mix(text: str) -> tuple[float, ...]:
    return tuple(_rates(text))


def _parser() -> argparse.ArgumentParser:
    defaults = WorkloadParams()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.program_sched.bench_programs",
        description="Compare scheduling policies on seeded agent programs.",
    )
    parser.add_argument("--model", help="path or hub id (default: the demo model)")
    parser.add_argument(
        "--policies",
        type=_words,
        default=_words("fcfs,priority,mlfq,plas,atlas,gittins,srpt"),
        help="comma-separated; ours is the plugin with its default policy",
    )
    parser.add_argument("--rates", type=_rates, default=[0.2, defaults.rate])
    parser.add_argument("--seeds", type=_seeds, default=[1, 2, 3])
    parser.add_argument("--programs", type=int, default=defaults.programs)
    parser.add_argument(
        "--mix", type=_mix, default=defaults.mix, help="shares of chat,tools,tree"
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=40,
        metavar="N",
        help="unmeasured programs replayed on every server first, the same for every "
        "policy, so that one which learns is measured as on a server that has run",
    )
    parser.add_argument(
        "--unloaded",
        type=int,
        default=0,
        metavar="N",
        help="also run N programs of every seed one at a time on plain vLLM",
    )
    parser.add_argument("--out", type=Path, default=Path("results/program_sched"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing cells and print the tables; return the exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return _run(options)
    except (FileNotFoundError, ValueError, RuntimeError) as problem:
        print(f"bench_programs: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench_programs: interrupted; run it again to go on", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    model = options.model or resolve_model()
    policies = [policy_named(name) for name in options.policies]
    workload = dataclasses.asdict(_params(options, seed=0, rate=1.0, variant=""))
    for swept in ("seed", "rate", "text_variant"):
        del workload[swept]
    path = options.out / "results.json"
    results = ResultFile(
        path, {"model": model, "workload": workload, "warm_up": options.warm_up}
    )
    for policy in policies:
        _measure_policy(policy, model, results, options)
    cells = [cell for cell in results.cells if cell.policy in options.policies]
    pictures = plot_latency_cdf(cells, options.out / "latency_cdf")
    text = "\n\n".join([tables(cells), *_load_lines(results)])
    (options.out / "tables.txt").write_text(text + "\n")
    print(f"\n{text}\n\nAll rows: {results.path}")
    print(f"Plot:     {', '.join(str(picture) for picture in pictures)}")
    failures = sum(summarize(cell).failures for cell in cells)
    if failures:
        print(f"bench_programs: {failures} programs FAILED", file=sys.stderr)
    return 1 if failures else 0


def _params(
    options: argparse.Namespace, *, seed: int, rate: float, variant: str
) -> WorkloadParams:
    return WorkloadParams(
        seed=seed,
        programs=options.programs,
        rate=rate,
        mix=tuple(options.mix),
        text_variant=variant,
    )


def _measure_policy(
    policy: PolicySpec, model: str, results: ResultFile, options: argparse.Namespace
) -> None:
    missing = [
        (rate, seed)
        for rate in options.rates
        for seed in options.seeds
        if not results.has(policy.name, rate, seed)
    ]
    alone = list(_missing_unloaded(policy, results, options))
    if not missing and not alone:
        return
    print(f"\n== {policy.title} ==", file=sys.stderr)
    log = options.out / f"server-{policy.name}.log"
    with VllmServer(model, log, policy.server_flags) as vllm:
        prepare(vllm, policy)
        if missing:
            any_params = _params(options, seed=0, rate=2.0, variant="")
            let_learn(vllm, policy, any_params, options.warm_up)
        for seed in alone:
            params = _params(options, seed=seed, rate=1.0, variant="alone")
            cell = measure_unloaded(vllm, policy, params, options.unloaded)
            results.add(cell, unloaded=True)
        for rate, seed in missing:
            params = _params(options, seed=seed, rate=rate, variant=f"rate{rate:g}")
            results.add(measure(vllm, policy, params))


def _missing_unloaded(
    policy: PolicySpec, results: ResultFile, options: argparse.Namespace
) -> Iterator[int]:
    if policy.name == BASELINE and options.unloaded:
        measured = {cell.seed for cell in results.unloaded}
        yield from (seed for seed in options.seeds if seed not in measured)


def _load_lines(results: ResultFile) -> list[str]:
    """Say how loaded each rate is: latency over the unloaded one, per seed."""
    alone = {cell.seed: cell for cell in results.unloaded}
    by_rate: dict[float, list[float]] = {}
    for cell in results.cells:
        if cell.policy == BASELINE and cell.seed in alone:
            by_rate.setdefault(cell.rate, []).append(load_ratio(cell, alone[cell.seed]))
    return [
        f"{rate:g} program arrivals/s on plain vLLM: mean latency {median(found):.1f} "
        "x that of the same programs run one at a time "
        f"({min(found):.1f}-{max(found):.1f})"
        for rate, found in sorted(by_rate.items())
    ]


if __name__ == "__main__":
    sys.exit(main())
