# SPDX-License-Identifier: Apache-2.0
"""The Internet protocol: its measures, folders, cache and command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from discovery_makers import (
    Reds,
    disc,
    internet,
)
from PIL import Image

from patchword.cli.main import main
from patchword.errors import DatasetError, ShapeError
from patchword.systems.segswap import (
    PreprocessConfig,
    Segswap,
    SegSwapNetwork,
    load_backbone,
    make_config,
    save_network,
)
from patchword.systems.segswap.discovery import (
    DiscoveryOptions,
)
from patchword.systems.segswap.protocols.internet import (
    InternetOptions,
    evaluate_internet,
    jaccard,
    pixel_accuracy,
)


def test_measures_by_hand() -> None:
    predicted, truth = np.array([[1, 1], [0, 0]], bool), np.array([[1, 0], [1, 0]], bool)
    assert jaccard(predicted, truth) == pytest.approx(1 / 3)
    assert pixel_accuracy(predicted, truth) == 0.5
    assert np.isnan(jaccard(predicted, np.zeros((2, 2), bool)))


def test_internet_protocol_on_a_tiny_folder(tmp_path: Path) -> None:
    data = internet(tmp_path / "data", ("Airplane100", "Car100"))
    options = InternetOptions(
        discovery=DiscoveryOptions(flip=False), cache=tmp_path / "cache", chunk=2
    )
    assert (options.sigma("Car100"), options.sigma("Horse100"), options.sigma("Dog")) == (
        5.0,
        1.2,
        1.0,
    )
    model = Reds()
    report = evaluate_internet(data, model=model, options=options)
    assert report.metrics["jaccard_Car100"] > 0.9
    assert report.metrics["precision_Car100"] > 0.97
    means = [report.metrics[f"jaccard_{name}"] for name in ("Airplane100", "Car100")]
    assert report.metrics["jaccard"] == pytest.approx(np.mean(means))
    # Every figure is the mean of what the report lists.
    listed = [row["precision"] for row in report.per_item if row["class"] == "Car100"]
    assert report.metrics["precision_Car100"] == pytest.approx(np.mean(listed))
    assert report.metrics["nodes_Car100"] > 20
    assert len(report.examples) == 6
    # Three pairs a class in files of two.
    names = sorted(path.name for path in (tmp_path / "cache" / "Car100").iterdir())
    assert names == ["start0_end2.npz", "start2_end3.npz"]
    calls = model.calls
    again = evaluate_internet(data, model=model, options=options)
    assert (model.calls, again.metrics) == (calls, report.metrics)
    # A damaged file and a changed picture are made anew.
    (tmp_path / "cache" / "Car100" / names[0]).write_bytes(b"PK damaged")
    assert evaluate_internet(data, model=model, options=options).metrics == report.metrics
    assert model.calls == calls + 1
    Image.fromarray(disc((70, 70))[0]).save(data / "Car100" / "0000.png")
    evaluate_internet(data, model=model, options=options)
    assert model.calls == calls + 3


def test_empty_truth_is_left_out_of_jaccard(tmp_path: Path) -> None:
    data = internet(tmp_path) / "Car100"
    Image.fromarray(np.zeros((160, 160), bool)).save(data / "GroundTruth" / "0001.png")
    options = InternetOptions(discovery=DiscoveryOptions(flip=False))
    report = evaluate_internet(data, model=Reds(), options=options)
    assert report.metrics["jaccard"] > 0.9
    assert report.metrics["precision"] < 0.95
    assert [row["jaccard"] is None for row in report.per_item] == [False, True, False]
    json.dumps(report.per_item, allow_nan=False)


def test_internet_layout_is_checked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="must hold classes such as Car100"):
        evaluate_internet(tmp_path, model=Reds())
    data = internet(tmp_path) / "Car100"
    truth = data / "GroundTruth" / "0001.png"
    Image.new("RGB", (160, 160)).save(truth)
    with pytest.raises(DatasetError, match=r"one channel and the size.*\(160, 160, 3\)"):
        evaluate_internet(data, model=Reds())
    truth.unlink()
    with pytest.raises(DatasetError, match=r"0001\.png cannot be read"):
        evaluate_internet(data, model=Reds())


def test_command_with_fresh_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the files to the report; untrained weights find nothing, and nothing fails."""
    torch.manual_seed(0)
    network = SegSwapNetwork(make_config("tiny", backbone="efficientnet-lite0"), load_backbone())
    save_network(tmp_path / "fresh.safetensors", network)
    system = Segswap(network.eval(), preprocess=PreprocessConfig(size=(96, 96)))
    found = system.discover([disc((64, 80))[0], disc((80, 64))[0]])
    assert [mask.shape for mask in found.masks] == [(160, 160)] * 2
    fitted = Segswap(network, preprocess=PreprocessConfig(resize="fit", size=(96, 96)))
    with pytest.raises(ShapeError, match="Load the system with resize squash"):
        fitted.discover([disc((64, 80))[0], disc((80, 64))[0][:96]])
    data = internet(tmp_path / "data")
    words = ["evaluate", "segswap", "internet", "--data", str(data), "--size", "96"]
    words += ["--checkpoint", str(tmp_path / "fresh.safetensors"), "--quiet"]
    words += ["--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["result"]["metrics"]
    assert set(metrics) >= {"precision", "jaccard", "jaccard_Car100", "nodes_Car100"}
    assert (tmp_path / "out" / "evaluation.json").exists()
    stamp = (tmp_path / "cache" / "Car100" / "start0_end3.npz").stat().st_mtime_ns
    # Other settings of the graph need no second pass; other weights do.
    assert main([*words, "--two-cycles", "--conf-th", "0.3"]) == 0
    assert (tmp_path / "cache" / "Car100" / "start0_end3.npz").stat().st_mtime_ns == stamp
    assert main([*words, "--sigma", "Car:5"]) == 2
    assert "must read like" in capsys.readouterr().err
