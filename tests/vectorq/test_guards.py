# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
import json
from collections import Counter
from collections.abc import Iterator
from importlib import resources, util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_vectorq.guard_reading import MAX_CHARS
from vllm_vectorq.guards import agreement, conflict, signature

# At least this share must pass (answers are the same) or be vetoed (they are not).
MEASURED_SHARES = {
    "paraphrase": 0.75,
    "near_repeat": 0.90,
    "negation": 0.90,
    "number_date": 0.95,
    "entity_swap": 0.85,
    "scope": 0.60,
}


def verdict(one: str, other: str) -> str | None:
    a, b = signature(one), signature(other)
    found = conflict(a, b)
    assert found == conflict(b, a)
    return found


NOT_YET = pytest.mark.xfail(reason="the guards do not see this yet", strict=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I reset my password?", "I forgot my password, how to reset it"),
        ("What's my card's PIN", "whats the pin of my card"),
        ("How do I track a parcel?", "How can I track my package?"),
        ("Is the museum open on Tuesdays?", "Are you open on Tuesday?"),
        pytest.param(*("Weigh 1 kg of flour", "weigh 1000 g of flour"), marks=NOT_YET),
        ("A trip of 1,500 miles", "A trip of 1500 miles"),
        pytest.param(*("Refund 20 euros", "refund me €20"), marks=NOT_YET),
        pytest.param(*("Refund 2.5k dollars", "Refund $2,500"), marks=NOT_YET),
        ("a discount of 10 percent", "a discount of 10%"),
        ("A table for two at 7pm", "a table for 2 at 19:00"),
        pytest.param(
            *("A table for four at seven", "A table for 4 at 7 pm"), marks=NOT_YET
        ),
        pytest.param(
            *("The meeting on 3 January", "the meeting on Jan 3rd"), marks=NOT_YET
        ),
        pytest.param(
            *("The meeting on 2025-01-03", "The meeting on January 3, 2025"),
            marks=NOT_YET,
        ),
        ("It takes two hours", "It takes 120 minutes"),
        ("It takes half an hour", "It takes 30 min"),
        ("Wait twenty-five days", "wait 25 days"),
        ("two hundred and fifty guests", "250 guests"),
        pytest.param(
            *("How do I set up 2FA?", "How do I set up two-factor authentication?"),
            marks=NOT_YET,
        ),
        ("What is VAT?", "what is vat"),
        ("Who founded Acme Tools?", "who founded acme tools"),
        ("What Is The Boiling Point?", "what is the boiling point"),
        ("HOW DO I RENEW MY VISA", "How do I renew my visa?"),
        ("My card doesn't work", "my card does not work"),
        ("dont delete the file", "Do not delete the file"),
        ("I don't know how to renew my visa", "How do I renew my visa?"),
        ("Turn off the alarm", "Turn the alarm off"),
        ("Disable the alarm", "Turn off the alarm"),
        ("In Excel, how do I merge cells?", "How do I merge cells in Excel?"),
        ("How do I order a taxi to Rome?", "how to order a taxi to rome"),
        ("Is `ls -l` safe to run?", "Is ls -l safe to run?"),
        ("Where is the nearest restaurant?", "Where is the nearest restuarant?"),
        ("Is the caf\u00e9 open?", "Is the cafe\u0301 open?"),
        ("Room \uff11\uff12 please", "room 12 please"),
        ("Room \u0661\u0662 please", "room 12 please"),
        ("Can\u200bcel my or\u00adder", "Cancel my order"),
        ("\u202eCancel my order\u202c", "Cancel my order"),
    ],
)
def test_rephrasing_passes(one: str, other: str) -> None:
    assert verdict(one, other) is None


@pytest.mark.parametrize(
    ("guard", "one", "other"),
    [
        ("numbers", "Refund 20 euros", "Refund 200 euros"),
        ("numbers", "Refund twenty euros", "Refund 200 euros"),
        ("numbers", "Refund my order", "Refund my order of 15 euros"),
        ("numbers", "It costs 1.5 million", "It costs 15 million"),
        ("numbers", "Who won in 2024?", "Who won in 2025?"),
        ("numbers", "Install Python 3.1", "Install Python 3.10"),
        ("numbers", "Install Python 3.11", "Install Python 3.12"),
        ("numbers", "It was -5 degrees", "It was 5 degrees"),
        ("numbers", "2 adults and 1 child", "1 adult and 2 children"),
        ("numbers", "The second chapter", "The third chapter"),
        ("numbers", "A table at 7pm", "A table at 7am"),
        ("numbers", "Room \u0661\u0662", "Room 13"),
        pytest.param(*("units", "A run of 5 km", "A run of 5 m"), marks=NOT_YET),
        ("units", "Refund $20", "Refund €20"),
        ("dates", "Are you open on Monday?", "Are you open on Tuesday?"),
        ("dates", "Prices in January", "Prices in Feb"),
        ("dates", "The rain tomorrow", "The rain next week"),
        ("dates", "Are you open?", "Are you open on Monday?"),
        ("ids", "Track order AB-1234", "Track order AB-1243"),
        ("ids", "Write to ann@example.org", "Write to bob@example.org"),
        ("ids", "Open https://a.example/x", "Open https://a.example/y"),
        ("ids", "Delete /srv/a/log", "Delete /srv/b/log"),
        ("ids", "Show report.pdf", "Show summary.pdf"),
        ("ids", "Is C++ hard?", "Is C# hard?"),
        (
            "ids",
            "Find 123e4567-e89b-12d3-a456-426614174000",
            "Find 123e4567-e89b-12d3-a456-426614174001",
        ),
        ("code", 'Translate "good day"', 'Translate "good night"'),
        ("code", "Fix:\n```\nx = a + b\n```", "Fix:\n```\nx = a - b\n```"),
        ("code", "Fix if (a == b) {", "Fix if (a != b) {"),
        pytest.param(*("code", "What is 7 + 3?", "What is 7 * 3?"), marks=NOT_YET),
        ("negation", "Can I take aspirin?", "Can I not take aspirin?"),
        ("negation", "Cancel my order", "Don't cancel my order"),
        ("negation", "cancel my order", "dont cancel my order"),
        ("negation", "Can I fly with a visa?", "Can I fly without a visa?"),
        ("negation", "Is it safe to drink?", "Is it unsafe to drink?"),
        ("negation", "Is the fee refundable?", "Is the fee non-refundable?"),
        ("negation", "What foods should I eat?", "What foods should I avoid?"),
        ("negation", "Which trains stop here?", "Which trains no longer stop here?"),
        ("negation", "I have never flown alone", "I have flown alone"),
        ("opposites", "Enable the firewall", "Disable the firewall"),
        ("opposites", "Turn on the lights", "Turn the lights off"),
        ("opposites", "Does the price increase?", "Does the price decrease?"),
        ("opposites", "May I swim before lunch?", "May I swim after lunch?"),
        ("opposites", "How do I buy shares?", "How do I sell shares?"),
        ("opposites", "Is it at least ten?", "Is it at most ten?"),
        ("opposites", "Fines under 30 mph", "Fines over 30 mph"),
        ("opposites", "Who came first?", "Who came last?"),
        ("entities", "Flights to Paris", "Flights to London"),
        ("entities", "flights to paris", "flights to london"),
        ("entities", "Does Globex ship here?", "Does Initech ship here?"),
        ("entities", "Is GitHub down?", "Is GitLab down?"),
        ("entities", "Rules for a dog", "Rules for a dog in Spain"),
        ("direction", "Convert EUR to USD", "Convert USD to EUR"),
        ("direction", "Is tea better than milk?", "Is milk better than tea?"),
        ("direction", "Did Acme sue Globex?", "Did Globex sue Acme?"),
        ("direction", "Trains from Kent to Leeds", "Trains from Leeds to Kent"),
        ("question", "When was the bridge built?", "Why was the bridge built?"),
        ("scope", "Who may vote?", "Who may only vote?"),
        ("scope", "Can I see my report?", "Can I see my son's report?"),
        ("subject", "Is there a bath?", "Is there a garden?"),
        ("subject", "How do I freeze bread?", "How do I bake bread?"),
        ("language", "How do I open the door?", "Wie kann ich die Tür öffnen und wo?"),
        ("language", "Открой дверь", "Open the door"),
        pytest.param(
            *("ids", "Can\u043eel my order", "Cancel my order"), marks=NOT_YET
        ),
    ],
)
def test_change_of_meaning_is_vetoed(guard: str, one: str, other: str) -> None:
    assert verdict(one, other) == guard


@pytest.mark.parametrize("text", ["", " ", "?", "the", "\u200b", "\ud800", "\x00\x01"])
def test_text_without_words_matches_itself(text: str) -> None:
    assert verdict(text, text) is None
    assert agreement(signature(text), signature(text)) == 1.0


def test_agreement_counts_shared_subjects() -> None:
    one = signature("How do I renew my passport?")
    assert agreement(one, signature("Where can I renew a passport?")) == 1.0
    assert agreement(one, signature("How do I paint a fence?")) == 0.0
    partly = agreement(one, signature("How do I renew my visa?"))
    assert 0.0 < partly < 1.0


def test_case_says_nothing_in_title_case_or_capitals() -> None:
    titled = signature("How Do You Bake Sourdough Bread At Home?")
    assert titled.entities == frozenset()
    assert signature("HOW DO I BAKE BREAD").entities == frozenset()


TEXTS = st.text(max_size=80) | st.lists(
    st.sampled_from(
        [
            "not",
            "3",
            "kg",
            "to",
            "from",
            "Paris",
            "don't",
            "不要",
            "7pm",
            "```",
            "a.b/c",
            "1,2",
            "-",
            "--",
            "'n't",
            "v2",
            "second",
            "half",
            "no",
            "than",
            "\u3007",
            "12:99",
            "+5",
            "x=1",
            "@",
            "U.S.",
            "2025-13-40",
            "un-",
            "Ⅷ",
        ]
    )
).map(" ".join)


@given(TEXTS, TEXTS)
def test_comparison_is_symmetric_and_bounded(one: str, other: str) -> None:
    a, b = signature(one), signature(other)
    assert conflict(a, b) == conflict(b, a)
    assert agreement(a, b) == agreement(b, a)
    assert 0.0 <= agreement(a, b) <= 1.0


@given(TEXTS)
def test_text_never_conflicts_with_itself(text: str) -> None:
    assert conflict(signature(text), signature(text)) is None


@pytest.mark.parametrize(
    "unit", ["a", "a@", "1-", "(", "f(", '"', "a.", "-1", "'t", "`", "1,", "\u4e0d"]
)
@pytest.mark.timeout(60)
def test_longest_text_of_one_kind_is_read(unit: str) -> None:
    text = (unit * MAX_CHARS)[:MAX_CHARS]
    assert verdict(text, text) is None


def test_oversize_text_matches_only_itself() -> None:
    long = "word " * 200_000
    assert verdict(long, long) is None
    assert verdict(long, long + "x") == "length"
    assert verdict(long, "word") == "length"


def labelled_pairs() -> Iterator[tuple[str, str, str, bool]]:
    lines = resources.files("fow_cache").joinpath("data/pairs.jsonl").read_text("utf-8")
    for line in lines.splitlines():
        pair = json.loads(line)
        yield pair["category"], pair["a"], pair["b"], pair["same_answer"]


@pytest.mark.skipif(
    util.find_spec("fow_cache") is None, reason="fow-cache is not installed"
)
def test_labelled_pairs_are_judged_as_measured() -> None:
    pairs, right = Counter[str](), Counter[str]()
    for category, one, other, same_answer in labelled_pairs():
        pairs[category] += 1
        right[category] += (verdict(one, other) is None) == same_answer
    shares = {category: right[category] / pairs[category] for category in pairs}
    low = {k: v for k, v in shares.items() if v < MEASURED_SHARES[k]}
    assert not low
