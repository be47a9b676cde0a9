# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What ``--additional-config.moe_offload`` may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .activation import read_options

KEY = "moe_offload"
SCHEDULES = ("cgopipe", "s2", "s3", "no-prefetch")


class ConfigError(ValueError):
    """An option that cannot be used; says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class MoeOffloadConfig:
    """Options of the plugin.

    Attributes:
        enabled: Whether the plugin is used at all.
        device_memory_gib: That experts are computed from; it never grows.
        disk: Folder that experts are kept in. Empty: they are kept in host memory.
        micro_batches: Parts of a batch that pass through a layer one after another.
            0: two.
        schedule: Order of computing and moving. Others than the default are there to
            be compared with.
        read_threads: Reads of the disk at once.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    enabled: bool = False
    device_memory_gib: float = 0.0
    disk: str = ""
    micro_batches: int = 0
    schedule: str = "cgopipe"
    read_threads: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise _wrong("enabled", self.enabled, "give true or false")
        for name in ("disk", "schedule"):
            if not isinstance(getattr(self, name), str):
                raise _wrong(name, getattr(self, name), "give a string")
        if self.schedule not in SCHEDULES:
            raise _wrong("schedule", self.schedule, f"give one of {SCHEDULES}")
        for name, (kinds, low, high) in _RANGES.items():
            value: object = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, kinds)
                or not low <= value <= high
            ):
                kind = "an integer" if kinds is int else "a number"
                raise _wrong(name, value, f"give {kind} from {low:g} to {high:g}")
        if self.enabled and not self.device_memory_gib:
            raise _wrong(
                "device_memory_gib",
                self.device_memory_gib,
                "say how many GiB experts may be computed from",
            )

    @classmethod
    def from_additional_config(cls, additional_config: object) -> MoeOffloadConfig:
        """Read the options that a server was started with.

        Args:
            additional_config: The value of ``--additional-config``.

        Raises:
            ValueError: An option is unknown, malformed or out of range.
        """
        names = tuple(field.name for field in fields(cls))
        options: Mapping[str, Any] = read_options(additional_config, KEY, names)
        return cls(**options)


_RANGES: dict[str, tuple[Any, float, float]] = {
    "device_memory_gib": ((int, float), 0.0, 1 << 20),
    "micro_batches": (int, 0, 1 << 12),
    "read_threads": (int, 1, 64),
}


def _wrong(name: str, value: object, remedy: str) -> ConfigError:
    return ConfigError(f"{KEY}.{name}={value!r} cannot be used: {remedy}.")
