# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A whole training: documents through the model, layer after layer, into one file.

Everything that takes long is kept in a folder beside the result as it is finished, so
that the same command goes on after an interruption. The folder is removed at the end.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .budget import Budget
from .capture import capture, offsets
from .hash_file import HashFile, LayerHash, load, model_fingerprint
from .recall import measure_recall
from .scorer import OracleScorer, Scorer, WindowScorer
from .scorer_levels import LevelHash, LevelScorer
from .scorer_linear import LinearScorer
from .training import Captured, TrainingSettings, train_layer
from .training_levels import train_levels
from .weighted_choice import Estimates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .training_texts import Documents

# Queries per document, as many as training draws from and recall is measured on.
_QUERIES = 256
_HELD_OUT_QUERIES = 32
_EVALUATED = Budget(1 / 16, min_tokens=0, sink_tokens=64, recent_tokens=64)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What held-out documents say about a layer.

    Attributes:
        layer: Index.
        loss: Median over the last tenth of the steps.
        seconds: That training took.
        recall: By scorer: share of the 32 most important keys found at 1/16 of the
            context, with one choice for each KV head.
        mass: By scorer: attention weight that the choice holds.
    """

    layer: int
    loss: float
    seconds: float
    recall: dict[str, float]
    mass: dict[str, float]


class TrainingRun:
    """A training that can be interrupted.

    Args:
        model_folder: Of the model, for its fingerprint.
        out: The hash file to write.
        settings: How layers are trained.
        say: Takes a line about progress.

    Raises:
        ValueError: Beside `out` lies an unfinished training with other settings.
    """

    def __init__(
        self,
        model_folder: Path,
        out: Path,
        settings: TrainingSettings,
        say: Callable[[str], None],
    ) -> None:
        self._fingerprint = model_fingerprint(model_folder)
        self._out = out
        self._settings = settings
        self._say = say
        self._work = out.with_name(out.name + ".unfinished")
        described = json.dumps({"model": self._fingerprint, **asdict(settings)})
        marker = self._work / "settings.json"
        if marker.is_file() and marker.read_text("utf-8") != described:
            raise ValueError(
                f"hashattn: {self._work} holds a training with other settings or of "
                "another model. Finish it with the same command, or remove the folder."
            )
        self._work.mkdir(parents=True, exist_ok=True)
        marker.write_text(described, "utf-8")

    def capture(
        self,
        model: PreTrainedModel,
        documents: Documents,
        longest: int | None = None,
    ) -> None:
        """Run the documents that were not run yet.

        Args:
            model: In transformers.
            documents: Of one length.
            longest: Positions that will be served, all of the model's where it is not
                given; documents are spread over them.
        """
        everything = [*documents.training, *documents.held_out]
        limit = longest or model.config.get_text_config().max_position_embeddings
        places = [
            place
            for part in (documents.training, documents.held_out)
            for place in offsets(len(part), max(map(len, part), default=0), limit)
        ]
        for number, token_ids in enumerate(everything):
            path = self._work / f"document-{number:03}.pt"
            if path.is_file():
                continue
            started_s = time.perf_counter()
            found = capture(model, token_ids, _QUERIES, number, places[number])
            kept = {layer: asdict(each) for layer, each in found.items()}
            torch.save(kept, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
            self._say(
                f"document {number + 1} of {len(everything)}: {len(token_ids):,} "
                f"tokens in {time.perf_counter() - started_s:.0f} s"
            )

    def train(self, training: int) -> list[LayerReport]:
        """Train the layers that are not trained yet, and write the file.

        Args:
            training: How many of the documents are to train on; the others are held
                out.
        """
        files = sorted(self._work.glob("document-*.pt"))
        # Mapped, not read: only the layer in work takes memory.
        documents = [torch.load(file, mmap=True, weights_only=True) for file in files]
        layers, reports = {}, []
        for layer in sorted(documents[0]):
            one = [Captured(**document[layer]) for document in documents]
            maps, report = self._layer(layer, one[:training], one[training:])
            layers[layer] = maps
            reports.append(report)
            self._say(_line(report, len(documents[0])))
        result = HashFile(
            layers,
            self._fingerprint,
            {
                **asdict(self._settings),
                "layers": [asdict(report) for report in reports],
            },
        )
        result.save(self._out)
        shutil.rmtree(self._work)
        return reports

    def _layer(
        self, layer: int, training: Sequence[Captured], held_out: Sequence[Captured]
    ) -> tuple[LayerHash, LayerReport]:
        path = self._work / f"layer-{layer:03}.safetensors"
        if path.is_file():
            finished = load(path)
            return finished.layers[layer], LayerReport(**finished.training)
        started_s = time.perf_counter()
        train = train_levels if self._settings.codes == "levels" else train_layer
        losses, maps = [], None
        for loss, latest in train(training, self._settings):
            losses.append(loss)
            maps = latest
        if maps is None:
            raise ValueError("hashattn: 0 steps were asked for; give at least one.")
        seconds = time.perf_counter() - started_s
        tail = losses[-max(len(losses) // 10, 1) :]
        scorers: dict[str, Scorer] = {
            **_own_scorers(maps),
            "oracle": OracleScorer(maps.head_dim),
            "window": WindowScorer(),
        }
        found = {name: _recall(scorer, held_out) for name, scorer in scorers.items()}
        report = LayerReport(
            layer,
            statistics.median(tail),
            round(seconds, 1),
            {name: round(recall, 4) for name, (recall, _) in found.items()},
            {name: round(mass, 4) for name, (_, mass) in found.items()},
        )
        HashFile({layer: maps}, self._fingerprint, asdict(report)).save(path)
        return maps, report


def _own_scorers(maps: LayerHash) -> dict[str, Scorer]:
    if isinstance(maps, LevelHash):
        return {"levels": LevelScorer(maps)}
    return {
        "linear": LinearScorer(maps),
        "linear asymmetric": LinearScorer(maps, asymmetric=True),
    }


def _scores(scorer: Scorer, query: Tensor, described: Tensor, kv_heads: int) -> Tensor:
    """Scores to choose by: of query heads, or of groups where weights are estimated."""
    if not isinstance(scorer, LevelScorer):
        return scorer.score(query, described)
    asked, units = scorer.asked(query.unsqueeze(0))
    dots = scorer.dots(asked, described)
    estimates = Estimates(dots, units, scorer.maps.share, kv_heads)
    return -estimates.distances(torch.tensor([len(described)]), _EVALUATED)[0]


def _recall(scorer: Scorer, documents: Sequence[Captured]) -> tuple[float, float]:
    """Mean recall and mass over queries of the documents."""
    found = []
    for document in documents:
        described = scorer.describe(document.keys)
        step = max(len(document.queries) // _HELD_OUT_QUERIES, 1)
        for i in range(0, len(document.queries), step):
            query, seen = document.queries[i], int(document.positions[i]) + 1
            keys = document.keys[:seen]
            scores = _scores(scorer, query, described[:seen], keys.shape[1])
            found.append(measure_recall(scores, query, keys, _EVALUATED))
    count = max(len(found), 1)
    return sum(f.recall for f in found) / count, sum(f.mass for f in found) / count


def _line(report: LayerReport, layers: int) -> str:
    found = ", ".join(f"{name} {share:.0%}" for name, share in report.recall.items())
    return (
        f"layer {report.layer + 1} of {layers}: loss {report.loss:.3f}, recall of "
        f"{found}, {report.seconds:.0f} s"
    )
