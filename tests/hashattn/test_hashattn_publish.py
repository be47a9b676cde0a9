# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Published numbers of hash attention: made from the files in the repository."""

import math
import statistics
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.hashattn import publish, published_quality
from benchmarks.hashattn.quality_tasks import Row
from benchmarks.measured_block import with_block
from vllm_hashattn.evaluation_change import change_of_pairs
from vllm_hashattn.long_context import Kind
from vllm_hashattn.long_context_score import Score, summarise


@pytest.fixture(scope="module")
def measured() -> publish.Reports:
    return publish.read_reports(publish.ROOT)


@pytest.mark.parametrize("name", publish.DOCUMENTS)
def test_documents_say_what_was_measured(name: str, measured: publish.Reports) -> None:
    document = (publish.ROOT / name).read_text("utf-8")
    text = publish.DOCUMENTS[name](measured)
    assert with_block(document, publish.WRITER, text) == document


@pytest.mark.parametrize("name", publish.NAMES)
def test_files_name_no_path_of_a_machine(name: str) -> None:
    text = (publish.ROOT / publish.RESULTS / f"{name}.json").read_text("utf-8")
    assert '"/' not in text


def test_what_is_claimed_was_repeated_at_a_commit(measured: publish.Reports) -> None:
    assert all(
        "+changes" not in report["environment"]["commit"]
        for report in measured.values()
    )
    for row in measured["op"]["rows"]:
        assert all(len(times) == 3 for times in row["ms"].values())
    for what in ("decode", "prefill"):
        for arms in publish.times(publish.speeds(measured), what).values():
            assert {len(times) for times in arms.values()} == {3}


def test_sparse_attention_read_its_share(measured: publish.Reports) -> None:
    shares = [
        row["read_share"]
        for row in publish.speeds(measured)
        if row["arm"] == "hashattn" and row["what"] == "decode"
    ]
    assert shares and all(0.06 < share < 0.07 for share in shares)


def test_equal_bytes_were_compared(measured: publish.Reports) -> None:
    for name in publish.MODELS:
        model = measured[name]
        for tokens in published_quality.contexts(model):
            found = published_quality.of_texts(model, tokens)
            assert (found["dense"].divergence, found["dense"].same_top) == (0.0, 1.0)
            assert found["dense"].bytes_share == 1.0
            shares = [found[f"{arm} 1/16"].bytes_share for arm in EQUAL_BYTES]
            # A draw reads as much as wanted on average only.
            assert max(shares) / min(shares) < 1.02


def test_enough_was_asked(measured: publish.Reports) -> None:
    for name in publish.MODELS:
        model = measured[name]
        assert len({row["document"] for row in model["texts"]}) >= 6
        counted = published_quality.informative(model)
        # The small model finds too little after so many tokens in any task.
        if name == "quality-long":
            assert {"passkey", "niah_single", "niah_multikey"} <= set(counted)
        for row in model["tasks"]:
            if row["kind"] in counted:
                assert row["n"] == len(row["shares"]) >= 50
        kinds = {row["kind"] for row in model["tasks"] if row["arm"] == "dense"}
        assert len(kinds) == 8


def test_quality_is_what_is_promised(measured: publish.Reports) -> None:
    for name in publish.MODELS:
        model = measured[name]
        for tokens in published_quality.contexts(model):
            found = published_quality.of_texts(model, tokens)
            levels, quest = found["levels 1/16"], found["quest 1/16"]
            assert math.expm1(levels.change.mean) < 0.01
            assert levels.change.mean < quest.change.mean
            assert levels.divergence < quest.divergence
        if name == "quality-small":
            # The order of other measurements of the paper's codes.
            order = ("oracle", "linear asymmetric", "linear", "paper", "quest")
            losses = [found[f"{arm} 1/16"].divergence for arm in order]
            assert losses == sorted(losses)
        means = published_quality.task_means(model)
        if means:
            assert means["levels 1/16"][0] > means["dense"][0] - 0.01
            assert means["levels 1/16"][0] > means["quest 1/16"][0]


EQUAL_BYTES = ("levels", "linear", "quest")


def text(arm: str, nll: float, changes: list[float], **other: object) -> Row:
    return {
        "kind": "code",
        "context_tokens": 4096,
        "arm": arm,
        "document": 0,
        "tokens": 32,
        "nll": nll,
        "nll_changes": changes,
        "divergence": 0.02,
        "same_top": 0.9,
        "reading": {"read_tokens": 256.0, "seen_tokens": 4096.0, "bytes_share": 0.2},
        **other,
    }


def task(arm: str, kind: str, shares: list[float]) -> Row:
    scores = [Score(Kind(kind), share, share == 1.0) for share in shares]
    found = asdict(summarise(scores)[Kind(kind)])
    return {"arm": arm, "kind": kind, "bytes_share": 0.2, "shares": shares, **found}


MODEL: Row = {
    "model": "a-model",
    "settings": {"context_tokens": 4096},
    "texts": [
        text("dense", 2.0, [0.0, 0.0], divergence=0.0, same_top=1.0),
        text("levels 1/16", 2.1, [0.05, 0.15]),
        text("dense", 1.0, [0.0, 0.0], document=1, divergence=0.0, same_top=1.0),
        text("levels 1/16", 1.2, [0.1, 0.3], document=1, divergence=0.04, same_top=0.8),
        text("levels 1/16", 9.0, [9.0, 7.0], context_tokens=16384),
    ],
    "tasks": [
        task("dense", "passkey", [1.0] * 9 + [0.0]),
        task("levels 1/16", "passkey", [1.0] * 8 + [0.0, 1.0]),
        task("dense", "niah_multivalue", [0.5, 0.75, 1.0, 1.0]),
        task("levels 1/16", "niah_multivalue", [0.5, 0.25, 1.0, 1.0]),
        task("dense", "vt", [0.0, 0.2]),
    ],
}


def test_texts_are_compared_pair_by_pair() -> None:
    found = published_quality.of_texts(MODEL, 4096)["levels 1/16"]
    assert found.perplexity == pytest.approx(math.exp(1.65))
    assert found.divergence == pytest.approx(0.03)
    assert found.same_top == pytest.approx(0.85)
    changes = [0.05, 0.15, 0.1, 0.3]
    error = statistics.stdev(changes) / 2
    cells = published_quality.quality(MODEL, ("1/16",)).split("levels 1/16 |")[1]
    low, high = (math.expm1(0.15 + sign * 1.96 * error) for sign in (-1, 1))
    assert f"{math.expm1(0.15):+.2%} ({low:+.2%} to {high:+.2%})" in cells


def test_tasks_that_dense_decoding_fails_do_not_count() -> None:
    # 0.8125 of the values of a key: more than four of five.
    assert published_quality.informative(MODEL) == ["passkey", "niah_multivalue"]
    mean, change = published_quality.task_means(MODEL)["levels 1/16"]
    assert mean == pytest.approx((0.9 + 0.6875) / 2)
    assert change.mean == pytest.approx((0.0 - 0.125) / 2)
    kinds = [change_of_pairs([0.0] * 8 + [-1.0, 1.0]), change_of_pairs([0, -0.5, 0, 0])]
    assert change.error == pytest.approx(
        math.sqrt(kinds[0].error ** 2 + kinds[1].error ** 2) / 2
    )
    written = published_quality.tasks(MODEL)
    assert "vt (10% of 2 questions)" in written
    assert "| vt |" not in written


def test_contexts_of_every_length_have_a_table() -> None:
    written = published_quality.quality(MODEL, ("1/16",))
    short, long = written.split("contexts of 16,384 tokens:")
    assert "contexts of 4,096 tokens:" in short and "points" in short
    # No task was asked there.
    assert "points" not in long and "levels 1/16" in long


def test_files_of_before_divergences_are_refused() -> None:
    old = {"texts": [{"arm": "dense", "kind": "code", "nll": 1.0, "tokens": 9}]}
    with pytest.raises(ValueError, match="older bench_quality"):
        published_quality.check("quality-long", old)
    published_quality.check("quality-long", MODEL)


def test_ratios_are_of_pairs() -> None:
    assert publish.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == "2.00 (2.00 to 3.00)"
    assert publish.ratio([2.0], [1.0]) == "2.00"


def test_publishing_without_results_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    assert publish.main([]) == 1
    assert "finish that benchmark" in capsys.readouterr().err
