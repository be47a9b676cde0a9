# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The documentation and the code name the same things, with the same defaults."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from vllm_vectorq import cli, tightening
from vllm_vectorq.admin_api import VectorQEndpoint
from vllm_vectorq.admin_request import FACTS
from vllm_vectorq.cacheability import Bypass
from vllm_vectorq.config import JUDGES, POLICIES, SAMPLED, TENANTS, VectorQConfig
from vllm_vectorq.http_identity import Outcome, response_headers
from vllm_vectorq.metrics import CacheMetrics
from vllm_vectorq.request import Answer, Hit, Stage

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "vectorq"
OPTIONS = FOLDER / "options.md"
METRICS = FOLDER / "metrics.md"
PAGES = [
    *sorted(FOLDER.glob("*.md")),
    ROOT / "README.md",
    ROOT / "docs" / "index.md",
    ROOT / "vllm_vectorq" / "README.md",
    ROOT / "vllm_vectorq" / "CHANGELOG.md",
]
CHOICES: dict[str, tuple[str, ...]] = {
    "policy": POLICIES,
    "sampled": SAMPLED,
    "tenants": TENANTS,
    "judges": JUDGES,
}


def tables(page: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """Every table of a page: the section it stands in, and its rows of cells."""
    section, rows = "", []
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if rows:
            yield section, rows[2:]
            rows = []
        if line.startswith("#"):
            section = line.lstrip("# ")


def table(page: Path, section: str) -> dict[str, list[str]]:
    """The one table of a section, by the name in its first column."""
    [rows] = [rows for name, rows in tables(page) if name == section]
    return {row[0].strip("`"): row[1:] for row in rows}


def quoted(text: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`]*)`", text)


def written(value: Any) -> str:  # noqa: ANN401
    """An option's value as the documentation writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.0f}" if value == math.floor(value) else repr(value)


def default_of(name: str) -> str:
    """An option's default as the documentation writes it."""
    value = getattr(VectorQConfig(), name)
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"`{written(value)}`"


def test_every_option_is_documented_with_its_default() -> None:
    documented = {name: row[0] for name, row in table(OPTIONS, "Options").items()}
    assert documented == {name: default_of(name) for name in VectorQConfig.names()}


def ranges() -> list[tuple[str, float, float]]:
    """Options whose values are documented as a range."""
    found = []
    for name, row in table(OPTIONS, "Options").items():
        limits = re.fullmatch(r"(-?[\d.]+) to ([\d.]+)", row[1])
        if limits is not None:
            found.append((name, float(limits[1]), float(limits[2])))
    return found


def test_every_number_has_a_range() -> None:
    numbers = {
        name
        for name in VectorQConfig.names()
        if type(getattr(VectorQConfig(), name)) in (int, float)
    }
    assert {name for name, _, _ in ranges()} == numbers


@pytest.mark.parametrize(("name", "low", "high"), ranges())
def test_documented_ranges_are_those_of_the_code(
    name: str, low: float, high: float
) -> None:
    whole = isinstance(getattr(VectorQConfig(), name), int)
    for limit, outwards in ((low, -1), (high, 1)):
        value = int(limit) if whole else limit
        beyond = value + outwards if whole else math.nextafter(limit, outwards * 1e18)
        VectorQConfig(**{name: value})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"vectorq.{name}="):
            VectorQConfig(**{name: beyond})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CHOICES)
def test_documented_choices_are_those_of_the_code(name: str) -> None:
    assert sorted(quoted(table(OPTIONS, "Options")[name][1])) == sorted(CHOICES[name])


def test_every_policy_and_judge_is_explained() -> None:
    page = FOLDER / "how-it-decides.md"
    assert set(table(page, "Other policies")) == set(POLICIES)
    assert set(table(page, "Labels")) == set(JUDGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_options_that_exist(page: Path) -> None:
    named = re.findall(
        r"--additional-config\.vectorq\.([a-z_]+)", page.read_text(encoding="utf-8")
    )
    assert set(named) <= set(VectorQConfig.names())


def test_defaults_in_the_root_readme_are_those_of_the_code() -> None:
    documented = table(ROOT / "README.md", "Options of the semantic cache")
    assert documented
    for name, row in documented.items():
        assert row[0].strip("`") == default_of(name).strip("`"), name


def test_every_metric_is_documented_with_its_type() -> None:
    registry = CollectorRegistry()
    CacheMetrics().register(registry)
    made = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in registry.collect()
    }
    documented = {
        name.partition("{")[0]: row[0]
        for name, row in table(METRICS, "Metrics").items()
    }
    assert documented == made


def test_every_reason_for_leaving_a_request_alone_is_documented() -> None:
    documented = table(OPTIONS, "Requests that are left alone")
    assert set(documented) == {reason.value for reason in Bypass}


def test_every_request_control_is_documented() -> None:
    documented = set(table(OPTIONS, "Request controls"))
    xargs: dict[str, object] = dict.fromkeys(documented)
    assert tightening.parse_controls(xargs) == tightening.UNCHANGED
    with pytest.raises(tightening.MalformedControlError) as refusal:
        tightening.parse_controls({"vectorq_unknown": 1})
    known = str(refusal.value).partition("the fields are ")[2]
    assert set(known.split(", ")) == documented


def test_every_response_header_and_stage_is_documented() -> None:
    hit = Hit(Answer("a", (1,), None, 0.0), "exact", 1, 1.0, 1.0, 0.0)
    outcomes = [Outcome("hit", hit=hit), Outcome("bypass", reason="fault")]
    sent = {name for outcome in outcomes for name in response_headers([outcome])}
    documented = table(OPTIONS, "Response headers")
    assert set(documented) == sent
    assert set(quoted(documented["x-vectorq-stage"][1])) == set(get_args(Stage))


def test_every_admin_route_is_documented() -> None:
    app = FastAPI()
    VectorQEndpoint().attach_router(app)
    routes = {path for path in app.openapi()["paths"] if "vectorq" in path}
    page = METRICS.read_text(encoding="utf-8")
    assert set(re.findall(r"localhost:8000(/\S+)", page)) == routes
    conditions = {
        name
        for fields in table(METRICS, "Invalidate")
        for name in re.findall(r"\w+", fields)
    }
    assert conditions == {*FACTS, "prefix", "everything"}


def test_every_command_is_documented() -> None:
    [commands] = [
        action
        for action in cli._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    page = (FOLDER / "operations.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    vllm-vectorq (\w+)", page, re.MULTILINE)
    assert set(shown) == set(commands.choices)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
