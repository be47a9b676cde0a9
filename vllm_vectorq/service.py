# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Builds the cache of a process from its options, and takes it down again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING

from .cache import SemanticCache
from .config import ConfigError, VectorQConfig
from .embedding import EmbeddingPool
from .embedding_model import EmbeddingModel
from .error_estimate import ServedErrorEstimator
from .faults import Faults
from .judge import ChainJudge, EqualityJudge, Judge
from .judge_crossencoder import CrossEncoderJudge
from .judge_embedding import EmbeddingJudge
from .label_quota import LabelQuota
from .labelling import Labeller
from .learner import Learner
from .metrics import CacheMetrics
from .policy import Policy
from .policy_static import ExactPolicy, StaticPolicy
from .policy_vcache import VCachePolicy
from .policy_vectorq_v1 import VectorQV1Policy
from .store import Store, open_store
from .store_writer import StoreWriter
from .upkeep import Upkeep
from .working_set import WorkingSet

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def cache_for(vllm_config: VllmConfig) -> SemanticCache | None:
    """Return the cache that a server was configured to have; None for none.

    Raises:
        ValueError: An option cannot be used.
        StoreError: The store cannot be opened.
    """
    from vllm.logger import init_logger

    config = VectorQConfig.from_additional_config(vllm_config.additional_config)
    if not config.enabled:
        return None
    logger = init_logger("vllm.plugins.vectorq")
    return Service(config, vllm_config.model_config.model, logger).cache


class Service:
    """A cache with everything that runs behind it.

    Attributes:
        cache: What the adapter asks.
        store: Where it is kept.
        writer: Writes to the store in the background.
        labeller: Labels in the background.
        upkeep: Expiry, eviction, gauges.
    """

    def __init__(self, config: VectorQConfig, model_name: str, logger: Logger) -> None:
        """Open the store, load what it holds, and start the background threads.

        Args:
            config: The operator's options.
            model_name: Model served; names the default store.
            logger: vLLM's logger for this plugin.

        Raises:
            ConfigError: An option cannot be used with this model or machine.
            StoreError: The store cannot be opened.
        """
        self.config = config
        metrics = CacheMetrics()
        faults = Faults(logger, metrics.fault)
        errors = ServedErrorEstimator()
        model = _embedding_model(config)
        fingerprint = model.fingerprint if model is not None else ""
        self.store: Store = open_store(store_url(config, model_name, fingerprint))
        pool = None
        if model is not None:
            pool = EmbeddingPool(model, accepts=model.fits)
        self.writer = StoreWriter(self.store, logger)
        working_set = WorkingSet(
            dimensions=model.dimensions if model is not None else 0,
            new_policy=policy_factory(config),
            submit=self.writer.submit,
            metrics=metrics,
            use_guards=config.guards,
        )
        working_set.apply(self.store.load())
        self.writer.on_foreign = working_set.apply
        self.labeller = Labeller(logger)
        learner = Learner(
            config=config,
            working_set=working_set,
            judge=_judge(config, model),
            labeller=self.labeller,
            quota=LabelQuota(),
            embedding=pool,
            submit=self.writer.submit,
            served_errors=errors,
            metrics=metrics,
            faults=faults,
        )
        self.cache = SemanticCache(
            config=config,
            working_set=working_set,
            learner=learner,
            embedding=pool,
            metrics=metrics,
            faults=faults,
            secret=config.secret.encode() or self.store.secret(),
            served_errors=errors,
        )
        self.upkeep = Upkeep(config, working_set, errors, metrics, faults, logger)
        self.upkeep.start()

    def close(self) -> None:
        """Stop the threads; what was learned is in the store afterwards."""
        self.upkeep.close()
        self.labeller.close(5.0)
        if self.cache.embedding is not None:
            self.cache.embedding.close()
        self.writer.close(5.0)
        self.store.close()


def policy_factory(config: VectorQConfig) -> Callable[[], Policy]:
    """Return what makes the policy of a new partition."""
    factories: dict[str, Callable[[], Policy]] = {
        "vcache": partial(VCachePolicy, hit_floor=1.0 - config.hit_delta),
        "vectorq_v1": VectorQV1Policy,
        "static": partial(StaticPolicy, config.static_threshold),
        "exact": ExactPolicy,
    }
    return factories[config.policy]


def store_url(config: VectorQConfig, model_name: str, fingerprint: str) -> str:
    """Return the URL of the store; the default is one file per model and embedding."""
    if config.store != "sqlite":
        return config.store
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    parts = "\0".join((model_name, config.namespace, fingerprint))
    name = hashlib.sha256(parts.encode()).hexdigest()[:16]
    path = Path(base, "vllm-vectorq", f"{name}.db").absolute()
    return f"sqlite://{path}"


def _embedding_model(config: VectorQConfig) -> EmbeddingModel | None:
    """Load the embedding model, so that what is wrong with it is known at start."""
    if config.policy == "exact":
        return None
    model = EmbeddingModel(config.embedding_model, threads=config.embedding_threads)
    try:
        _ = model.dimensions
    except Exception as error:
        raise ConfigError(
            f"vectorq.embedding_model={config.embedding_model!r} cannot be loaded: "
            f"{error}. Give the directory of a sentence-transformers model, install "
            "sentence-transformers and faiss-cpu, or choose the policy 'exact', which "
            "needs neither."
        ) from error
    return model


def _judge(config: VectorQConfig, model: EmbeddingModel | None) -> Judge:
    judges: list[Judge] = []
    for name in config.judges:
        if name == "equality":
            judges.append(EqualityJudge())
        elif name == "embedding" and model is not None:
            judges.append(EmbeddingJudge(model.embed, model.fits))
        elif name == "cross_encoder":
            judges.append(CrossEncoderJudge(config.cross_encoder_model))
    return ChainJudge(judges)
