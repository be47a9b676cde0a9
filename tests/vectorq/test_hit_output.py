# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Stored answers as vLLM's outputs, with a real tokenizer and detokeniser."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from vllm_vectorq.hit_output import AnswerCollector, Recipient, replay, whole
from vllm_vectorq.request import Answer

KINDS = list(RequestOutputKind)
PROMPT = "The capital of France is"
# Words, an emoji of several tokens, combining marks, white space, and a line break.
TEXT = " Paris, of course! \N{SNOWMAN}\N{GRINNING FACE} e\u0301te\u0301\n\n  Yes."


@pytest.fixture(scope="module")
def tokenizer(model_path: str) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(model_path)
    return loaded


def recipient(tokenizer: Any, interval: int = 1, **options: Any) -> Recipient:  # noqa: ANN401
    params = SamplingParams(temperature=0.0, **options)
    prompt = {
        "type": "token",
        "prompt": PROMPT,
        "prompt_token_ids": tokenizer.encode(PROMPT),
    }
    return Recipient("r1", prompt, params, None, tokenizer, interval)


def answer(tokenizer: Any, text: str = TEXT, **changes: Any) -> Answer:  # noqa: ANN401
    ids = tokenizer.encode(text, add_special_tokens=False)
    stored = Answer(text, (*ids, tokenizer.eos_token_id), None, 1.0)
    return replace(stored, **changes)


def pieces(to: Recipient, stored: Answer) -> list[RequestOutput]:
    faults: list[Exception] = []
    outputs = list(replay(to, stored, faults.append))
    assert faults == []
    return outputs


def joined(outputs: list[RequestOutput]) -> tuple[str, tuple[int, ...]]:
    completions = [output.outputs[0] for output in outputs]
    text = "".join(c.text for c in completions)
    return text, tuple(t for c in completions for t in c.token_ids)


def test_the_whole_answer_looks_like_vllms(tokenizer: Any) -> None:  # noqa: ANN401
    to, stored = recipient(tokenizer), answer(tokenizer)
    output = whole(to, stored)
    [completion] = output.outputs
    assert (output.request_id, output.finished) == ("r1", True)
    assert (output.prompt, output.num_cached_tokens) == (PROMPT, 0)
    assert output.prompt_token_ids == to.prompt["prompt_token_ids"]
    assert (completion.index, completion.text) == (0, TEXT)
    assert completion.token_ids == list(stored.token_ids)
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)


def test_final_only_is_one_piece(tokenizer: Any) -> None:  # noqa: ANN401
    to = recipient(tokenizer, output_kind=RequestOutputKind.FINAL_ONLY)
    [output] = pieces(to, answer(tokenizer))
    assert output.finished
    assert output.outputs[0].text == TEXT


def test_deltas_add_up_and_are_small(tokenizer: Any) -> None:  # noqa: ANN401
    to = recipient(tokenizer, output_kind=RequestOutputKind.DELTA)
    stored = answer(tokenizer)
    outputs = pieces(to, stored)
    assert joined(outputs) == (TEXT, stored.token_ids)
    assert len(outputs) > 3
    assert max(len(o.outputs[0].token_ids) for o in outputs) <= 4
    assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]
    reasons = [o.outputs[0].finish_reason for o in outputs]
    assert reasons == [None] * (len(outputs) - 1) + ["stop"]


def test_text_and_tokens_of_a_delta_belong_together(tokenizer: Any) -> None:  # noqa: ANN401
    to = recipient(tokenizer, output_kind=RequestOutputKind.DELTA)
    sent_ids: list[int] = []
    sent_text = ""
    for output in pieces(to, answer(tokenizer))[:-1]:
        sent_ids += output.outputs[0].token_ids
        sent_text += output.outputs[0].text
        decoded = tokenizer.decode(sent_ids)
        # Half a character is held back until its other half comes.
        assert decoded.rstrip("\N{REPLACEMENT CHARACTER}").startswith(sent_text)
        assert len(decoded) - len(sent_text) <= 3


def test_cumulative_pieces_grow_to_the_answer(tokenizer: Any) -> None:  # noqa: ANN401
    to = recipient(tokenizer, output_kind=RequestOutputKind.CUMULATIVE)
    stored = answer(tokenizer)
    outputs = [o.outputs[0] for o in pieces(to, stored)]
    for earlier, later in pairwise(outputs):
        assert later.text.startswith(earlier.text)
        assert len(later.token_ids) > len(earlier.token_ids)
    assert (outputs[-1].text, outputs[-1].token_ids) == (TEXT, list(stored.token_ids))


@pytest.mark.parametrize(("server", "request_interval"), [(9, None), (1, 9), (7, 9)])
def test_stream_intervals_are_kept(
    tokenizer: Any,  # noqa: ANN401
    server: int,
    request_interval: int | None,
) -> None:
    kind = RequestOutputKind.DELTA
    to = recipient(
        tokenizer, server, output_kind=kind, stream_interval=request_interval
    )
    outputs = pieces(to, answer(tokenizer))
    assert {len(o.outputs[0].token_ids) for o in outputs[:-1]} == {9}


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_is_replayed_as_it_was_stored(
    tokenizer: Any,  # noqa: ANN401
    include: bool,
) -> None:
    stop = "Yes."
    to = recipient(
        tokenizer,
        output_kind=RequestOutputKind.DELTA,
        stop=[stop],
        include_stop_str_in_output=include,
    )
    ids = tuple(tokenizer.encode(TEXT, add_special_tokens=False))
    text = TEXT if include else TEXT.removesuffix(stop)
    stored = Answer(text, ids, stop, 1.0)
    outputs = pieces(to, stored)
    assert joined(outputs) == (text, ids)
    assert outputs[-1].outputs[0].stop_reason == stop
    assert len(outputs) > 3


def test_special_tokens_are_kept_when_asked_for(tokenizer: Any) -> None:  # noqa: ANN401
    end = tokenizer.eos_token
    text = f"one two three{end}four five six seven"
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    to = recipient(
        tokenizer, output_kind=RequestOutputKind.DELTA, skip_special_tokens=False
    )
    assert joined(pieces(to, Answer(text, ids, None, 1.0))) == (text, ids)


def test_text_that_departs_from_the_tokens_follows_in_one_piece(
    tokenizer: Any,  # noqa: ANN401
) -> None:
    to = recipient(tokenizer, output_kind=RequestOutputKind.DELTA)
    stored = answer(tokenizer, text=TEXT, token_ids=(), stop_reason=None)
    ids = tuple(tokenizer.encode(" Paris, of coarse it is!", add_special_tokens=False))
    stored = replace(stored, token_ids=ids * 3)
    assert joined(pieces(to, stored)) == (TEXT, ids * 3)


def test_a_failing_detokeniser_costs_the_pieces_only(tokenizer: Any) -> None:  # noqa: ANN401
    to = recipient(tokenizer, output_kind=RequestOutputKind.DELTA)
    faults: list[Exception] = []
    stored = answer(tokenizer)
    outputs = list(replay(replace(to, tokenizer=object()), stored, faults.append))
    assert len(faults) == len(outputs) == 1
    assert joined(outputs) == (TEXT, stored.token_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_the_end_token_alone_is_replayed(
    tokenizer: Any,  # noqa: ANN401
    kind: RequestOutputKind,
) -> None:
    to = recipient(tokenizer, output_kind=kind)
    stored = answer(tokenizer, text="", token_ids=(tokenizer.eos_token_id,))
    [output] = pieces(to, stored)
    assert output.finished


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_collected_is_what_was_replayed(
    tokenizer: Any,  # noqa: ANN401
    kind: RequestOutputKind,
) -> None:
    to, stored = recipient(tokenizer, output_kind=kind), answer(tokenizer)
    collector = AnswerCollector(to.params)
    collected = [collector.add(output) for output in pieces(to, stored)]
    assert collected[:-1] == [None] * (len(collected) - 1)
    assert collected[-1] is not None
    assert replace(collected[-1], generation_s=1.0) == stored


def finished(**changes: Any) -> RequestOutput:  # noqa: ANN401
    fields: dict[str, Any] = {
        "index": 0,
        "text": "hello",
        "token_ids": [1, 2],
        "cumulative_logprob": None,
        "logprobs": None,
        "finish_reason": "stop",
    }
    completion = CompletionOutput(**{**fields, **changes})
    return RequestOutput("r", "p", [1], None, [completion], finished=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"finish_reason": "length"},
        {"finish_reason": "abort"},
        {"finish_reason": "error"},
        {"finish_reason": "repetition"},
        {"text": ""},
        {"text": " \n"},
        {"index": 1},
        {"logprobs": [{}]},
        {"routed_experts": [1]},
    ],
)
def test_an_answer_that_is_not_plain_and_complete_is_not_kept(
    changes: dict[str, Any],
) -> None:
    collector = AnswerCollector(SamplingParams())
    assert collector.add(finished(**changes)) is None
    assert AnswerCollector(SamplingParams()).add(finished()) is not None


def test_an_answer_of_two_sets_of_weights_is_not_kept() -> None:
    from vllm.outputs import WeightVersionSpan

    spans = [WeightVersionSpan("a", 0, 1), WeightVersionSpan("b", 1, 2)]
    collector = AnswerCollector(SamplingParams())
    assert collector.add(finished(weight_versions=spans)) is None
    assert collector.add(finished(weight_versions=spans[:1])) is not None
