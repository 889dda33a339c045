# SPDX-License-Identifier: Apache-2.0
"""The retrieval protocols with a SegSwap network, and their commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colour_backbone import Colours
from PIL import Image

from patchword.cli.main import main
from patchword.errors import OptionError
from patchword.systems.segswap import PreprocessConfig, Segswap, SegSwapNetwork, make_config
from patchword.systems.segswap.checkpoint import load_backbone, save_network
from patchword.systems.segswap.protocols.network import NetworkScorer


@pytest.fixture(scope="module")
def network() -> SegSwapNetwork:
    torch.manual_seed(5)
    return SegSwapNetwork(make_config("tiny", "efficientnet-lite0"), Colours()).eval()


def noise(height: int, width: int, seed: int) -> Any:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_scores_are_those_of_the_system(network: SegSwapNetwork) -> None:
    sizes = [(64, 64), (64, 96), (64, 64)]
    pictures = [noise(*size, seed) for seed, size in enumerate(sizes)]
    scorer = NetworkScorer(network, batch=2)
    embedded = [scorer.embed(scorer.encode(picture)) for picture in pictures]
    cells = torch.zeros(4, 4, dtype=torch.bool)
    cells[1:3, 0:2] = True
    answer = scorer.score(embedded[0], cells, embedded)
    fitted = [
        Segswap(network, preprocess=PreprocessConfig(size=size)).describe(picture)
        for picture, size in zip(pictures, sizes, strict=True)
    ]
    wanted = Segswap(network).score(fitted[0], fitted, cells)
    torch.testing.assert_close(answer.scores, torch.from_numpy(wanted))
    with torch.inference_mode():
        out0, _ = network(scorer.encode(pictures[0])[None], scorer.encode(pictures[1])[None])
    torch.testing.assert_close(answer.points[1][cells], out0[0, :2].permute(1, 2, 0)[cells])
    assert (answer.masks[:, ~cells] == 0).all()


def test_fingerprint_follows_the_weights(network: SegSwapNetwork) -> None:
    other = SegSwapNetwork(network.config, Colours())
    other.load_state_dict(network.state_dict())
    assert NetworkScorer(network).fingerprint() == NetworkScorer(other).fingerprint()
    with torch.no_grad():
        other.transformer.head.bias[0] += 1e-3
    assert NetworkScorer(network).fingerprint() != NetworkScorer(other).fingerprint()
    published = NetworkScorer(network, rounding="published")
    assert NetworkScorer(network).fingerprint() != published.fingerprint()


def test_published_normalisation_needs_its_network(network: SegSwapNetwork) -> None:
    with pytest.raises(OptionError, match="Pass it as published="):
        NetworkScorer(network).encode(noise(32, 32, 0), "segswap_eval")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    small = SegSwapNetwork(make_config("tiny", "efficientnet-lite0"), load_backbone())
    return save_network(tmp_path_factory.mktemp("weights") / "w.safetensors", small)


def test_brueghel_command(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(3):
        Image.fromarray(noise(80, 96, seed)).save(images / f"{seed}.png")
    query = {"query": ["0.png", [0, 0, 90, 64]], "gt": [["1.png", [0, 0, 40, 40]]]}
    (tmp_path / "labels.json").write_text(json.dumps({"detail": [query]}))
    words = ["evaluate", "segswap", "brueghel", "--test-dir", images, "--label-pth"]
    words += [tmp_path / "labels.json", "--resume-pth", checkpoint, "--img-size", 96]
    words += ["-o", tmp_path / "out", "--out-coarse", tmp_path / "c.json", "--json", "-q"]
    assert main([*map(str, words)]) == 0
    metrics = json.loads(capsys.readouterr().out)["result"]["metrics"]
    assert metrics["map_image_level"] in (1.0, 0.5)
    assert (tmp_path / "out" / "evaluation.json").exists()
    assert len(json.loads((tmp_path / "c.json").read_text())["detail"][0]) == 2
    sliding = [*map(str, words), "--method", "sliding", "--scales", "12"]
    assert main(sliding) == 0
    assert "map_localised@0.3" in json.loads(capsys.readouterr().out)["result"]["metrics"]
    assert main([*map(str, words[:-2]), "--query-size", "32"]) == 2
    assert "other settings (different: query_size)" in capsys.readouterr().err


def test_places_command(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(noise(48, 64, len(name))).save(tmp_path / name)
    for kind in ("qry", "db"):
        np.save(tmp_path / f"pitts_test_{kind}_list.npy", np.array(["a.png", "b.png"]))
        np.save(tmp_path / f"pitts_test_{kind}_utm.npy", np.array([[0.0, 0], [100, 0]]))
    np.save(tmp_path / "first.npy", np.array([[1, 0], [0, 1]]))
    words = ["evaluate", "segswap", "pitts30k", "--queries", tmp_path, "--database", tmp_path]
    words += ["--lists", tmp_path, "--score", tmp_path / "first.npy", "--checkpoint", checkpoint]
    words += ["--image-size", 48, 64, "--json", "-q"]
    assert main([*map(str, words)]) == 0
    metrics = json.loads(capsys.readouterr().out)["result"]["metrics"]
    assert metrics["initial_recall@1"] == 0
    assert metrics["reranked_recall@5"] == 1
    assert main([*map(str, words), "--compat"]) == 2  # its backbone has no published form
    assert "normalisation must be" in capsys.readouterr().out
