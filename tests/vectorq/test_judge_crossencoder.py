# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Mechanics of the cross-encoder judge, on tiny models with made-up weights.

No real cross-encoder can be had offline, so nothing here is about quality.
"""

from pathlib import Path

import pytest

from vllm_vectorq.judge import Verdict
from vllm_vectorq.judge_crossencoder import CrossEncoderJudge

pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed"
)

INFERENCE = ("entailment", "neutral", "contradiction")
WORDS = ["capital", "of", "the", "is", "paris", "rome", "?", ".", "a", "b"]


def save_model(
    folder: Path, labels: tuple[str, ...], biases: list[float] | None = None
) -> str:
    """Save a BERT with 2 layers and these labels; biases replace the random head."""
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertTokenizerFast,
    )

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    folder.mkdir(exist_ok=True)
    words_file = folder / "vocab.txt"
    words_file.write_text("\n".join(vocabulary))
    torch.manual_seed(7)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            # Large weights, so that different texts give clearly different outputs.
            initializer_range=1.0,
        )
    )
    if biases is not None:
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor(biases))
    model.save_pretrained(folder)
    BertTokenizerFast(
        vocab=str(words_file), vocab_file=str(words_file), model_max_length=32
    ).save_pretrained(folder)
    return str(folder)


def verdict_of(model: str, sure_at: float = 0.9) -> Verdict:
    judge = CrossEncoderJudge(model, sure_at)
    return judge.judge("capital ?", "paris", "the capital ?", "the paris")


@pytest.mark.parametrize(
    "labels",
    [
        INFERENCE,
        ("contradiction", "entailment", "neutral"),
        ("CONTRADICTION", "Neutral", "Entailment"),
    ],
)
@pytest.mark.parametrize(
    ("winner", "equivalent"),
    [("entailment", True), ("contradiction", False), ("neutral", None)],
)
def test_labels_are_read_by_name_and_not_by_place(
    tmp_path: Path, labels: tuple[str, ...], winner: str, equivalent: bool | None
) -> None:
    biases = [8.0 if label.lower() == winner else 0.0 for label in labels]
    verdict = verdict_of(save_model(tmp_path, labels, biases))
    assert verdict.equivalent is equivalent
    assert verdict.source == "cross_encoder"
    assert (verdict.confidence > 0.99) is (equivalent is not None)


@pytest.mark.parametrize(
    ("bias", "equivalent"), [(4.0, True), (-4.0, False), (0.0, None)]
)
def test_one_output_is_the_probability_of_the_same(
    tmp_path: Path, bias: float, equivalent: bool | None
) -> None:
    model = save_model(tmp_path, ("LABEL_0",), [bias])
    assert verdict_of(model).equivalent is equivalent


def test_probabilities_below_the_required_one_decide_nothing(tmp_path: Path) -> None:
    model = save_model(tmp_path, ("LABEL_0",), [2.0])
    assert verdict_of(model, sure_at=0.85).equivalent is True
    assert verdict_of(model, sure_at=0.95).equivalent is None


@pytest.mark.parametrize("labels", [INFERENCE, ("LABEL_0",)])
def test_the_order_of_the_answers_does_not_matter(
    tmp_path: Path, labels: tuple[str, ...]
) -> None:
    judge = CrossEncoderJudge(save_model(tmp_path, labels), sure_at=0.500001)
    there = judge.judge("capital ?", "paris", "x", "the rome")
    back = judge.judge("capital ?", "the rome", "x", "paris")
    assert there.equivalent is back.equivalent
    assert there.confidence == pytest.approx(back.confidence, rel=1e-4)


def test_random_weights_tell_the_two_directions_apart(tmp_path: Path) -> None:
    # Otherwise the test above would pass without asking both.
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(save_model(tmp_path, INFERENCE), device="cpu")
    there, back = encoder.predict(
        [
            ("capital ? paris", "capital ? the rome"),
            ("capital ? the rome", "capital ? paris"),
        ]
    )
    assert abs(there - back).max() > 1e-3


def test_texts_that_would_be_cut_are_left_undecided(tmp_path: Path) -> None:
    judge = CrossEncoderJudge(save_model(tmp_path, ("LABEL_0",), [8.0]))
    # [CLS] + 14 + [SEP] + 15 + [SEP] = 32 positions, and one more.
    fits, too_long = "a " * 15, "a " * 16
    assert judge.judge("q", "b " * 14, "r", fits).equivalent is True
    verdict = judge.judge("q", "b " * 14, "r", too_long)
    assert verdict == Verdict(None, 0.0, "cross_encoder")


def test_the_question_counts_for_inference_only(tmp_path: Path) -> None:
    question = "capital " * 10
    biases = [8.0, 0.0, 0.0]
    infers = CrossEncoderJudge(save_model(tmp_path / "nli", INFERENCE, biases))
    compares = CrossEncoderJudge(save_model(tmp_path / "one", ("LABEL_0",), [8.0]))
    assert infers.judge(question, "a " * 8, "r", "b").equivalent is True
    assert infers.judge(question, "a " * 9, "r", "b").equivalent is None
    assert compares.judge(question, "a " * 9, "r", "b").equivalent is True


def test_a_model_with_other_labels_is_refused_by_every_call(tmp_path: Path) -> None:
    judge = CrossEncoderJudge(save_model(tmp_path, ("duplicate", "other")))
    for _ in range(2):
        with pytest.raises(ValueError, match="entailment, neutral and contradiction"):
            judge.judge("q", "a", "r", "b")


def test_nothing_is_loaded_before_the_first_question(tmp_path: Path) -> None:
    judge = CrossEncoderJudge(str(tmp_path / "later"))
    save_model(tmp_path / "later", ("LABEL_0",), [8.0])
    assert judge.judge("q", "a", "r", "b").equivalent is True


@pytest.mark.parametrize("sure_at", [0.5, 1.1, float("nan")])
def test_a_probability_that_is_not_sure_is_refused(sure_at: float) -> None:
    with pytest.raises(ValueError, match=r"above 0\.5"):
        CrossEncoderJudge("model", sure_at)
