# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How often the judges are wrong, on paraphrased answers.

Run from the repository root:
``python -m benchmarks.vectorq.bench_judge PARAQA.json --embedding-model DIRECTORY``.

The data are questions with two to eight paraphrases of one answer (ParaQA, Kacupaj et
al. 2021, CC BY 4.0). Two paraphrases are equivalent. Answers to another question are
not, and neither are paraphrases in which the fact or a number was replaced; the
question that lies nearest is what a semantic cache would propose. Half of the questions
choose the thresholds of the embedding judge, the other half is reported. The answers
are single sentences: longer ones were not measured.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment
from vllm_vectorq.embedding_model import EmbeddingModel
from vllm_vectorq.judge import ChainJudge, EqualityJudge, Judge
from vllm_vectorq.judge_embedding import EmbeddingJudge, Thresholds, differ_in_words
from vllm_vectorq.judge_error import clopper_pearson
from vllm_vectorq.record import Vector

PARAPHRASE = "paraphrase"
_FACT = re.compile(r"\[([^\[\]]*)\](\w?)")
_NUMBER = re.compile(r"\d+")
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Question:
    """A question and paraphrases of its answer, the fact in square brackets."""

    text: str
    answers: tuple[str, ...]

    @property
    def fact(self) -> str:
        """What the answer states."""
        match = _FACT.search(self.answers[0])
        return match[1] if match else self.answers[0]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to compare; only paraphrases are equivalent."""

    kind: str
    prompt: str
    answer: str
    other_prompt: str
    other_answer: str


class CachedEmbedding:
    """Embeds each text once, many at a time."""

    def __init__(self, model: EmbeddingModel) -> None:
        self._model = model
        self._vectors: dict[str, Vector] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Embed in batches what will be asked for."""
        new = sorted({t for t in texts if t not in self._vectors}, key=len)
        new = [text for text in new if self._model.fits(text)]
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            self._vectors.update(zip(batch, self._model.embed(batch), strict=True))

    def __call__(self, texts: list[str]) -> Vector:
        """Vectors, float32 [texts, dimensions]."""
        self.prepare(texts)
        return np.stack([self._vectors[text] for text in texts])


def read_questions(path: Path) -> tuple[list[Question], list[Question]]:
    """Questions to choose thresholds from, and those to report on."""
    halves: tuple[list[Question], list[Question]] = ([], [])
    for row in json.loads(path.read_text(encoding="utf-8")):
        names = ["verbalized_answer", *(f"verbalized_answer_{i}" for i in range(2, 9))]
        answers = dict.fromkeys(row.get(name, "").strip() for name in names)
        answers.pop("", None)
        if len(answers) > 1:
            half = halves[zlib.crc32(str(row["uid"]).encode()) % 2]
            half.append(Question(row["question"].strip(), tuple(answers)))
    return halves


def plain(answer: str, fact: str | None = None) -> str:
    """The answer without brackets, with another fact if one is given."""

    def unbracket(match: re.Match[str]) -> str:
        stated = match[1] if fact is None else fact
        return f"{stated} {match[2]}" if match[2] else stated

    return _FACT.sub(unbracket, answer)


def make_pairs(
    questions: list[Question], embed: CachedEmbedding, seed: int = 0
) -> Iterator[Pair]:
    """Pairs of every kind; which questions are combined depends on the seed."""
    rng = random.Random(seed)
    vectors = embed([question.text for question in questions])
    nearness = vectors @ vectors.T
    facts = [question.fact.casefold() for question in questions]
    for i, question in enumerate(questions):
        elsewhere = [j for j, fact in enumerate(facts) if fact != facts[i]]
        nearest = questions[max(elsewhere, key=lambda j: float(nearness[i, j]))]
        first, second = plain(question.answers[0]), plain(question.answers[1])
        for other in question.answers[1:]:
            yield Pair(PARAPHRASE, question.text, first, question.text, plain(other))
        for kind, third in (
            ("random question", questions[rng.choice(elsewhere)]),
            ("nearest question", nearest),
        ):
            yield Pair(kind, question.text, first, third.text, plain(third.answers[0]))
        if _FACT.search(question.answers[1]):
            swapped = plain(question.answers[1], nearest.fact)
            yield Pair("other fact", question.text, first, nearest.text, swapped)
        for kind, text in (
            ("other number", first),
            ("other number, rephrased", second),
        ):
            if _NUMBER.search(first) and _NUMBER.search(text):
                changed = _NUMBER.sub(lambda n: str(int(n[0]) + 1), text, count=1)
                yield Pair(kind, question.text, first, question.text, changed)


def choose_thresholds(
    judge: EmbeddingJudge, pairs: Sequence[Pair], max_false: float
) -> Thresholds:
    """The widest thresholds whose errors stay below a share, for every kind of pair."""
    scores: dict[str, list[float]] = {}
    for pair in pairs:
        score = judge.similarity(pair.answer, pair.other_answer)
        if score is None:
            continue
        # The guards forbid "same" whatever the score.
        if pair.kind != PARAPHRASE and differ_in_words(pair.answer, pair.other_answer):
            score = -1.0
        scores.setdefault(pair.kind, []).append(score)
    different_at = float(np.quantile(scores.pop(PARAPHRASE), max_false))
    same_at = max(float(np.quantile(each, 1.0 - max_false)) for each in scores.values())
    same_at = min(np.ceil(same_at * 1000.0) / 1000.0, 1.0)
    different_at = min(np.floor(different_at * 1000.0) / 1000.0, same_at - 0.001)
    return Thresholds(float(same_at), float(different_at))


def verdicts(judge: Judge, pairs: Iterable[Pair]) -> dict[str, dict[str, Any]]:
    """Counts of a judge's verdicts per kind of pair, with the bounds of its errors."""
    counts: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        row = counts.setdefault(
            pair.kind, {"pairs": 0, "same": 0, "different": 0, "undecided": 0}
        )
        verdict = judge.judge(
            pair.prompt, pair.answer, pair.other_prompt, pair.other_answer
        )
        words = {True: "same", False: "different", None: "undecided"}
        row["pairs"] += 1
        row[words[verdict.equivalent]] += 1
    for kind, row in counts.items():
        wrong = row["different" if kind == PARAPHRASE else "same"]
        bounds = clopper_pearson(wrong, row["pairs"], 0.975)
        row["wrong_share"] = round(wrong / row["pairs"], 5)
        row["wrong_share_95"] = [round(bound, 5) for bound in bounds]
    return counts


def measure(path: Path, model: str, max_false: float) -> dict[str, Any]:
    """Choose thresholds on one half, and judge the other half."""
    embedding_model = EmbeddingModel(model)
    embed = CachedEmbedding(embedding_model)
    halves = [
        [question for question in half if embedding_model.fits(question.text)]
        for half in read_questions(path)
    ]
    training, reported = (list(make_pairs(half, embed)) for half in halves)
    for pairs in (training, reported):
        embed.prepare(t for pair in pairs for t in (pair.answer, pair.other_answer))
    # Its own thresholds do not matter for the similarity.
    unset = EmbeddingJudge(embed, embedding_model.fits, Thresholds(1.0, -1.0))
    thresholds = choose_thresholds(unset, training, max_false)
    embedding = EmbeddingJudge(embed, embedding_model.fits, thresholds)
    judges: list[Judge] = [
        EqualityJudge(),
        embedding,
        ChainJudge([EqualityJudge(), embedding]),
    ]
    return {
        "data": {
            "name": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "questions": [len(half) for half in halves],
        },
        "embedding_model": Path(model).name,
        "sentence_transformers": version("sentence-transformers"),
        "max_false": max_false,
        "thresholds": asdict(thresholds),
        "judges": {judge.name: verdicts(judge, reported) for judge in judges},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the result; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vectorq.bench_judge",
        description="Measure the errors of the judges on paraphrased answers.",
    )
    parser.add_argument("data", type=Path, help="train.json or test.json of ParaQA")
    parser.add_argument("--embedding-model", required=True, metavar="DIRECTORY")
    parser.add_argument(
        "--max-false",
        type=float,
        default=0.01,
        help="largest share of wrong verdicts per kind of pair when choosing",
    )
    parser.add_argument("--out", type=Path, default=Path("results/vectorq/judge.json"))
    options = parser.parse_args(arguments)
    report = measure(options.data, options.embedding_model, options.max_false)
    report["environment"] = environment.describe()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"thresholds {report['thresholds']}")
    for name, kinds in report["judges"].items():
        for kind, row in kinds.items():
            print(
                f"{name:10s} {kind:24s} {row['pairs']:5d} pairs: "
                f"same {row['same']:4d}, different {row['different']:4d}, "
                f"wrong {row['wrong_share']:.2%}"
            )
    print(f"All numbers: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
