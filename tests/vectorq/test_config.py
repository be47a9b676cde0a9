# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Options: what is refused, and what the refusal says."""

import json
from dataclasses import fields

import pytest

from vllm_vectorq.config import (
    JUDGES,
    POLICIES,
    ConfigError,
    VectorQConfig,
    check_options,
)

BAD_VALUES: list[tuple[str, object]] = [
    *((name, "yes") for name in ("enabled", "semantic_tools", "guards", "coalesce")),
    ("keep_text", 1),
    ("policy", "best"),
    ("policy", 3),
    ("delta", 0),
    ("delta", -0.1),
    ("delta", 0.6),
    ("delta", "0.02"),
    ("delta", True),
    ("delta", float("nan")),
    ("hit_delta", 1.0),
    ("audit", 0.0),
    ("static_threshold", 1.5),
    ("static_threshold", None),
    ("namespace", 7),
    ("tenants", "everybody"),
    ("tenant_header", ["X-Tenant"]),
    ("secret", b"bytes"),
    ("sampled", "yes"),
    ("embedding_model", None),
    ("embedding_deadline_s", 0),
    ("embedding_deadline_s", float("inf")),
    ("embedding_threads", 0),
    ("embedding_threads", 1.5),
    ("neighbours", 0),
    ("neighbours", 1000),
    ("neighbours", 16.0),
    ("judges", []),
    ("judges", ""),
    ("judges", 3),
    ("judges", ["equality", "oracle"]),
    ("judges", ["equality", "equality"]),
    ("judges", ["cross_encoder"]),
    ("judges", [["equality"]]),
    ("cross_encoder_model", 5),
    ("confirmations", -1),
    ("store", None),
    ("ttl_s", 0),
    ("max_entries", 0),
    ("max_entries", 10.0),
    ("max_bytes", 1000),
    ("log_interval_s", -1),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_bad_value_is_refused_with_its_name_and_a_remedy(
    name: str, value: object
) -> None:
    with pytest.raises(ConfigError) as refusal:
        VectorQConfig(**{name: value})  # type: ignore[arg-type]
    message = str(refusal.value)
    assert message.startswith(f"vectorq.{name}=")
    assert any(word in message for word in ("give ", "choose ", "needs "))
    assert "\n" not in message


def test_every_option_has_a_bad_value_above() -> None:
    assert {name for name, _ in BAD_VALUES} == {f.name for f in fields(VectorQConfig)}


def test_defaults_are_valid_and_off() -> None:
    assert VectorQConfig().enabled is False
    assert not check_options(None)
    assert not check_options({})
    assert not check_options({"other": {"enabled": True}})


def test_options_are_read_from_the_servers_config() -> None:
    options = {"enabled": True, "delta": 0.01, "judges": ["equality"], "ttl_s": 60}
    config = VectorQConfig.from_additional_config({"vectorq": options})
    assert (config.enabled, config.delta, config.ttl_s) == (True, 0.01, 60)
    assert config.judges == ("equality",)
    assert check_options({"vectorq": options})


def test_sqlite_is_refused_for_several_api_servers() -> None:
    assert check_options({"vectorq": {"enabled": True}}, api_servers=1)
    assert not check_options({"vectorq": {"enabled": False}}, api_servers=2)
    for store in ("memory", "postgresql://db/answers"):
        assert check_options({"vectorq": {"enabled": True, "store": store}}, 2)
    for store in ("sqlite", "sqlite:///data/answers.db"):
        with pytest.raises(ValueError, match="2 API servers were asked for"):
            check_options({"vectorq": {"enabled": True, "store": store}}, 2)


def test_judges_may_be_one_string_as_command_lines_give_it() -> None:
    assert VectorQConfig(judges="equality,embedding").judges == (  # type: ignore[arg-type]
        "equality",
        "embedding",
    )


def test_every_policy_and_judge_can_be_chosen() -> None:
    for policy in POLICIES:
        assert VectorQConfig(policy=policy).policy == policy
    for judge in JUDGES:
        config = VectorQConfig(judges=(judge,), cross_encoder_model="some/model")
        assert config.judges == (judge,)


def test_whole_numbers_will_do_for_numbers() -> None:
    assert VectorQConfig(ttl_s=60, log_interval_s=0).ttl_s == 60


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("dleta", "delta"), ("time_to_live", ""), ("max_entry", "max_entries")],
)
def test_unknown_option_comes_with_a_hint(typo: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown option '{typo}'") as refusal:
        VectorQConfig.from_additional_config({"vectorq": {typo: 1}})
    message = str(refusal.value)
    assert (f"Did you mean '{meant}'?" in message) is bool(meant)
    assert all(f.name in message for f in fields(VectorQConfig))


def test_options_must_be_a_mapping() -> None:
    with pytest.raises(ValueError, match="not a set of options"):
        check_options({"vectorq": "on"})


def test_secrets_stay_secret() -> None:
    shown = VectorQConfig(
        secret="hush-hush", store="postgresql://user:pass-word@host/db?sslpassword=x-y"
    ).as_dict()
    assert shown["secret"] == "set"
    text = json.dumps(shown)
    assert "hush-hush" not in text
    assert "pass-word" not in text
    assert "x-y" not in text
    assert "host/db" in text


def test_all_options_are_shown_as_plain_values() -> None:
    shown = json.loads(json.dumps(VectorQConfig().as_dict()))
    assert set(shown) == set(VectorQConfig.names())
    assert shown["secret"] == ""
    assert shown["store"] == "sqlite"


def test_options_never_change() -> None:
    with pytest.raises(AttributeError):
        VectorQConfig().delta = 0.5  # type: ignore[misc]
