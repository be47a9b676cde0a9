# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the workers of one server know: options, hash and budget, read once."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.logger import init_logger

from .budget import Budget
from .compat import current_config, options_of
from .config import HashAttnConfig
from .hash_file import HashFile, HashFileError, LayerHash
from .layer_codes import code_bytes, hashes
from .paper_file import PaperFile, PaperNetworks

logger = init_logger("vllm.plugins.hashattn")


@dataclass(frozen=True, slots=True)
class Serving:
    """Of one engine.

    Attributes:
        options: As given.
        file: The hash.
        budget: What a decoding token reads.
        code_bytes: Of a key's code for one KV head.
    """

    options: HashAttnConfig
    file: HashFile | PaperFile
    budget: Budget
    code_bytes: int

    def maps_of(self, layer: int) -> LayerHash | PaperNetworks:
        """Return the hash of a layer.

        Raises:
            HashFileError: There is none.
        """
        found: LayerHash | PaperNetworks | None = self.file.layers.get(layer)
        if found is None:
            raise HashFileError(
                f"hashattn: {self.options.weights} has no hash for layer {layer}; "
                "train the whole model with: vllm-hashattn train"
            )
        return found


# One process serves one configuration; steps are built outside of its context.
_CURRENT: list[Serving] = []


def serving() -> Serving:
    """Return what the engine of this process was started with.

    Raises:
        ValueError: It was not started with a hash.
    """
    config = current_config()
    options = None if config is None else options_of(config.additional_config)
    if options is not None and (not _CURRENT or _CURRENT[0].options != options):
        _CURRENT[:] = [_start(options)]
    if not _CURRENT:
        raise ValueError(
            "hashattn: the attention backend CUSTOM was asked for without a hash file; "
            "give one with --additional-config.hashattn.weights FILE"
        )
    return _CURRENT[0]


def _start(options: HashAttnConfig) -> Serving:
    file = hashes(options.weights)
    logger.info(
        "hashattn: decode attention reads %.3g %% of contexts of %d tokens and more, "
        "in all layers but the first %d, by the hash in %s",
        100 * options.density,
        options.dense_below,
        options.dense_layers,
        options.weights,
    )
    return Serving(options, file, budget_of(options), code_bytes(file))


def budget_of(options: HashAttnConfig) -> Budget:
    """Return what a decoding token reads."""
    return Budget(
        options.density,
        options.min_tokens,
        options.sink_tokens,
        options.recent_tokens,
    )
