# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is asked of a model, and how it is run: batch sizes and what lies where.

Source: MoE-Lightning (2411.11217), section 4.2, where a policy is (N, mu, A_g, F_g,
r_w, r_c). The share of experts on a disk and the tokens of a prefill pass are added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, all alike.

    Attributes:
        prompt_tokens: Mean length of a prompt.
        generated_tokens: Mean length of an answer, at least 1.

    Raises:
        ValueError: A length is out of range.
    """

    prompt_tokens: float
    generated_tokens: float

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "generated_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not 1 <= value < math.inf:
                raise ValueError(
                    f"moe_offload: asked for a workload with {name}={value!r}, which "
                    "cannot be: give a finite number of at least 1."
                )

    @property
    def mean_context_tokens(self) -> float:
        """What a decode step of a request reads on average."""
        return self.prompt_tokens + self.generated_tokens / 2


@dataclass(frozen=True, slots=True)
class Policy:
    """How a model is run.

    Attributes:
        batch: Requests in a decode step (N).
        micro_batch: Requests that pass through a layer together (mu).
        attention_on_device: Whether decode attention is computed on the device (A_g).
        experts_on_device: Whether experts are (F_g).
        device_share: Of the experts of each layer, resident on the device (r_w).
        host_share: Of them, in host memory.
        disk_share: Of them, on a disk.
        cache_on_device_share: Of the key-value cache (r_c).
        prefill_tokens: Prompt tokens that pass through the layers together.

    Raises:
        ValueError: A number is out of range, or two do not go together.
    """

    batch: int
    micro_batch: int
    attention_on_device: bool
    experts_on_device: bool
    device_share: float
    host_share: float
    disk_share: float
    cache_on_device_share: float
    prefill_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "prefill_tokens"):
            self._check(name, 1, math.inf)
        for name in _SHARES:
            self._check(name, 0.0, 1.0)
        if self.micro_batch > self.batch:
            raise _wrong(
                "micro_batch", self.micro_batch, f"give at most batch={self.batch}"
            )
        total = self.device_share + self.host_share + self.disk_share
        if abs(total - 1.0) > _ROUNDING:
            raise _wrong(
                "device_share + host_share + disk_share", total, "they are 1 together"
            )
        if not self.attention_on_device and self.cache_on_device_share:
            raise _wrong(
                "cache_on_device_share",
                self.cache_on_device_share,
                "attention on the host reads a cache in host memory; give 0",
            )
        if not self.experts_on_device and self.host_share < 1.0:
            raise _wrong(
                "host_share",
                self.host_share,
                "experts that are computed on the host lie there; give 1",
            )

    @property
    def micro_batches(self) -> int:
        """Of a decode step."""
        return -(-self.batch // self.micro_batch)

    def _check(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        # A value that is not a number fails the comparison.
        if isinstance(value, bool) or not least <= value <= most:
            remedy = f"give {least:g} to {most:g}" if most < math.inf else "give >= 1"
            raise _wrong(name, value, remedy)


_SHARES = ("device_share", "host_share", "disk_share", "cache_on_device_share")


def _wrong(name: str, value: object, remedy: str) -> ValueError:
    return ValueError(
        f"moe_offload: asked for a policy with {name}={value!r}, which cannot be: "
        f"{remedy}."
    )
