# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a machine can do: capacities, bandwidths and rates, kept in a file.

Rates from datasheets rank policies; only measured ones predict a throughput.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

FORMAT = "moe_offload machine"
VERSION = 1
DATASHEET = "datasheet"


@dataclass(frozen=True, slots=True)
class Tier:
    """Memory and the processor that computes from it.

    Attributes:
        name: For sentences, such as "L4".
        capacity_bytes: That may be used: what others need is taken off.
        bandwidth_bytes_per_s: Of reading the memory.
        flops_per_s: Most that the processor computes.

    Raises:
        ValueError: A number is not positive and finite.
    """

    name: str
    capacity_bytes: float
    bandwidth_bytes_per_s: float
    flops_per_s: float

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name:
            raise _wrong("a tier", "name", name, "give a name")
        for number in ("capacity_bytes", "bandwidth_bytes_per_s", "flops_per_s"):
            _check_positive(f"the tier {name!r}", number, getattr(self, number))


@dataclass(frozen=True, slots=True)
class Machine:
    """A device, its host, and what lies between them.

    Attributes:
        device: What computes experts.
        host: CPU and its memory.
        up_bytes_per_s: Of the link, host to device.
        down_bytes_per_s: Of the link, device to host.
        host_attention_bytes_per_s: Cache that attention on the CPU reads, measured.
        expert_flops_per_s: Of experts on the device, measured on large batches.
        dense_flops_per_s: Of other matrix products there, measured the same way.
        launch_s: That any operation takes besides its work.
        disk_bytes_per_s: Of reading pages from disk; None: there is none.
        disk_capacity_bytes: That experts may take there.
        about: Anything to remember: versions, hardware, when it was measured.

    Raises:
        ValueError: A number is not positive and finite, or half a disk is described.
    """

    device: Tier
    host: Tier
    up_bytes_per_s: float
    down_bytes_per_s: float
    host_attention_bytes_per_s: float
    expert_flops_per_s: float
    dense_flops_per_s: float
    launch_s: float = 0.0
    disk_bytes_per_s: float | None = None
    disk_capacity_bytes: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in _RATES:
            _check_positive("a machine", name, getattr(self, name))
        if not (_is_number(self.launch_s) and 0.0 <= self.launch_s < math.inf):
            raise _wrong("a machine", "launch_s", self.launch_s, "give seconds, or 0")
        if not _is_number(self.disk_capacity_bytes):
            raise _wrong(
                "a machine",
                "disk_capacity_bytes",
                self.disk_capacity_bytes,
                "give a number",
            )
        if self.disk_bytes_per_s is None:
            if self.disk_capacity_bytes:
                raise _wrong(
                    "a machine",
                    "disk_bytes_per_s",
                    None,
                    "there is a disk_capacity_bytes, so give the rate too",
                )
        else:
            for name in ("disk_bytes_per_s", "disk_capacity_bytes"):
                _check_positive("a machine with a disk", name, getattr(self, name))

    @property
    def is_measured(self) -> bool:
        """Whether rates were measured, rather than taken from datasheets."""
        return self.about.get("rates") != DATASHEET

    @classmethod
    def from_datasheet(
        cls,
        device: Tier,
        host: Tier,
        up_bytes_per_s: float,
        down_bytes_per_s: float | None = None,
        disk_bytes_per_s: float | None = None,
        disk_capacity_bytes: float = 0.0,
    ) -> Machine:
        """Return a machine whose rates are its peaks, which no program reaches.

        Args:
            device: What computes experts.
            host: CPU and its memory.
            up_bytes_per_s: Of the link, host to device.
            down_bytes_per_s: The other way; None: the same.
            disk_bytes_per_s: Of a disk, if there is one.
            disk_capacity_bytes: That experts may take there.

        Raises:
            ValueError: As for the class.
        """
        return cls(
            device,
            host,
            up_bytes_per_s,
            up_bytes_per_s if down_bytes_per_s is None else down_bytes_per_s,
            host_attention_bytes_per_s=host.bandwidth_bytes_per_s,
            expert_flops_per_s=device.flops_per_s,
            dense_flops_per_s=device.flops_per_s,
            disk_bytes_per_s=disk_bytes_per_s,
            disk_capacity_bytes=disk_capacity_bytes,
            about={"rates": DATASHEET},
        )

    def scaled(self, factor: float, *names: str) -> Machine:
        """Return the machine with some of its numbers multiplied.

        Args:
            factor: To multiply with.
            names: Of attributes; those of a tier as "device.capacity_bytes".

        Raises:
            ValueError: As for the class.
        """
        changed = self
        for name in names:
            tier, dot, inner = name.partition(".")
            if dot:
                whole: Tier = getattr(changed, tier)
                value = getattr(whole, inner) * factor
                changes: dict[str, Any] = {tier: replace(whole, **{inner: value})}
            else:
                changes = {name: getattr(changed, name) * factor}
            changed = replace(changed, **changes)
        return changed

    def write(self, path: str | Path) -> None:
        """Write the machine into a file that :meth:`read` reads."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Machine:
        """Read a machine from a file.

        Raises:
            ValueError: It is no such file, of another version, incomplete or wrong.
        """
        where = f"asked to read a machine from {str(path)!r}"
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"moe_offload: {where}, which cannot be read ({error}). Measure again."
            ) from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(
                f"moe_offload: {where}, which holds something else. Give a file that "
                "the measurement wrote."
            )
        version = content.pop("version", None)
        if version != VERSION:
            raise ValueError(
                f"moe_offload: {where}, which has version {version!r}; this release "
                f"reads version {VERSION}. Measure again."
            )
        for name in ("device", "host"):
            content[name] = _built(Tier, content.get(name), where)
        found: Machine = _built(cls, content, where)
        return found


_RATES = (
    "up_bytes_per_s",
    "down_bytes_per_s",
    "host_attention_bytes_per_s",
    "expert_flops_per_s",
    "dense_flops_per_s",
)


def _built(kind: Any, content: object, where: str) -> Any:  # noqa: ANN401
    """Make a dataclass of an object in a file, with every attribute given."""
    names = {each.name for each in fields(kind)}
    given = set(content) if isinstance(content, dict) else set()
    if not isinstance(content, dict) or given != names:
        raise ValueError(
            f"moe_offload: {where}; of {kind.__name__.lower()} it lacks "
            f"{sorted(names - given)} and has unknown {sorted(given - names)}. Measure "
            "again."
        )
    try:
        return kind(**content)
    except ValueError as error:
        raise ValueError(f"{error} ({where}.)") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_positive(whose: str, name: str, value: Any) -> None:  # noqa: ANN401
    # A value that is not a number fails both comparisons.
    if not (_is_number(value) and 0.0 < value < math.inf):
        raise _wrong(whose, name, value, "give a positive, finite number")


def _wrong(whose: str, name: str, value: object, remedy: str) -> ValueError:
    return ValueError(
        f"moe_offload: asked for {whose} with {name}={value!r}, which cannot be: "
        f"{remedy}."
    )
