# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Builds the cache of a process from its options, and takes it down again."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from .cache import SemanticCache
from .config import ConfigError, VectorQConfig
from .embedding import EmbeddingPool
from .embedding_model import EmbeddingModel
from .embedding_request import PoolLimits
from .error_estimate import ServedErrorEstimator
from .faults import Faults
from .judge import EqualityJudge, Judge
from .judge_crossencoder import CrossEncoderJudge
from .judge_embedding import EmbeddingJudge
from .label_quota import LabelQuota
from .labelling import Labeller
from .learner import Learner
from .metrics import process_metrics
from .policy import Policy
from .policy_static import ExactPolicy, StaticPolicy
from .policy_suite import SuitePolicy
from .policy_vcache import VCachePolicy
from .policy_vectorq_v1 import VectorQV1Policy
from .store import Store, open_store, sqlite_path, without_password
from .store_writer import StoreWriter
from .tuning import Tuning
from .upkeep import Upkeep
from .working_set import WorkingSet

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Small batches: nobody waits long for texts that came in before theirs.
EMBEDDING_BATCH = 16
# Time for labels in progress and for the store when the server stops.
FLUSH_S = 2.0
CLOSE_S = 5.0
# Entries younger than this may not have been written yet.
WRITE_DELAY_S = 60.0

_CALIBRATED = "all-MiniLM-L6-v2"
_OTHER_MODEL = (
    "vectorq: embedding_model %s: the thresholds of the judge 'embedding' and what the "
    "default policy knows before its first labels were measured with %s. With a model "
    "whose similarities are distributed otherwise leave that judge out, for instance "
    "judges=equality,model."
)


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
        self._logger = logger
        self._closed = threading.Event()
        model = _embedding_model(config)
        fingerprint = model.fingerprint if model is not None else ""
        url = store_url(config, model_name, fingerprint)
        with ExitStack() as on_failure:
            self.store: Store = open_store(url)
            on_failure.callback(self.store.close)
            # Before loading: what others write meanwhile is then not missed.
            self.writer = StoreWriter(self.store, logger)
            on_failure.callback(self.writer.close, CLOSE_S)
            self._build(model, fingerprint, snapshot_dir(url))
            on_failure.pop_all()
        self.upkeep.start()
        self.tuning.start()
        if not _is_calibrated(config):
            logger.warning(_OTHER_MODEL, config.embedding_model, _CALIBRATED)
        logger.info(
            "vectorq: %s policy, budget %.3g %% of requests and %.3g %% of hits, %d "
            "entries from %s",
            config.policy,
            100 * config.delta,
            100 * config.hit_delta,
            len(self.working_set.entries),
            without_password(url),
        )

    def _build(
        self, model: EmbeddingModel | None, fingerprint: str, snapshot: Path | None
    ) -> None:
        """Load what the store holds, and put the parts together."""
        config, logger = self.config, self._logger
        metrics = process_metrics()
        faults = Faults(logger, metrics.fault)
        errors = ServedErrorEstimator()
        quota = _quota(config)
        pool = None
        if model is not None:
            limits = PoolLimits(max_batch=EMBEDDING_BATCH)
            pool = EmbeddingPool(model, accepts=model.fits, limits=limits)
        self.working_set = WorkingSet(
            dimensions=model.dimensions if model is not None else 0,
            new_policy=policy_factory(config),
            submit=self.writer.submit,
            metrics=metrics,
            quota=quota,
            embedding=fingerprint,
            keep_text=config.keep_text,
        )
        self.working_set.apply(self.store.load())
        self.tuning = Tuning(self.working_set, snapshot, fingerprint, faults, logger)
        if model is not None:
            self.tuning.restore(model.dimensions)
        self.writer.on_gap = self._resynchronise
        self.writer.on_foreign = self.working_set.apply
        self.labeller = Labeller(logger)
        learner = Learner(
            config=config,
            working_set=self.working_set,
            judges=_judges(config, model),
            labeller=self.labeller,
            quota=quota,
            embedding=pool,
            submit=self.writer.submit,
            served_errors=errors,
            metrics=metrics,
            faults=faults,
        )
        self.cache = SemanticCache(
            config=config,
            working_set=self.working_set,
            learner=learner,
            embedding=pool,
            metrics=metrics,
            faults=faults,
            secret=config.secret.encode() or self.store.secret(),
            served_errors=errors,
            embedding_name=fingerprint,
            on_close=self.close,
        )
        self.upkeep = Upkeep(config, self.working_set, errors, metrics, faults, logger)

    def _resynchronise(self) -> None:
        """The store's log was shortened before this process had read it."""
        began_s = time.time()
        self.working_set.resynchronise(self.store.load(), began_s - WRITE_DELAY_S)

    def close(self) -> None:
        """Stop the threads; what was learned is in the store afterwards.

        May be called twice.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self.labeller.flush(FLUSH_S)
        self.labeller.close(CLOSE_S)
        self.upkeep.close()
        self.tuning.close()
        if self.cache.embedding is not None:
            self.cache.embedding.close()
        if not self.writer.close(CLOSE_S):
            self._logger.warning("vectorq: the store was too slow; the end is lost.")
        self.store.close()


def policy_factory(config: VectorQConfig) -> Callable[[], Policy]:
    """Return what makes the policy of a new partition."""
    factories: dict[str, Callable[[], Policy]] = {
        "suite": partial(SuitePolicy, hit_delta=config.hit_delta, audit=config.audit),
        "vcache": partial(
            VCachePolicy,
            hit_floor=1.0 - config.hit_delta,
            min_exploration=config.audit,
        ),
        "vectorq_v1": VectorQV1Policy,
        "static": partial(StaticPolicy, config.static_threshold),
        "exact": ExactPolicy,
    }
    return factories[config.policy]


def store_url(config: VectorQConfig, model_name: str, fingerprint: str) -> str:
    """Return the URL of the store; the default is one file per model and embedding."""
    if config.store != "sqlite":
        return config.store
    parts = "\0".join((model_name, config.namespace, fingerprint))
    name = hashlib.sha256(parts.encode()).hexdigest()[:16]
    return f"sqlite://{quote(str(_made(cache_directory()) / f'{name}.db'))}"


def cache_directory() -> Path:
    """Directory of what no option names; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "vllm-vectorq").absolute()


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _quota(config: VectorQConfig) -> LabelQuota:
    """Bounds on what one client can teach others; nothing to bound within a tenant."""
    if config.tenants == "shared" and not config.tenant_header:
        return LabelQuota(confirmations=config.confirmations)
    return LabelQuota(
        per_entry=sys.maxsize,
        per_minute=sys.maxsize,
        confirmations=config.confirmations,
    )


def snapshot_dir(url: str) -> Path | None:
    """Directory for the graphs of large indices; None for a store in memory."""
    if url == "memory":
        return None
    if url.startswith("sqlite:"):
        return sqlite_path(url).with_suffix(".graphs")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return _made(cache_directory()) / f"{name}.graphs"


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
            f"{str(error).rstrip('.')}. Give the directory of a sentence-transformers "
            "model, install sentence-transformers and faiss-cpu, or choose the policy "
            "'exact', which needs neither."
        ) from error
    return model


def _is_calibrated(config: VectorQConfig) -> bool:
    """Whether what is built in was measured with the embedding model, by its name."""
    uses = config.policy == "suite" or "embedding" in config.judges
    name = config.embedding_model.lower().replace("_", "-")
    return not uses or config.policy == "exact" or _CALIBRATED.lower() in name


def _judges(config: VectorQConfig, model: EmbeddingModel | None) -> list[Judge]:
    """The judges that need nothing but the answers."""
    judges: list[Judge] = []
    for name in config.judges:
        if name == "equality":
            judges.append(EqualityJudge())
        elif name == "embedding" and model is not None:
            judges.append(EmbeddingJudge(model.embed, model.fits))
        elif name == "cross_encoder":
            judges.append(CrossEncoderJudge(config.cross_encoder_model))
    # The model itself joins when its engine has started.
    return judges or [EqualityJudge()]
