# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``replay`` and ``plot``: logs, results and pictures."""

import json
import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_vectorq.cli import main
from vllm_vectorq.cli_error import CliError
from vllm_vectorq.cli_log import read_log
from vllm_vectorq.cli_result import calibration, read_result, run_result, timeline
from vllm_vectorq.replay import Outcome

# -- logs --------------------------------------------------------------------------


def log_of(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "log.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def test_classes_are_numbered_as_they_come(tmp_path: Path) -> None:
    lines = [{"text": t, "class": c} for t, c in (("a", "x"), ("b", 7), ("c", "x"))]
    log = read_log(log_of(tmp_path, *lines, "", {"text": "d", "class": "7"}))
    assert log.texts == ["a", "b", "c", "d"]
    assert log.classes.tolist() == [0, 1, 0, 2]


def test_answers_are_one_class_when_they_say_the_same(tmp_path: Path) -> None:
    answers = ("It is 4,806 m.", "it is 4806 m", "It is 4807 m.")
    lines = [{"text": "How tall?", "answer": answer} for answer in answers]
    assert read_log(log_of(tmp_path, *lines)).classes.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("5", "is not an object"),
        ({"class": "x"}, "has no text"),
        ({"text": " ", "class": "x"}, "has no text"),
        ({"text": 5, "class": "x"}, "has no text"),
        ({"text": "a"}, "needs either a class or an answer"),
        ({"text": "a", "class": 1, "answer": "b"}, "needs either a class or an answer"),
        ({"text": "a", "answer": "b"}, "has no class as the lines before it have"),
        ({"text": "a", "class": None}, "has the class None"),
        ({"text": "a", "class": True}, "has the class True"),
        ({"text": "a", "class": 1.5}, "has the class 1.5"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, reason: str) -> None:
    path = log_of(tmp_path, {"text": "first", "class": "x"}, "", line)
    with pytest.raises(CliError) as error:
        read_log(path)
    assert str(error.value).startswith(f"{path}, line 3: {reason}")


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="holds no requests"):
        read_log(log_of(tmp_path, "", " "))


# -- results -----------------------------------------------------------------------


def outcome(n: int, seed: int = 0) -> Outcome:
    chance = np.random.default_rng(seed)
    hit = chance.random(n) < 0.6
    return Outcome(
        hit=hit,
        wrong=hit & (chance.random(n) < 0.1),
        probability=chance.random(n).astype(np.float32),
    )


@pytest.mark.parametrize("n", [1, 7, 50, 1_234])
def test_the_timeline_ends_with_the_whole(n: int) -> None:
    measured = outcome(n)
    points = timeline(measured)
    assert len(points) == min(n, 50)
    assert points[-1] == {
        "requests": n,
        "hit_rate": measured.hit_rate,
        "error_per_request": measured.error_per_request,
    }
    first = int(points[0]["requests"])
    assert points[0]["hit_rate"] == pytest.approx(measured.hit[:first].mean())


@pytest.mark.parametrize("n", [1, 7, 1_234])
def test_calibration_bins_hold_every_hit_once(n: int) -> None:
    measured = outcome(n, seed=3)
    bins = calibration(measured)
    hits = measured.hit.sum()
    assert sum(found["hits"] for found in bins) == hits
    right = sum(found["hits"] * found["share_right"] for found in bins)
    assert right == pytest.approx(hits - measured.wrong.sum())
    assert len(bins) <= 10
    for found in bins:
        assert found["lowest"] <= found["mean_probability"] <= found["highest"]
    for one, next_ in pairwise(bins):
        assert one["highest"] <= next_["lowest"]


def test_a_run_without_hits_has_no_calibration() -> None:
    none = np.zeros(5, np.bool_)
    result = run_result(Outcome(none, none, np.zeros(5, np.float32)))
    assert (result["calibration"], result["error_per_hit"]) == ([], 0.0)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "was not written by"),
        ('{"format": "vllm-vectorq-replay", "version": 9}', "has version 9"),
    ],
)
def test_other_files_are_no_results(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(CliError, match=reason):
        read_result(path)


# -- replay ------------------------------------------------------------------------

CITIES = ("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna")
FORMS = (
    "What is the population of {}?",
    "How many people live in {}?",
    "Tell me the population of {}.",
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Questions about cities, and one that no model reads whole."""
    chance = random.Random(0)
    lines = [
        {"text": chance.choice(FORMS).format(city), "class": city}
        for city in chance.choices(CITIES, k=150)
    ]
    return log_of(tmp_path, *lines, {"text": "long " * 5_000, "class": "long"})


def replayed(
    capsys: pytest.CaptureFixture[str], log: Path, model: str, *options: str
) -> Any:  # noqa: ANN401
    capsys.readouterr()
    assert main(["replay", str(log), "--embedding-model", model, *options]) == 0
    return capsys.readouterr().out


def test_policies_are_replayed_over_every_budget_and_order(
    log: Path, embedding_model_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--policy", "static", "--policy", "exact", "--policy", "static")
    options += ("--delta", "0.01", "--delta", "0.1", "--shuffle", "2", "--json")
    result = json.loads(replayed(capsys, log, embedding_model_path, *options))
    assert (result["requests"], result["left_out"], result["classes"]) == (150, 1, 6)
    runs = [(run["policy"], run["delta"], run["order"]) for run in result["runs"]]
    assert runs == [
        (policy, delta, f"shuffle {seed}")
        for seed in (0, 1)
        for policy in ("static", "exact")
        for delta in (0.01, 0.1)
    ]
    static, exact = result["runs"][0], result["runs"][2]
    assert static["hits"] > 0
    assert static["hit_rate"] == pytest.approx(static["hits"] / 150)
    assert (exact["hits"], exact["judge_calls"]) == (0, 0)


def test_a_seed_gives_the_same_result_again(
    log: Path, embedding_model_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def result(*options: str) -> Any:  # noqa: ANN401
        arguments = ("--shuffle", "1", "--policy", "vcache", "--json", *options)
        found = json.loads(replayed(capsys, log, embedding_model_path, *arguments))
        for run in found["runs"]:
            del run["seconds"]
        return found

    assert result() == result("--seed", "0")
    assert result() != result("--seed", "1")


def test_texts_pass_the_guards_of_the_server(
    tmp_path: Path, embedding_model_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = random.Random(0).choices(range(1900, 1940), k=120)
    lines = [
        {"text": f"Who won the world cup of {year} in football?", "class": year}
        for year in numbers
    ]
    path = log_of(tmp_path, *lines)
    options = ("--policy", "static", "--json")
    [run] = json.loads(replayed(capsys, path, embedding_model_path, *options))["runs"]
    assert run["hits"] == 120 - len(set(numbers))
    assert run["wrong"] == 0


def test_the_table_has_a_row_for_each_policy_and_budget(
    log: Path, embedding_model_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--policy", "static", "--policy", "exact", "--shuffle", "2")
    lines = replayed(capsys, log, embedding_model_path, *options).splitlines()
    assert lines[0] == "150 requests of 6 classes, 1 left out"
    assert lines[1].split("  ")[0] == "policy"
    assert [line.split()[0] for line in lines[2:4]] == ["static", "exact"]
    assert "±" in lines[2]
    assert lines[4] == "mean and standard deviation over 2 random orders"


def test_a_log_that_no_model_reads_is_refused(
    tmp_path: Path, embedding_model_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = log_of(tmp_path, {"text": "long " * 5_000, "class": "long"})
    assert main(["replay", str(path), "--embedding-model", embedding_model_path]) == 1
    assert "can read none of the texts" in capsys.readouterr().err


# -- plot --------------------------------------------------------------------------


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result of two policies."""
    runs = [
        {"policy": policy, "delta": delta, **run_result(outcome(200, seed))}
        for seed, (policy, delta) in enumerate((("suite", 0.02), ("static", 0.1)))
    ]
    path = tmp_path / "result.json"
    content = {"format": "vllm-vectorq-replay", "version": 1, "runs": runs}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")]
)
def test_a_result_becomes_the_same_picture_each_time(
    result: Path, suffix: str, magic: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    pictures = [result.with_name(f"{name}{suffix}") for name in "ab"]
    for picture in pictures:
        assert main(["plot", str(result), "--out", str(picture)]) == 0
        assert capsys.readouterr().out == f"{picture}\n"
    one, other = (picture.read_bytes() for picture in pictures)
    assert one == other
    assert one.startswith(magic)
    if suffix == ".svg":
        assert b"suite, 0.02" in one or b"calibration" in one


def test_a_result_without_hits_is_drawn_too(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    none = np.zeros(5, np.bool_)
    run = run_result(Outcome(none, none, np.zeros(5, np.float32)))
    content = json.loads(result.read_text())
    content["runs"] = [{"policy": "exact", "delta": 0.02, **run}]
    result.write_text(json.dumps(content))
    picture = result.with_name("none.png")
    arguments = ["plot", str(result), "--out", str(picture), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(picture)}


def test_an_incomplete_result_is_refused(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    content = json.loads(result.read_text())
    del content["runs"][0]["timeline"]
    result.write_text(json.dumps(content))
    picture = result.with_name("a.png")
    assert main(["plot", str(result), "--out", str(picture)]) == 1
    assert "is incomplete: KeyError('timeline')" in capsys.readouterr().err
    assert not picture.exists()


def test_a_missing_matplotlib_is_named_with_its_extra(
    result: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(result), "--out", str(result.with_name("a.png"))]) == 1
    assert "pip install 'vllm-vectorq[plot]'" in capsys.readouterr().err
