# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The picture of a training: a real file that shows every layer."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from vllm_hashattn.cli_plot import add_parser
from vllm_hashattn.hash_file import HashFile, HashFileError
from vllm_hashattn.paper_file import PaperFile, PaperNetworks
from vllm_hashattn.scorer_linear import LinearHash
from vllm_hashattn.scorer_paper import HeadNetworks
from vllm_hashattn.training_plot import draw, plot_training

LAYERS = 30
SCORERS = ("linear", "linear asymmetric", "oracle", "window")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def training() -> dict[str, Any]:
    """As a training writes it, for a model of 30 layers, in no order."""
    random = torch.Generator().manual_seed(5)

    def shares() -> dict[str, float]:
        drawn = torch.rand(len(SCORERS), generator=random).tolist()
        return dict(zip(SCORERS, drawn, strict=True))

    layers = [
        {"layer": index, "loss": 0.3 + index / 100, "seconds": 1.0,
         "recall": shares(), "mass": shares()}
        for index in reversed(range(LAYERS))
    ]  # fmt: skip
    return {"bits": 128, "steps": 3, "layers": layers}


def line_points(picture: Path, name: str) -> list[tuple[float, float]]:
    """Corners of a line of an SVG file."""
    for group in ElementTree.parse(picture).iter(f"{SVG}g"):
        if group.get("id") == name:
            path = group.find(f"{SVG}path")
            assert path is not None
            numbers = re.findall(r"[ML] (\S+) (\S+)", path.get("d") or "")
            return [(float(x), float(y)) for x, y in numbers]
    raise AssertionError(f"no line {name}")


def test_an_svg_shows_every_layer_of_every_scorer(
    training: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "training.svg"
    plot_training(training, path)
    by_layer = sorted(training["layers"], key=lambda each: each["layer"])
    for kind in ("recall", "mass"):
        for scorer in SCORERS:
            points = line_points(path, f"{kind}-{scorer.replace(' ', '-')}")
            assert len(points) == LAYERS
            wanted = [each[kind][scorer] for each in by_layer]
            # Down is larger in SVG; heights are proportional to the shares.
            heights = [-y for _, y in points]
            assert [x for x, _ in points] == sorted(x for x, _ in points)
            spread = (heights[0] - heights[1]) / (wanted[0] - wanted[1])
            assert spread > 0
            for height, share in zip(heights, wanted, strict=True):
                expected = heights[0] + spread * (share - wanted[0])
                assert height == pytest.approx(expected, abs=0.05)
    rising = [-y for _, y in line_points(path, "loss")]
    assert len(rising) == LAYERS
    assert rising == sorted(rising)


def test_a_png_is_a_picture_and_the_same_bytes_every_time(
    training: dict[str, Any], tmp_path: Path
) -> None:
    from matplotlib.image import imread

    for suffix in ("png", "svg"):
        one, again = (tmp_path / f"{name}.{suffix}" for name in ("one", "again"))
        plot_training(training, one)
        plot_training(training, again)
        assert one.read_bytes() == again.read_bytes()
    pixels = imread(tmp_path / "one.png")
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1500
    assert pixels.std() > 0.05


def test_legends_name_the_mean_of_each_scorer(training: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    for each in training["layers"]:
        each["recall"]["linear"] = 0.2 if each["layer"] < 15 else 0.4
    training["layers"][0]["recall"]["paper"] = 0.75
    figure = Figure()
    draw(training["layers"], figure)
    recall, mass, loss = figure.axes
    labels = [text.get_text() for text in recall.get_legend().get_texts()]
    assert labels[0] == "linear: 30 %"
    assert labels[-1] == "paper: 75 %"  # known of one layer only
    assert len(mass.get_legend().get_texts()) == len(SCORERS)
    assert loss.get_legend() is None


def test_what_cannot_be_drawn_is_refused_with_the_reason(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "training.svg"
    with pytest.raises(ValueError, match=r"must end in \.png or \.svg"):
        plot_training(training, tmp_path / "training.gif")
    with pytest.raises(ValueError, match="it names no layers"):
        plot_training({"steps": 3}, path)
    with pytest.raises(ValueError, match=r"it was imported from hat_weights\.pkl"):
        plot_training({"imported_from": "hat_weights.pkl"}, path)
    del training["layers"][4]["mass"]
    with pytest.raises(ValueError, match="lacks the mass of layer 25"):
        plot_training(training, path)
    del training["layers"][4]
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        plot_training(training, path)
    assert list(tmp_path.iterdir()) == []


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["plot", *arguments])
    return int(options.run(options))


def test_command_draws_files_of_both_kinds(
    training: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = LinearHash(
        torch.zeros(2, 32, 16),
        torch.zeros(2, 16),
        torch.zeros(6, 32, 16),
        torch.zeros(6, 16),
    )
    one = HeadNetworks([torch.zeros(6, 32, 16)], [torch.zeros(6, 16)])
    source, out = tmp_path / "hash.safetensors", tmp_path / "training.svg"
    for file in (
        HashFile({0: maps}, {}, training),
        PaperFile({0: PaperNetworks(one, one)}, {}, training),
    ):
        file.save(source)
        assert run(str(source), "--out", str(out)) == 0
        assert capsys.readouterr().out == f"{out}\n"
        assert len(line_points(out, "recall-oracle")) == LAYERS
        out.unlink()
    assert run(str(source), "--out", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(out)}
    out.write_text("no hash file")
    with pytest.raises(HashFileError, match="cannot be read as a hash file"):
        run(str(out), "--out", str(tmp_path / "other.svg"))
