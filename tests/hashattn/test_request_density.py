# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What single requests may ask for."""

from typing import Any

import pytest

from vllm_hashattn.request_density import (
    FIELD,
    densities_of_batch,
    density_of,
    note_batch,
)


@pytest.mark.parametrize(
    ("extra", "density"),
    [
        (None, None),
        ({}, None),
        ({"other": 1}, None),
        ({FIELD: 1}, 1.0),
        ({FIELD: 0.5}, 0.5),
    ],
)
def test_densities_are_read(
    extra: dict[str, Any] | None, density: float | None
) -> None:
    assert density_of(extra) == density


@pytest.mark.parametrize("value", [0, 1.5, -1, True, "1", [0.5], float("nan")])
def test_what_is_no_density_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a number above 0 and at most 1"):
        density_of({FIELD: value})


def test_a_batch_finds_its_own_densities() -> None:
    note_batch([None, 0.5])
    assert densities_of_batch(2) == [None, 0.5]
    assert densities_of_batch(3) is None  # another batch
    note_batch(None)
    assert densities_of_batch(2) is None
