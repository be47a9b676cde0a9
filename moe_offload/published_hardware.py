# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The machines that the published planner was run for.

Memory and bandwidths are in units of 2**30 bytes, as the paper's results need. How much
host memory its planner was told is not known: with 184.25 to 184.75 GiB it finds the
published policies.

Source: MoE-Lightning (2411.11217), section 5, and the program published with it.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class PublishedHardware:
    """What the published planner knows of a machine: peaks.

    Attributes:
        device_bytes: Device memory.
        host_bytes: Host memory.
        link_bytes_per_s: Host to device.
        device_bytes_per_s: Of device memory.
        host_bytes_per_s: Of host memory.
        device_flops_per_s: Of the device.
        host_flops_per_s: Of the CPU.
    """

    device_bytes: float
    host_bytes: float
    link_bytes_per_s: float
    device_bytes_per_s: float
    host_bytes_per_s: float
    device_flops_per_s: float
    host_flops_per_s: float


L4 = PublishedHardware(
    device_bytes=24 * GIB,
    host_bytes=184.5 * GIB,
    link_bytes_per_s=16 * GIB,
    device_bytes_per_s=285 * GIB,
    host_bytes_per_s=76 * GIB,
    device_flops_per_s=104e12,
    host_flops_per_s=1.6e12,
)
T4 = PublishedHardware(
    device_bytes=15 * GIB,
    host_bytes=184.5 * GIB,
    link_bytes_per_s=16 * GIB,
    device_bytes_per_s=300 * GIB,
    host_bytes_per_s=100 * GIB,
    device_flops_per_s=65e12,
    host_flops_per_s=0.8e12,
)
