# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Options of the semantic cache, read once from ``--additional-config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .activation import read_options

KEY = "vectorq"
POLICIES = ("suite", "vcache", "vectorq_v1", "static", "exact")
SAMPLED = ("off", "exact", "semantic")
TENANTS = ("api_key", "shared")
JUDGES = ("equality", "embedding", "cross_encoder", "model")


class ConfigError(ValueError):
    """An option that cannot be used; the message says what to change."""


@dataclass(frozen=True, slots=True)
class VectorQConfig:
    """Options under ``--additional-config.vectorq``.

    Attributes:
        enabled: Switches the cache on; without it vLLM is not touched.
        policy: Who decides, one of :data:`POLICIES`.
        delta: Error budget: share of all requests that may get a wrong answer.
        hit_delta: Share of the hits that may be wrong; a floor beside delta.
        audit: Share of the requests that could be served which go to the model all the
            same, to measure the error and to notice drift.
        static_threshold: ``static``: smallest cosine that is served.
        namespace: Answers are never shared between namespaces.
        tenants: ``api_key``: answers are shared within one API key; ``shared``: by
            everybody who may use the server.
        tenant_header: Request header that names the tenant instead of the API key,
            set by a trusted proxy; empty for none.
        secret: Key for hashing tenants; empty: made once and kept in the store.
        sampled: What a request with temperature > 0 may get.
        semantic_tools: Whether requests that offer tools may get semantic hits.
        embedding_model: sentence-transformers model, directory or hub id.
        embedding_deadline_s: Longest wait for an embedding; then it is a miss.
        embedding_threads: Threads of the embedding model.
        neighbours: Entries looked at per request (k).
        judges: Who labels, asked in this order until one is sure.
        cross_encoder_model: Directory or hub id for the judge ``cross_encoder``.
        confirmations: An answer is served for another client's rephrasing only after
            so many others got an equivalent one from the model; against poisoning.
        guards: Whether numbers, names, negation and the like must agree.
        coalesce: Whether identical requests in flight wait for the first one.
        store: ``sqlite`` (a file in the cache directory), ``sqlite:///FILE``,
            ``postgresql://...`` or ``memory``.
        keep_text: Whether prompts are stored readably; without it, guards see only
            prompts of this process.
        ttl_s: Lifetime of an entry, in seconds, counted from when it was written.
        max_entries: Entries kept; the least valuable ones go first.
        max_bytes: Memory for entries and answers, in bytes.
        log_interval_s: Seconds between summary log lines; 0 switches them off.
    """

    enabled: bool = False
    policy: str = "suite"
    delta: float = 0.02
    hit_delta: float = 0.05
    audit: float = 0.015
    static_threshold: float = 0.95
    namespace: str = "default"
    tenants: str = "api_key"
    tenant_header: str = ""
    secret: str = ""
    sampled: str = "off"
    semantic_tools: bool = False
    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    embedding_deadline_s: float = 0.25
    embedding_threads: int = 1
    neighbours: int = 16
    judges: tuple[str, ...] = ("equality", "embedding")
    cross_encoder_model: str = ""
    confirmations: int = 0
    guards: bool = True
    coalesce: bool = True
    store: str = "sqlite"
    keep_text: bool = True
    ttl_s: float = 86_400.0
    max_entries: int = 100_000
    max_bytes: int = 1 << 30
    log_interval_s: float = 60.0

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            ConfigError: An option has the wrong type or is out of range.
        """
        for option in fields(self):
            value = getattr(self, option.name)
            if option.type == "bool" and not isinstance(value, bool):
                raise _wrong(option.name, value, "give true or false")
            if option.type == "str" and not isinstance(value, str):
                raise _wrong(option.name, value, "give a string")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _wrong(name, getattr(self, name), f"choose {_either(choices)}")
        for name, (low, high) in _RANGES.items():
            _check_range(name, getattr(self, name), low, high)
        self._check_judges()

    def _check_judges(self) -> None:
        judges: object = self.judges
        if isinstance(judges, str):
            judges = tuple(judges.split(","))
        if not isinstance(judges, (list, tuple)) or not judges:
            raise _wrong("judges", judges, f"give one or more of {', '.join(JUDGES)}")
        for judge in judges:
            if judge not in JUDGES:
                raise _wrong("judges", judge, f"choose {_either(JUDGES)}")
        if len(set(judges)) < len(judges):
            raise _wrong("judges", judges, "give each judge once")
        if "cross_encoder" in judges and not self.cross_encoder_model:
            raise _wrong(
                "judges",
                "cross_encoder",
                "it needs --additional-config.vectorq.cross_encoder_model",
            )
        object.__setattr__(self, "judges", tuple(judges))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def from_additional_config(cls, additional_config: object) -> VectorQConfig:
        """Read the options that a server was started with.

        Args:
            additional_config: The value of ``--additional-config``.

        Raises:
            ValueError: An option is unknown, malformed or out of range.
        """
        options: Mapping[str, Any] = read_options(additional_config, KEY, cls.names())
        return cls(**options)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the log and the admin route, without secrets."""
        # Here, as this module is imported where nothing is enabled.
        from .store import without_password

        values = asdict(self)
        values["secret"] = "set" if self.secret else ""
        values["store"] = without_password(self.store)
        return values


_CHOICES = {"policy": POLICIES, "sampled": SAMPLED, "tenants": TENANTS}
_RANGES: dict[str, tuple[float, float]] = {
    "delta": (1e-5, 0.5),
    "hit_delta": (1e-5, 0.5),
    "audit": (1e-3, 0.5),
    "static_threshold": (-1.0, 1.0),
    "embedding_deadline_s": (0.001, 60.0),
    "embedding_threads": (1, 256),
    "neighbours": (1, 128),
    "confirmations": (0, 1000),
    "ttl_s": (1.0, 1e9),
    "max_entries": (1, 1 << 32),
    "max_bytes": (1 << 16, 1 << 48),
    "log_interval_s": (0.0, 1e9),
}
_INTEGERS = frozenset(f.name for f in fields(VectorQConfig) if f.type == "int")


def _check_range(name: str, value: object, low: float, high: float) -> None:
    whole = name in _INTEGERS
    if (
        isinstance(value, bool)
        or not isinstance(value, int if whole else (int, float))
        or not low <= value <= high
    ):
        kind = "an integer" if whole else "a number"
        raise _wrong(name, value, f"give {kind} between {low:g} and {high:g}")


def _either(choices: tuple[str, ...]) -> str:
    return f"one of {', '.join(choices)}"


def _wrong(name: str, value: object, remedy: str) -> ConfigError:
    return ConfigError(f"{KEY}.{name}={value!r} cannot be used: {remedy}")


def check_options(additional_config: object, api_servers: int = 1) -> bool:
    """Say whether a server asks for the cache, and refuse options it cannot have.

    Args:
        additional_config: The value of ``--additional-config``.
        api_servers: Processes that serve the API.

    Raises:
        ValueError: An option is unknown, malformed, out of range, or not for so many
            API servers.
    """
    config = VectorQConfig.from_additional_config(additional_config)
    if config.enabled and api_servers > 1 and config.store.startswith("sqlite"):
        remedy = (
            f"a SQLite store belongs to one process, and {api_servers} API servers "
            "were asked for. Give the URL of a PostgreSQL database that they share, "
            "'memory' for separate caches, or --api-server-count 1"
        )
        raise _wrong("store", config.store, remedy)
    return config.enabled
