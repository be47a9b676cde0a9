# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What ``--additional-config.hashattn`` may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .activation import read_options

KEY = "hashattn"


class ConfigError(ValueError):
    """An option that cannot be used; says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class HashAttnConfig:
    """Options of the plugin.

    Attributes:
        weights: Hash file of the model, from ``vllm-hashattn train``. Empty: the plugin
            is off.
        density: Share of a context that a decode step reads.
        min_tokens: At least so many tokens are read.
        sink_tokens: First tokens that are always read.
        recent_tokens: Newest tokens that are always read.
        dense_layers: First layers that read everything; what matters is spread widest
            there.
        dense_below: Contexts of fewer tokens are read whole.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    weights: str = ""
    density: float = 0.0625
    min_tokens: int = 512
    sink_tokens: int = 128
    recent_tokens: int = 128
    dense_layers: int = 2
    dense_below: int = 2048

    def __post_init__(self) -> None:
        if not isinstance(self.weights, str):
            raise _wrong("weights", self.weights, "give the path of a hash file")
        for name, (low, high) in _RANGES.items():
            value: object = getattr(self, name)
            numbers = (int, float) if name == "density" else int
            if (
                isinstance(value, bool)
                or not isinstance(value, numbers)
                or not low <= value <= high
            ):
                kind = "a number" if name == "density" else "an integer"
                raise _wrong(name, value, f"give {kind} from {low:g} to {high:g}")

    @classmethod
    def from_additional_config(cls, additional_config: object) -> HashAttnConfig:
        """Read the options that a server was started with.

        Args:
            additional_config: The value of ``--additional-config``.

        Raises:
            ValueError: An option is unknown, malformed or out of range.
        """
        names = tuple(field.name for field in fields(cls))
        options: Mapping[str, Any] = read_options(additional_config, KEY, names)
        return cls(**options)


_RANGES: dict[str, tuple[float, float]] = {
    "density": (1e-4, 1.0),
    "min_tokens": (0, 1 << 30),
    "sink_tokens": (0, 1 << 20),
    "recent_tokens": (1, 1 << 20),
    "dense_layers": (0, 1 << 16),
    "dense_below": (0, 1 << 30),
}


def _wrong(name: str, value: object, remedy: str) -> ConfigError:
    return ConfigError(f"{KEY}.{name}={value!r} cannot be used: {remedy}.")
